"""Peers, where `make bench-peers` installed them: they store what their layout says, and come as near to the original
as that lets them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import trueaxis
from trueaxis.comparison import peer as peers
from trueaxis.comparison.peer import PEERS
from trueaxis.comparison.run import ComparisonRow
from trueaxis.demo.corpus import modules
from trueaxis.metric.calibrate import tokenize
from trueaxis.model.checkpoint import Checkpoint

GROUP = 64


@dataclass(frozen=True)
class Text:
    """Files of token ids to calibrate on, with their statistics, and to evaluate on."""

    calibration: Path
    evaluation: Path
    statistics: Path


@pytest.fixture(scope="module")
def text(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Text:
    """Source of the standard library, as the demo model reads it; the first comparison leaves the statistics."""
    folder = tmp_path_factory.mktemp("text")
    found = Text(folder / "calibration.npy", folder / "evaluation.npy", folder / "statistics.safetensors")
    np.save(found.calibration, tokenize(demo_model, modules("calibration"), 256)[:16])
    np.save(found.evaluation, tokenize(demo_model, modules("evaluation"), 256)[:4])
    return found


def only(name: str, setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting of a peer; skips where that is not installed."""
    found = PEERS[name]
    if subprocess.run([peers.python_of(found), "-c", f"import {found.package}"], capture_output=True).returncode:
        pytest.skip(f"needs {name}: make bench-peers PEERS={found.package}")
    monkeypatch.setitem(PEERS, name, replace(found, settings=(setting,)))


def compared(name: str, setting: str, model: Path, text: Text, bits: float = 4) -> list[ComparisonRow]:
    """The peer's row and that of the default recipe at its size."""
    found = trueaxis.compare(
        model, bits=[bits], tokens=text.evaluation, recipes=[], peers=[name], calibration=[text.calibration],
        statistics=text.statistics,
    )  # fmt: skip
    assert not found.absent
    assert [(row.name, row.setting) for row in found.rows] == [
        (name, setting), (PEERS[name].beside, f"as {name} {setting}"),
    ]  # fmt: skip
    return list(found.rows)


LAYOUTS = {  # bits per weight of a linear layer: the code, and what a group shares
    ("hqq", "4 bits"): 4 + 32 / GROUP,
    ("bitsandbytes", "nf4"): 4 + 8 / GROUP,
    ("torchao", "int4"): 4 + 16 / GROUP,
    ("gptqmodel", "4 bits"): 4 + 20 / GROUP,
}
TABLES = 4096  # bytes that a tensor may take beside: its header, tables of levels, numbers of columns


@pytest.mark.parametrize(("name", "setting"), LAYOUTS)
def test_a_peer_stores_what_its_layout_says(
    name: str, setting: str, demo_model: Path, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(name, setting, monkeypatch)
    peer, beside = compared(name, setting, demo_model, text)
    entries = Checkpoint.open(demo_model).entries
    sizes = {tensor: int(np.prod(entry.shape)) for tensor, entry in entries.items()}
    bits = sum(size * (LAYOUTS[name, setting] if "_proj" in tensor else 16) for tensor, size in sizes.items())
    assert 0 <= peer.file_bytes - bits / 8 <= TABLES * len(sizes)
    assert peer.fallbacks == ()
    assert 1e-3 < peer.kl_nats < 0.1
    assert beside.kl_nats < peer.kl_nats


def test_zipnn_loses_nothing(demo_model: Path, text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    only("zipnn", "lossless", monkeypatch)
    peer, own = compared("zipnn", "lossless", demo_model, text)
    assert peer.kl_nats == own.kl_nats == 0
    assert own.file_bytes < peer.file_bytes
    assert 10 < peer.bits_per_param < 13  # bfloat16: the mantissas stay, the exponents shrink


@pytest.mark.parametrize("bits", [2, 5])
def test_nncodec_comes_near_the_rate(
    bits: float, demo_model: Path, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    only("nncodec", "", monkeypatch)
    monkeypatch.setitem(PEERS, "nncodec", replace(PEERS["nncodec"], settings=()))
    peer, beside = compared("nncodec", f"{bits} bits", demo_model, text, bits)
    assert abs(peer.bits_per_param - bits) < 0.15
    assert 0 < beside.kl_nats < peer.kl_nats < (1 if bits == 2 else 0.05)


def test_the_search_for_a_rate_ends_near_it_or_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any falling rate, without the package: the search is the script's own."""
    nearest = searched(monkeypatch)

    def rate(parameter: int) -> float:
        return 12.0 * 2.0 ** (-(parameter + 70) / 22)

    for wanted in (1.5, 2.0, 3.3, 8.0):
        found = nearest(rate, wanted)
        assert abs(rate(found) - wanted) <= 0.2
    assert nearest(lambda parameter: 6.0 - 1e-3 * parameter, 1.0) == 0
    assert nearest(lambda parameter: 1.0 - 1e-3 * parameter, 6.0) == -70


def searched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float], float], int]:
    """`nearest` of the script, whose package may not be there."""
    monkeypatch.syspath_prepend(str(peers.SCRIPTS))
    for name, module in (("nncodec", ModuleType("nncodec")), ("nncodec.nn", ModuleType("nncodec.nn"))):
        monkeypatch.setitem(sys.modules, name, module)
    vars(sys.modules["nncodec.nn"]).update(encode=None, decode=None)
    spec = spec_from_file_location("with_nncodec", peers.SCRIPTS / "with_nncodec.py")
    assert spec is not None and spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.nearest


@pytest.mark.parametrize("setting", ["Q4_K_M", "IQ2_XS"])
def test_llama_cpp_quantizes_and_tells_what_it_kept_otherwise(
    setting: str, tiny_llama: Path, compressed_llama: Path, unseen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf", reason="llama.cpp reads GGUF files, which need gguf (trueaxis[export])")
    found = PEERS["llama.cpp"]
    if subprocess.run([peers.python_of(found), "-c", "import llama_cpp"], capture_output=True).returncode:
        pytest.skip("needs llama.cpp: make bench-peers PEERS=llama_cpp")
    monkeypatch.setitem(PEERS, "llama.cpp", replace(found, settings=(setting,)))
    statistics = compressed_llama.parent / "statistics.safetensors"
    rows = trueaxis.compare(
        tiny_llama, bits=[5], tokens=unseen, recipes=["rtn"], peers=["llama.cpp"], statistics=statistics
    ).rows
    assert [(row.name, row.setting) for row in rows[1:]] == [
        ("llama.cpp", setting), ("default", f"as llama.cpp {setting}"),
    ]  # fmt: skip
    assert 0 < rows[1].kl_nats < 0.5 and rows[2].kl_nats < rows[1].kl_nats
    assert any("64 columns are no multiple of 256" in reason for reason in rows[1].fallbacks)
