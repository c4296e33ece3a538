"""KL at equal file bytes for every coordinate system, paired with one of them over the same sequences.

    python benchmarks/divergences.py [MODEL …] [--kl 0.5 0.1 0.03 0.01] [--bits …] [--recipes rotation pca gauge …]
                                     [--against identity]

    bits at which `identity` has each KL ─▶ every recipe at that target ─▶ (KL − identity's) / identity's, in per cent,
    with the 95 % bootstrap interval over sequences drawn again

The interval knows of the choice of text only. That a quantizer falls otherwise when anything at all changes is a second
source of chance, of a few per cent: every recipe is prepared once and fitted to `--fits` targets 0.2 % apart, and the
mean over them is told. Evaluation text is never calibration text.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from baselines import Subject, arguments, chosen_models, divergences, logits_of, rates, subject

import trueaxis
from trueaxis.evaluation import interval_of_mean
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.parallel import default_threads
from trueaxis.preparation import prepare
from trueaxis.progress import silent
from trueaxis.recipe import recipe as find_recipe
from trueaxis.types import Array

RECIPES = ["rotation", "pca", "gauge", "learned", "lowrank"]
APART = 0.002  # of the target, between the runs of one recipe
WORSE = 0.02
HEAD = [
    "| bits/parameter | recipe | bytes | KL (nats/token) | against the first | 95 % |",
    "|---|---|---|---|---|---|",
]


@dataclass(frozen=True, eq=False)
class Mean:
    """A recipe at targets around a rate: mean bytes, and mean KL of each sequence in nats per token."""

    recipe: str
    bits: float
    file_bytes: int
    kl: Array


def averaged(model: Subject, recipe: str, bits: float, fits: int, scratch: Path) -> Mean:
    """Prepares a recipe and fits it to `fits` targets around a rate."""
    checkpoint = Checkpoint.open(model.path)
    prepared = prepare(
        checkpoint, find_recipe(recipe), checkpoint.bytes_at(bits), [model.calibration], model.statistics,
        seed=0, threads=default_threads(), device="cpu", progress=silent,
    )  # fmt: skip
    sizes, found = [], []
    for index in range(fits):
        target = checkpoint.bytes_at(bits * (1 + APART * (index - (fits - 1) / 2)))
        report = prepared.save(prepared.fit(target), scratch / "out", overwrite=True, begun=time.perf_counter())
        logits = logits_of(trueaxis.load(scratch / "out").float(), model.evaluation)
        sizes.append(report.file_bytes)
        found.append(divergences(model.reference, logits))
    return Mean(recipe, bits, round(float(np.mean(sizes))), np.mean(found, axis=0))


def relative(one: Mean, other: Mean) -> tuple[float, float, float]:
    """KL of `one` above that of `other` as a share of it: mean and ends of the paired interval."""
    share = (one.kl - other.kl) / other.kl.mean()
    low, high = interval_of_mean(share) or (float("nan"), float("nan"))
    return float(share.mean()), low, high


def groups(model: Subject, options: argparse.Namespace, scratch: Path) -> Iterator[list[Mean]]:
    """All recipes at each rate, the one that others are paired with first."""
    for bits in options.bits or [found.bits for found in rates(model, options.kl, scratch)]:
        yield [averaged(model, name, bits, options.fits, scratch) for name in (options.against, *options.recipes)]


def lines(group: Sequence[Mean]) -> list[str]:
    """Table rows of one rate."""
    own = group[0]
    found = [f"| {own.bits:.3f} | `{own.recipe}` | {own.file_bytes:,} | {own.kl.mean():.5f} |  |  |"]
    for one in group[1:]:
        mean, low, high = relative(one, own)
        found.append(
            f"| {one.bits:.3f} | `{one.recipe}` | {one.file_bytes:,} | {one.kl.mean():.5f} | {mean:+.1%} | "
            f"{low:+.1%} to {high:+.1%} |"
        )
    return found


def verdicts(group: Sequence[Mean]) -> list[str]:
    """What of the targets holds at one rate, and what does not."""
    by_name = {one.recipe: one for one in group}
    found = []
    for name in ("gauge", "learned"):
        if name in by_name and group[0].recipe == "identity":
            mean, _, high = relative(by_name[name], group[0])
            word = "is within" if high <= WORSE else "is not shown to be within"
            found.append(
                f"- {group[0].bits:.3f} bits: `{name}` {word} 2 % of `identity` ({mean:+.1%}, at most {high:+.1%})."
            )
    if {"gauge", "rotation"} <= by_name.keys():
        mean, _, high = relative(by_name["gauge"], by_name["rotation"])
        word = "below" if high < 0 else "not shown to be below"
        found.append(f"- {group[0].bits:.3f} bits: `gauge` is {word} `rotation` ({mean:+.1%}, at most {high:+.1%}).")
    if {"gauge", "learned"} <= by_name.keys():
        mean, low, high = relative(by_name["learned"], by_name["gauge"])
        found.append(f"- {group[0].bits:.3f} bits: `learned` against `gauge`: {mean:+.1%} ({low:+.1%} to {high:+.1%}).")
    return found


def main() -> None:
    """Prints and writes the machine, the command and every run."""
    parser = arguments(__doc__, RECIPES)
    parser.add_argument("--fits", type=int, default=3)
    parser.add_argument("--against", default="identity", help="recipe that the others are paired with")
    options = parser.parse_args()
    print(f"Machine: {platform.processor() or platform.machine()}, {platform.platform()}, torch {torch.__version__}.")
    print(f"Command: `python {' '.join(sys.argv)}`")
    with tempfile.TemporaryDirectory() as directory:
        for path in chosen_models(options):
            model = subject(path, Path(directory), options.statistics or Path(directory), options.sequences)
            print(
                "\n".join(["", f"### {path.name}: {model.evaluation.size:,} evaluation tokens", "", *HEAD]), flush=True
            )
            told: list[str] = []
            for group in groups(model, options, Path(directory)):
                print("\n".join(lines(group)), flush=True)
                told += verdicts(group)
            print("\n".join(["", *told]), flush=True)


if __name__ == "__main__":
    main()
