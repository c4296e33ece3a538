"""KL and perplexity of recipes at the same bytes, as one markdown table: the README's.

    python benchmarks/recipes.py MODEL [--bits 2 3 4] [--recipes default identity watersic gptq rtn] [--sequences 64]

MODEL is a checkpoint with calibration_tokens.npy and evaluation_tokens.npy beside its weights. Rates are real: weight
files, index and growth of config.json, over all parameters. KL is in nats per token, with its 95 % interval.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import trueaxis
from trueaxis import Evaluation


def run(options: argparse.Namespace, name: str, bits: float, work: Path) -> tuple[float, Evaluation]:
    """(real bits per parameter, evaluation) of one recipe at one rate."""
    started = time.perf_counter()
    report = trueaxis.compress(
        options.model,
        work / "out",
        bits=bits,
        recipe=name,
        calibration=[options.model / "calibration_tokens.npy"],
        statistics=work / "statistics.safetensors",
        overwrite=True,
    )
    compressed = time.perf_counter()
    found = trueaxis.evaluate(work / "out", tokens=evaluation_tokens(options), reference=options.model)
    print(
        f"{name:12} {report.bits_per_param:.4f} bits {report.file_bytes:11,} bytes  KL {cell(found)}  "
        f"perplexity {found.perplexity:.4f}  agreement {found.top1_agreement:.4f}  overlap {found.overlap:.3f}  "
        f"compressed in {compressed - started:.0f} s, evaluated in {time.perf_counter() - compressed:.0f} s",
        flush=True,
    )
    return report.bits_per_param, found


def evaluation_tokens(options: argparse.Namespace) -> np.ndarray:
    """Sequences spread evenly over the file."""
    tokens = np.load(options.model / "evaluation_tokens.npy")
    return tokens[:: max(1, tokens.shape[0] // options.sequences)][: options.sequences]


def cell(found: Evaluation) -> str:
    """KL and its interval to three significant digits."""
    low, high = found.kl_interval or (float("nan"), float("nan"))
    return f"{found.kl_nats:.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    """Prints the machine, the command, every run, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0, 4.0])
    parser.add_argument("--recipes", nargs="+", default=["default", "identity", "watersic", "gptq", "rtn"])
    parser.add_argument("--sequences", type=int, default=64)
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    rows = [f"| bits per parameter | {' | '.join(f'`{name}`' for name in options.recipes)} |"]
    rows.append("|---" * (1 + len(options.recipes)) + "|")
    with tempfile.TemporaryDirectory() as work:
        for bits in options.bits:
            runs = [run(options, name, bits, Path(work)) for name in options.recipes]
            rates = sorted({f"{rate:.2f}" for rate, _ in runs})
            rows.append(f"| {' to '.join(rates[:: max(1, len(rates) - 1)])} | {' | '.join(cell(e) for _, e in runs)} |")
        original = trueaxis.evaluate(options.model, tokens=evaluation_tokens(options))
    print(f"\noriginal: perplexity {original.perplexity:.4f} on {original.tokens:,} tokens\n\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
