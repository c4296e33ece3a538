"""The same indices under Huffman, range and our coding, and their entropy, in several coordinates at equal D.

    python benchmarks/coders.py MODEL… [--bits 1.5 3] [--recipes identity rotation gauge]

    identity at a rate ─▶ level = mean log₂ D over the tensors ─▶ every recipe at the rate that reaches the level
                                                                      └─▶ bits per weight under every coder

MODEL is a checkpoint with calibration_tokens.npy. D is relative, on the decoded file, and the same number in all
coordinates. All coders get the file's own tables and classes; "one table" is the entropy without classes and trellis,
as rates are often quoted: of all indices of the model in one histogram. The file's bits are per parameter, others per
quantized weight.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import trueaxis
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.parallel import default_threads
from trueaxis.preparation import Prepared, prepare
from trueaxis.progress import silent
from trueaxis.recipe import recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.types import CompressionReport

TRIALS = 4
COLUMNS = ("recipe", "file", "mean log₂ D", "ours", "range", "Huffman", "entropy", "entropy, one table")
CLOSE = 0.01  # of log₂ D: 0.005 bits


def level(report: CompressionReport) -> float:
    """Mean log₂ of the relative distortion of the quantized tensors."""
    return float(np.mean([np.log2(row.relative_distortion) for row in report.tensors if row.relative_distortion > 0]))


def reach(prepared: Prepared, bits: float, wanted: float | None, out: Path) -> CompressionReport:
    """A file at a rate, or near it where a level is wanted; a bit is worth two octaves of D."""
    for _ in range(TRIALS):
        started = time.perf_counter()
        files = prepared.fit(prepared.checkpoint.bytes_at(bits))
        report = prepared.save(files, out, overwrite=True, begun=started)
        if wanted is None or abs(level(report) - wanted) < CLOSE:
            break
        bits += (level(report) - wanted) / 2
    return report


def pooled_entropy(path: Path) -> float:
    """Entropy of all indices in one histogram, bits per weight."""
    groups = [indices for _, group in Decoder(path).coded_groups() for _, _, indices in group]
    _, counts = np.unique(np.concatenate([indices.reshape(-1) for indices in groups]), return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def row(name: str, report: CompressionReport, out: Path) -> str:
    """One line of the table, in bits per quantized weight but for the file's."""
    found = trueaxis.compare_coders(out)
    cells = [found[f"{kind}_bits"] / found["weights"] for kind in ("trueaxis", "range", "huffman", "entropy")]
    numbers = " | ".join(f"{cell:.4f}" for cell in [*cells, pooled_entropy(out)])
    return f"| {name} | {report.bits_per_param:.4f} | {level(report):.3f} | {numbers} |"


def measure(model: Path, rates: Sequence[float], recipes: Sequence[str], work: Path) -> None:
    """A table per rate."""
    for bits in rates:
        print(
            f"\n### {model.name}, identity at {bits} bits\n\n| {' | '.join(COLUMNS)} |\n" + "|---" * len(COLUMNS) + "|"
        )
        wanted = None
        for name in recipes:
            checkpoint = Checkpoint.open(model)
            prepared = prepare(
                checkpoint, recipe(name), checkpoint.bytes_at(bits), [model / "calibration_tokens.npy"],
                work / f"{model.name}.safetensors", seed=0, threads=default_threads(), device="cpu", progress=silent,
            )  # fmt: skip
            report = reach(prepared, bits, wanted, work / "out")
            wanted = level(report) if wanted is None else wanted
            print(row(name, report, work / "out"), flush=True)


def main() -> None:
    """Prints the machine, the command and every run; the first recipe sets the level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--bits", type=float, nargs="+", default=[1.5, 3.0])
    parser.add_argument("--recipes", nargs="+", default=["identity", "rotation", "gauge"])
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    with tempfile.TemporaryDirectory() as work:
        for model in options.models:
            measure(model, options.bits, options.recipes, Path(work))


if __name__ == "__main__":
    main()
