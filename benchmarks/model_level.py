"""What steps that see the whole model are worth: KL at equal file bytes, paired with the recipe `layerwise`.

    python benchmarks/model_level.py MODEL CALIBRATION.npy EVALUATION.npy [--bits 2 3] [--recipes …] [--sequences 64]

KL is in nats per token of the decoded files in their own dtype. The interval is that of the ratio of the means, from
2,000 resamplings of the sequences.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import trueaxis
from trueaxis.evaluation import load, load_model, score_sequences
from trueaxis.metric.calibrate import load_tokens
from trueaxis.model.checkpoint import Checkpoint


def ratio(first: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Ratio of means of two paired samples, and its 95 % interval."""
    drawn = np.random.default_rng(0).integers(0, first.size, (2000, first.size))
    low, high = np.quantile(other[drawn].mean(1) / first[drawn].mean(1), (0.025, 0.975))
    return float(other.mean() / first.mean()), float(low), float(high)


def spread(tokens: np.ndarray, sequences: int) -> np.ndarray:
    """So many sequences, spread evenly over the text."""
    return tokens[:: max(1, len(tokens) // sequences)][:sequences].astype(np.int64)


def scored(out: str, original: Any, tokens: np.ndarray) -> tuple[np.ndarray, float]:
    """KL in nats per token of every sequence, and perplexity, of compressed files."""
    scores = score_sequences(load(out).float(), original, tokens)
    assert scores.kl_nats is not None
    perplexity = np.exp(scores.nats.sum() / scores.predicted / len(tokens))
    return scores.kl_nats / scores.predicted, float(perplexity)


def told(first: np.ndarray, found: np.ndarray) -> str:
    """KL, and its ratio to that of the first files."""
    value, low, high = ratio(first, found)
    return f"KL {found.mean():.5f} ratio {value:.3f} ({low:.3f} to {high:.3f})"


def reading(description: str | None) -> argparse.ArgumentParser:
    """Options of a script that reads a model, text to calibrate on and text to evaluate on."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--sequences", type=int, default=64)
    return parser


def main() -> None:
    """Prints the machine, the command and a line per run."""
    parser = reading(__doc__)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0])
    parser.add_argument("--recipes", nargs="+", default=["layerwise", "default", "tuned"])
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    tokens = spread(load_tokens(options.evaluation), options.sequences)
    original = load_model(Checkpoint.open(options.model))
    with tempfile.TemporaryDirectory() as work:
        for bits in options.bits:
            base: np.ndarray | None = None
            for name in options.recipes:
                started = time.perf_counter()
                report = trueaxis.compress(
                    options.model, f"{work}/out", bits=bits, recipe=name, calibration=[options.calibration],
                    statistics=f"{work}/statistics", overwrite=True,
                )  # fmt: skip
                seconds = time.perf_counter() - started
                found, perplexity = scored(f"{work}/out", original, tokens)
                base = found if base is None else base
                print(
                    f"{name:10} {report.file_bytes:11,} bytes  {report.bits_per_param:.4f} bits  {told(base, found)}  "
                    f"perplexity {perplexity:.4f}  {seconds:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
