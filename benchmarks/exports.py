"""What exports lose: KL of files for llama.cpp and of integers of 4 bits, beside what their own tools make.

    python benchmarks/exports.py MODEL CALIBRATION.npy EVALUATION.npy [--types Q4_0 Q8_0] [--recipes at-once rotation]
                                                                      [--peers llama.cpp gptqmodel]

    MODEL ──────────────────────▶ export ─▶ KL        original coordinates
      └▶ compress, unpack ──────▶ export ─▶ KL        coordinates of a recipe, rounded to 8 bits before
      └▶ llama.cpp, GPTQModel ────────────▶ KL        the tools themselves, of the original

Bits per parameter are of whole files. KL is in nats per token, paired over sequences with the first row of its table,
with the 95 % interval of 2,000 resamplings. GGUF files are decoded by the package gguf, integers by the package
compressed-tensors through transformers. Peers are those of `make bench-peers`; one that is missing says so.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_level import reading, spread, told
from transformers import AutoModelForCausalLM

import trueaxis
from trueaxis.comparison.peer import PEERS, Original, PeerError, run_peer
from trueaxis.comparison.peers.gguf_tensors import read_tensors
from trueaxis.evaluation import load_model, score_sequences
from trueaxis.export.gguf import gguf_places
from trueaxis.metric.calibrate import load_tokens
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.parallel import default_threads
from trueaxis.preparation import prepare
from trueaxis.progress import silent
from trueaxis.recipe import NAMED

Row = tuple[str, int, Any]  # what it is, bytes of its files, the model that they decode to


def from_gguf(file: Path, model: Path) -> Any:
    """The model of a GGUF file, as the checkpoint's own class in float32."""
    checkpoint = Checkpoint.open(model)
    found = load_model(checkpoint)
    places = {place.name: (name, place.heads, place.offset) for name, place in gguf_places(checkpoint).items()}
    state = {name: torch.from_numpy(values) for name, values, _ in read_tensors(file, places)}
    left = found.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and set(left.missing_keys) <= {*checkpoint.aliases, *found._tied_weights_keys}, left
    found.tie_weights()
    return found


def from_integers(directory: Path) -> Any:
    """The model of a directory of compressed-tensors."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def by_peer(name: str, setting: str, original: Original, work: Path) -> Iterator[Row]:
    """What another tool makes of the original; nothing where it is missing or fails."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        try:
            made = run_peer(PEERS[name], setting, original, Path(folder))
        except PeerError as error:
            print(f"{name} {setting}: {error}", flush=True)
            return
        model = AutoModelForCausalLM.from_pretrained(Path(folder) / "dense", dtype=torch.float32).eval()
        yield f"{name} {setting}, {len(made.fallbacks)} tensors in another type", made.file_bytes, model


def gguf_rows(kind: str, sources: dict[str, Path], peers: list[str], original: Original, work: Path) -> Iterator[Row]:
    """One block type: llama.cpp's own quantizer, then ours of every source."""
    if "llama.cpp" in peers:
        yield from by_peer("llama.cpp", kind, original, work)
    for label, source in sources.items():
        report = trueaxis.export(source, work / "gguf", "gguf", type=kind, overwrite=True)
        model = from_gguf(work / "gguf" / "model.gguf", source)
        yield f"export gguf {kind}, {label}", report.file_bytes, model


def integer_rows(sources: dict[str, Path], peers: list[str], original: Original, work: Path) -> Iterator[Row]:
    """Integers of 4 bits: GPTQModel, then ours of every source, to the nearest and in the metric."""
    if "gptqmodel" in peers:
        yield from by_peer("gptqmodel", "4 bits", original, work)
    for label, source in sources.items():
        for rounding, calibration in (("to the nearest", ()), ("in the metric", original.calibration)):
            try:
                report = trueaxis.export(
                    source, work / "int4", "compressed-tensors", type="int4", calibration=calibration, overwrite=True
                )
            except trueaxis.TrueaxisError as error:
                print(f"export int4, {label}: {error}", flush=True)
                break
            yield f"export int4, {label}, {rounding}", report.file_bytes, from_integers(work / "int4")


def main() -> None:
    """Prints the machine, the command and a line per file."""
    parser = reading(__doc__)
    parser.add_argument("--types", nargs="*", default=["Q4_0", "Q8_0"])
    parser.add_argument("--recipes", nargs="*", default=["at-once", "rotation"])
    parser.add_argument("--peers", nargs="*", default=["llama.cpp", "gptqmodel"])
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    tokens = spread(load_tokens(options.evaluation), options.sequences)
    checkpoint = Checkpoint.open(options.model)
    reference = load_model(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepared = prepare(
            checkpoint, NAMED["gptq"], checkpoint.bytes_at(4.0), [options.calibration], work / "statistics",
            seed=0, threads=default_threads(), device="cpu", progress=silent,
        )  # fmt: skip
        sources = {"original": options.model}
        for recipe in options.recipes:
            trueaxis.compress(
                options.model, work / "out", bits=8, recipe=recipe, calibration=[options.calibration],
                statistics=work / "statistics", overwrite=True,
            )  # fmt: skip
            sources[recipe] = trueaxis.unpack(work / "out", work / recipe)
        original = Original(prepared, [options.calibration])
        tables = [gguf_rows(kind, sources, options.peers, original, work) for kind in options.types]
        for table in (*tables, integer_rows(sources, options.peers, original, work)):
            base: np.ndarray | None = None
            for label, size, model in table:
                scores = score_sequences(model, reference, tokens)
                assert scores.kl_nats is not None
                found = scores.kl_nats / scores.predicted
                base = found if base is None else base
                bits = 8 * size / checkpoint.parameters
                print(f"{label:58} {size:11,} bytes  {bits:.3f} bits  {told(base, found)}", flush=True)


if __name__ == "__main__":
    main()
