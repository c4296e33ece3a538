"""Effective rank and intrinsic dimension, both against i.i.d. Gaussian weights of the same shape.

    singular values ─▶ exp of the entropy of their shares                         (linear)
    distances to nearest neighbours ─▶ TwoNN, maximum likelihood                   (curved too)

Both estimators are biased where points are few; so is their value on the Gaussian stand-in, and the ratio is judged.

References: Roy & Vetterli 2007 (effective rank); Facco et al. 2017 (TwoNN); Levina & Bickel 2004, with the mean of
inverses after MacKay & Ghahramani 2005.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trueaxis.analyze.claim import Claim, Measured
from trueaxis.analyze.halves import interval
from trueaxis.parallel import ordered_map
from trueaxis.types import Array, Weight

if TYPE_CHECKING:
    from trueaxis.analyze.subject import Subject

NEIGHBOURS = 10
SAMPLES_PER_DIMENSION = 10
LARGEST_SAMPLE = 2048
ESTIMATORS = ("twonn", "mle")


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
    rows = ordered_map(lambda points: _cloud(subject, points), clouds.values(), subject.threads)
    details: dict[str, Any] = {"clouds": {name: row.told() for name, row in zip(clouds, rows, strict=True)}}
    measured = [row for row in rows if row.refused is None]
    if not measured:
        reason = f"no matrix has {SAMPLES_PER_DIMENSION} rows or channels per dimension found"
        return Measured(None, details, reason)
    medians = _Cloud(
        {name: np.median([row.found[name] for row in measured], axis=0) for name in ESTIMATORS},
        {name: np.median([row.ratios[name] for row in measured], axis=0) for name in ESTIMATORS},
    )
    return Measured(np.median([row.larger(row.ratios) for row in measured], axis=0), medians.told() | details)


def _sides(subject: Subject, weight: Weight) -> list[tuple[str, Array]]:
    matrix = subject.matrix(weight)
    return [("rows", matrix), ("channels", matrix.T)]


@dataclass(frozen=True, eq=False)
class _Cloud:
    """What both estimators say of points, or of several clouds.

    Attributes:
        found: Name of an estimator → dimensions [8], one per half.
        ratios: The same, over those of Gaussian points.
        points: Of a half.
        refused: Why they serve no verdict.
    """

    found: dict[str, Array]
    ratios: dict[str, Array]
    points: int | None = None
    refused: str | None = None

    def larger(self, values: dict[str, Array]) -> Array:
        """On every half the larger of both estimators'."""
        return np.max([values[name] for name in ESTIMATORS], axis=0)

    def told(self) -> dict[str, Any]:
        """JSON: of either estimator the mean over the halves and its 95 % interval."""
        known = {
            name: {
                "dimension": float(self.found[name].mean()), "dimension_interval": interval(self.found[name]),
                "ratio": float(self.ratios[name].mean()), "ratio_interval": interval(self.ratios[name]),
            }
            for name in self.found
        }  # fmt: skip
        told = {**known, "points": self.points, "refused": self.refused}
        return {key: value for key, value in told.items() if value is not None}


def _cloud(subject: Subject, points: Array) -> _Cloud:
    """Of rows, or of channels, on every half of them."""
    halves = [points[half.rows(points.shape[0])][:LARGEST_SAMPLE] for half in subject.halves]
    size = halves[-1].shape[0]
    try:
        own = [dimensions(chosen) for chosen in halves]
        stand_ins = [dimensions(np.random.default_rng(n).normal(size=half.shape)) for n, half in enumerate(halves)]
    except ValueError as error:
        return _Cloud({}, {}, refused=str(error))
    found = {name: np.array([one[name] for one in own]) for name in ESTIMATORS}
    cloud = _Cloud(found, {name: found[name] / [one[name] for one in stand_ins] for name in ESTIMATORS}, size)
    if size < SAMPLES_PER_DIMENSION * cloud.larger(found).mean():
        return replace(cloud, refused=f"{size} points, under {SAMPLES_PER_DIMENSION} per dimension")
    return cloud


CLAIMS = (
    Claim("low-effective-rank", "manifold", "The effective rank of the weights is far below that of noise.",
          "of Gaussian weights'", 0.5, 0.8, low_effective_rank),
    Claim("low-intrinsic-dimension", "manifold", "Rows and channels lie near a manifold of low dimension.",
          "of Gaussian points'", 0.5, 0.8, low_intrinsic_dimension),
)  # fmt: skip
