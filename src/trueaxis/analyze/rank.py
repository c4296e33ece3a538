"""Effective rank and intrinsic dimension, both against i.i.d. Gaussian weights of the same shape.

    singular values ─▶ exp of the entropy of their shares                         (linear)
    distances to nearest neighbours ─▶ TwoNN, maximum likelihood                   (curved too)

Both estimators are biased where points are few; so is their value on the Gaussian stand-in, and the ratio is judged.

References: Roy & Vetterli 2007 (effective rank); Facco et al. 2017 (TwoNN); Levina & Bickel 2004, with the mean of
inverses after MacKay & Ghahramani 2005.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trueaxis.analyze.claim import Claim, Measured
from trueaxis.parallel import ordered_map
from trueaxis.types import Array, Weight

if TYPE_CHECKING:
    from trueaxis.analyze.subject import Subject

NEIGHBOURS = 10
SAMPLES_PER_DIMENSION = 10
LARGEST_SAMPLE = 2048


def effective_rank(matrix: Array) -> float:
    """exp H(p), p the singular values over their sum.

    Example:
        >>> round(effective_rank(np.eye(4)), 9)
        4.0
    """
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares @ np.log(shares))))


def dimensions(points: Array) -> dict[str, float]:
    """Intrinsic dimension of points [k, n], repeated ones taken once: by "twonn" and by "mle".

    Raises:
        ValueError: Too few points for neighbours.
    """
    from sklearn.neighbors import NearestNeighbors

    points = np.unique(points, axis=0)
    if points.shape[0] <= NEIGHBOURS + 1:
        raise ValueError(f"{points.shape[0]} points")
    distances = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(points).kneighbors(points)[0][:, 1:]
    ratios = np.log(distances[:, 1] / distances[:, 0])
    inverse = np.log(distances[:, -1:] / distances[:, :-1]).mean(axis=1)
    return {
        "twonn": float((points.shape[0] - 1) / max(ratios.sum(), 1e-12)),
        "mle": float(1 / max(inverse.mean(), 1e-12)),
    }


def low_effective_rank(subject: Subject) -> Measured:
    """Median over sampled matrices of the effective rank of half the rows over that of Gaussian ones."""

    def ratios(weight: Weight) -> list[float]:
        matrix, found = subject.matrix(weight), []
        for half in subject.halves:
            rows = matrix[half.rows(matrix.shape[0])]
            stand_in = np.random.default_rng(half.number).normal(size=rows.shape)
            found.append(effective_rank(rows) / effective_rank(stand_in))
        return found

    found = np.array(ordered_map(ratios, subject.sampled, subject.threads))
    details = {"matrices": {w.name: float(row.mean()) for w, row in zip(subject.sampled, found, strict=True)}}
    return Measured(np.median(found, axis=0), details)


def low_intrinsic_dimension(subject: Subject) -> Measured:
    """Median over point clouds of the dimension over that of Gaussian points; the larger of both estimators'."""
    clouds = {f"{weight.name} {side}": points for weight in subject.sampled for side, points in _sides(subject, weight)}
    found = ordered_map(lambda points: _cloud(subject, points), clouds.values(), subject.threads)
    details = {"clouds": {name: row for name, (_, row) in zip(clouds, found, strict=True)}}
    measured = [values for values, _ in found if values is not None]
    if not measured:
        reason = f"no matrix has {SAMPLES_PER_DIMENSION} rows or channels per dimension found"
        return Measured(None, details, reason)
    return Measured(np.median(measured, axis=0), details)


def _sides(subject: Subject, weight: Weight) -> list[tuple[str, Array]]:
    matrix = subject.matrix(weight)
    return [("rows", matrix), ("channels", matrix.T)]


def _cloud(subject: Subject, points: Array) -> tuple[Array | None, dict[str, Any]]:
    """Ratios [8] of a cloud, or None where it has too few points; and what was found."""
    ratios, dimension, size = [], [], 0
    for half in subject.halves:
        chosen = points[half.rows(points.shape[0])][:LARGEST_SAMPLE]
        size = chosen.shape[0]
        try:
            own = dimensions(chosen)
            stand_in = dimensions(np.random.default_rng(half.number).normal(size=chosen.shape))
        except ValueError as error:
            return None, {"refused": str(error)}
        dimension.append(max(own.values()))
        ratios.append(max(own[name] / stand_in[name] for name in own))
    row = {"dimension": float(np.mean(dimension)), "points": size, "ratio": float(np.mean(ratios))}
    if size < SAMPLES_PER_DIMENSION * np.mean(dimension):
        return None, row | {"refused": f"{size} points, under {SAMPLES_PER_DIMENSION} per dimension"}
    return np.array(ratios), row


CLAIMS = (
    Claim("low-effective-rank", "manifold", "The effective rank of the weights is far below that of noise.",
          "of Gaussian weights'", 0.5, 0.8, low_effective_rank),
    Claim("low-intrinsic-dimension", "manifold", "Rows and channels lie near a manifold of low dimension.",
          "of Gaussian points'", 0.5, 0.8, low_intrinsic_dimension),
)  # fmt: skip
