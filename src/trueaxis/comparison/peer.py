"""Peers: other people's quantizers, each run by the Python that has it installed, as a process of its own.

MODEL, setting ─▶ python peers/with_NAME.py ─▶ FOLDER/files, whose bytes count ─▶ FOLDER/dense, which is evaluated

A peer's environment is `peers/NAME` under the directory that TRUEAXIS_PEERS names (`make bench-peers` makes them in
`build`); without one the running Python is tried.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trueaxis.types import TrueaxisError

if TYPE_CHECKING:
    from trueaxis.preparation import Prepared

SCRIPTS = Path(__file__).parent / "peers"
ENVIRONMENTS = "TRUEAXIS_PEERS"


@dataclass(frozen=True)
class Peer:
    """A quantizer of others.

    Attributes:
        name: Of the peer.
        package: As it is imported.
        settings: In its own words, smallest first; none where it takes any rate, "3 bits" and so on.
        inputs: Makes what it needs beside the checkpoint.
        beside: What of ours stands beside it: the default recipe at its very size, or a lossless file.
    """

    name: str
    package: str
    settings: tuple[str, ...]
    inputs: Callable[[Original, Path], None] | None = None
    beside: Literal["default", "lossless"] = "default"

    def settings_at(self, rates: Sequence[float]) -> tuple[str, ...]:
        """What to run it with where these rates, bits per parameter, are asked for.

        Example:
            >>> PEERS["nncodec"].settings_at([2.5, 3]), PEERS["bitsandbytes"].settings_at([2.5, 3])
            (('2.5 bits', '3 bits'), ('nf4',))
        """
        return self.settings or tuple(f"{rate:g} bits" for rate in rates)


@dataclass(frozen=True, eq=False)
class Original:
    """What peers are given: the checkpoint, prepared by any recipe, and the files it was calibrated on."""

    prepared: Prepared
    calibration: Sequence[str | Path]


def _gguf_inputs(original: Original, folder: Path) -> None:
    from trueaxis.comparison.inputs import gguf_inputs  # imports torch, which the command line does not at first

    gguf_inputs(original, folder)


def _calibration_inputs(original: Original, folder: Path) -> None:
    from trueaxis.comparison.inputs import calibration_inputs

    calibration_inputs(original, folder)


LLAMA_CPP = ("IQ2_XS", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K_M", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K")


PEERS = {
    peer.name: peer
    for peer in (
        Peer("hqq", "hqq", ("2 bits", "3 bits", "4 bits")),
        Peer("bitsandbytes", "bitsandbytes", ("nf4",)),
        Peer("torchao", "torchao", ("int4", "int8")),
        Peer("gptqmodel", "gptqmodel", ("2 bits", "3 bits", "4 bits"), _calibration_inputs),
        Peer("llama.cpp", "llama_cpp", LLAMA_CPP, _gguf_inputs),
        Peer("nncodec", "nncodec", ()),
        Peer("zipnn", "zipnn", ("lossless",), beside="lossless"),
    )
}


@dataclass(frozen=True)
class Made:
    """A file: its bytes, seconds to make and to load it, the peak memory of the process that made it, and tensors kept
    otherwise with the reason."""

    file_bytes: int
    seconds: float
    load_seconds: float
    peak_memory_bytes: int
    fallbacks: tuple[str, ...]


class PeerError(TrueaxisError):
    """A peer gave nothing; `whole` where no setting of it will."""

    def __init__(self, message: str, *, whole: bool) -> None:
        super().__init__(message)
        self.whole = whole


def find_peers(names: Sequence[str]) -> list[Peer]:
    """Peers by name.

    Raises:
        TrueaxisError: One is unknown; the message lists the names.
    """
    if unknown := sorted(set(names) - PEERS.keys()):
        known = f"those known are {', '.join(PEERS)}, and none is --peers alone"
        raise TrueaxisError(f"{unknown[0]}: no such peer; {known}")
    return [PEERS[name] for name in names]


def run_peer(peer: Peer, setting: str, original: Original, folder: Path) -> Made:
    """Lets a peer quantize a checkpoint.

    Args:
        peer: Which.
        setting: One of its settings.
        original: The checkpoint, and what belongs to it.
        folder: Empty; takes `files`, what the peer stores, and `dense`, what that decodes to.

    Raises:
        PeerError: The peer is not installed, or fails; says why.
    """
    script = SCRIPTS / f"with_{peer.package}.py"
    python = python_of(peer)
    if _run([python, "-c", f"import {peer.package}"]).returncode:
        raise PeerError(f"not installed in {python}; 'make bench-peers' installs it", whole=True)
    (folder / "files").mkdir()
    if peer.inputs is not None:
        _make(peer.inputs, original, folder)
    found = _run([python, str(script), str(original.prepared.checkpoint.path.resolve()), setting, str(folder)], folder)
    if found.returncode:
        raise PeerError(f"failed: {(found.stderr.strip().splitlines() or ['no message'])[-1][:300]}", whole=False)
    told = json.loads(found.stdout.strip().splitlines()[-1])
    size = sum(file.stat().st_size for file in (folder / "files").iterdir())
    return Made(size, told["seconds"], told["load_seconds"], told["peak_memory_bytes"], tuple(told["fallbacks"]))


def _make(inputs: Callable[[Original, Path], None], original: Original, folder: Path) -> None:
    try:
        inputs(original, folder)
    except TrueaxisError as error:
        raise PeerError(str(error), whole=True) from error


def python_of(peer: Peer) -> str:
    """The Python that has a peer installed, or else the one that runs."""
    own = Path(os.environ.get(ENVIRONMENTS, "build/peers")) / peer.package / "bin" / "python"
    return str(own.absolute()) if own.exists() else sys.executable


def _run(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(command, capture_output=True, text=True, env=quiet, check=False, cwd=folder)
