"""Balanced halves: the calibration text and the rows of matrices, drawn again without drawing at random.

    14 groups = 7 pairs ─▶ half r takes one group of every pair, by row r of a Hadamard matrix ─▶ 8 halves

Every half has a complement of the same size: what is fitted on one is measured on the other. The variance of a number
on the whole sample is the mean squared deviation of its values on balanced halves.

Reference: McCarthy 1969, Pseudo-replication: half samples (balanced repeated replication; holds for medians and ranks).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trueaxis.types import Array

HALVES = 8
GROUPS = 2 * (HALVES - 1)  # the first column of the matrix is constant and would balance nothing
STUDENT_95 = 2.365  # 97.5 % point of Student's t with 7 degrees of freedom


@dataclass(frozen=True, eq=False)
class Half:
    """One half sample.

    Attributes:
        number: 0 to 7.
        fitted: bool [14], groups that anything learned is learned from; the others are measured on.
    """

    number: int
    fitted: Array

    def rows(self, count: int) -> Array:
        """bool [count]: rows that are fitted on; scattered, the same for equal counts."""
        return self.fitted[np.random.default_rng(count).permutation(count) % GROUPS]


def balanced_halves() -> tuple[Half, ...]:
    """All eight.

    Example:
        >>> [int(half.fitted.sum()) for half in balanced_halves()]
        [7, 7, 7, 7, 7, 7, 7, 7]
    """
    from scipy.linalg import hadamard

    first = hadamard(HALVES)[:, 1:] > 0
    return tuple(Half(row, np.stack([first[row], ~first[row]], axis=1).ravel()) for row in range(HALVES))


def interval(values: Array) -> tuple[float, float]:
    """95 % interval of a number from its values [8] on the halves."""
    mean, spread = float(np.mean(values)), float(np.std(values))
    return mean - STUDENT_95 * spread, mean + STUDENT_95 * spread
