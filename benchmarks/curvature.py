"""Curvature of the rows of weights, of f and of r, and whether outliers sit where it is large.

    python benchmarks/curvature.py MODEL … [--recipe identity] [--bits 2]

    rows in white coordinates ─▶ NEIGHBOURS nearest ─▶ local principal axes ─▶ what is normal to TANGENT of them
    ─▶ share of that energy which a quadratic in the tangent coordinates removes        against Gaussian rows

A quadratic fitted to few points removes energy of noise too; so the control has rows of the same covariance, and the
excess over it is what is curved. Share in f and in r: the same measure of the two parts of W = f + r as they are
selected at the rate, where there is an f. Outliers: Spearman's correlation over rows of curvature with max |w| / rms.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from function import of_model
from trueaxis.function.member import Member
from trueaxis.function.select import select
from trueaxis.quantize.budget import first_c
from trueaxis.types import Array

NEIGHBOURS, TANGENT, SAMPLES = 48, 3, 128
TINY = 1e-30


def curvature(points: Array) -> Array:
    """Share of normal energy that a quadratic removes, at up to `SAMPLES` points [k]."""
    points = points.astype(np.float64)
    squares = np.square(points).sum(axis=1)
    chosen = np.unique(np.linspace(0, len(points) - 1, min(SAMPLES, len(points))).astype(int))
    found = []
    for index in chosen:
        distances = squares - 2 * points @ points[index]
        near = points[np.argsort(distances, kind="stable")[:NEIGHBOURS]]
        left, values, _ = np.linalg.svd(near - near.mean(axis=0), full_matrices=False)
        tangent, normal = left[:, :TANGENT] * values[:TANGENT], left[:, TANGENT:] * values[TANGENT:]
        pairs = [tangent[:, a] * tangent[:, b] for a in range(TANGENT) for b in range(a, TANGENT)]
        basis, _ = np.linalg.qr(np.stack([np.ones(len(near)), *pairs], axis=1))
        energy = np.square(normal).sum()
        found.append(np.square(basis.T @ normal).sum() / energy if energy > TINY * squares.mean() else 0.0)
    return np.array(found)


def control(points: Array) -> float:
    """Mean curvature of Gaussian rows of the same covariance."""
    _, values, right = np.linalg.svd(points, full_matrices=False)
    draws = np.random.default_rng(0).normal(size=(len(points), len(values))) / np.sqrt(len(points))
    return float(curvature(draws * values @ right).mean())


def main() -> None:
    """Prints the machine, the command and a row per matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--recipe", default="identity")
    parser.add_argument("--bits", type=float, default=2.0)
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            case = of_model(model, options.recipe, Path(folder))
            size = sum(plan.weight.size for plan in case.plans.values())
            c = first_c(list(case.plans.values()), options.bits * size)
            members = [Member.planned(name, plan, c) for name, plan in case.plans.items()]
            chosen = select(members)
            print(
                f"\n### {case.label}\n\n| matrix | W | control | f | r | correlation with outliers |\n"
                + "|---" * 6
                + "|"
            )
            rows = [row(member, chosen[member.name].mean if member.name in chosen else None) for member in members]
            for member, values in zip(members, rows, strict=True):
                print(f"| {member.name} | " + " | ".join("" if v is None else f"{v:.3f}" for v in values) + " |")
            medians = [
                np.median([v for v in column if v is not None] or [np.nan]) for column in zip(*rows, strict=True)
            ]
            print("| median | " + " | ".join(f"{value:.3f}" for value in medians) + " |", flush=True)


def row(member: Member, mean: Array | None) -> tuple[float | None, ...]:
    """Curvature of W, of the control, of f and of r, and the correlation."""
    white = member.whitened
    found = curvature(white)
    chosen = np.unique(np.linspace(0, len(white) - 1, min(SAMPLES, len(white))).astype(int))
    peaks = np.abs(member.matrix).max(axis=1) / np.sqrt(np.square(member.matrix).mean(axis=1) + TINY)
    parts: tuple[float | None, float | None] = None, None
    if mean is not None:
        held = mean / member.row_steps[:, None] @ member.root
        parts = float(curvature(held).mean()), float(curvature(white - held).mean())
    correlation = float(spearmanr(found, peaks[chosen]).statistic)
    return float(found.mean()), control(white), *parts, correlation


if __name__ == "__main__":
    main()
