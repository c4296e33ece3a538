"""Described: what the choice of a stored transform has to know of one matrix, and the bits it estimates from that.

plan, c ─▶ S [n, n] covariance of its rows, M [n, n] its metric, both in steps ─▶ T ─▶ T S Tᵀ, T M Tᵀ ─▶ bits
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trueaxis.align.estimate import ERRORS, SLOPE, STEP_ENERGY
from trueaxis.quantize.plan import Plan
from trueaxis.runtime.orthogonal import Orthogonal
from trueaxis.types import Array

TINY = 1e-30  # of an energy in squared steps
LEAST_SIZE = 1e-4  # of a row, of the mean
RIDGE = 1.0  # of the mean energy of a column, added to all


@dataclass(frozen=True, eq=False)
class Described:
    """Second moments of a matrix and its metric.

    Attributes:
        rows: m.
        covariance: S [n, n], mean of w wᵀ over rows of the same size.
        moment: M [n, n], damped; an error e of a row costs e M eᵀ squared steps.
    """

    rows: int
    covariance: Array
    moment: Array

    @classmethod
    def planned(cls, plan: Plan, c: float) -> Described:
        """A matrix with the steps that it gets at c.

        Rows are brought to the mean of their sizes: the coder knows how large each one is.
        """
        rows = np.exp(np.log(plan.row_steps).mean(axis=1))
        roots = np.diag(0.5 / (c * plan.column_steps))
        if plan.feedback is not None:
            roots = np.empty(plan.feedback.shape)
            roots[plan.order] = plan.feedback / (2 * c * plan.column_steps[plan.order])
        weight = (plan.weight / rows[:, None]).astype(np.float64)
        sizes = _sizes(weight)
        weight *= np.sqrt(sizes.mean() / np.maximum(sizes, LEAST_SIZE * sizes.mean() + TINY))[:, None]
        return cls(len(weight), weight.T @ weight / len(weight), roots @ roots.T)

    @property
    def size(self) -> int:
        """n."""
        return len(self.covariance)

    @cached_property
    def visited(self) -> tuple[Array, Array]:
        """Axes by descending energy, and the lower Cholesky factor of the metric in that order."""
        order = np.argsort(-np.diag(self.moment), kind="stable")
        return order, np.linalg.cholesky(self.moment[np.ix_(order, order)])

    @cached_property
    def bits(self) -> float:
        """Estimated rate + λ·distortion of all rows."""
        order, lower = self.visited
        energies, worth = np.diag(self.covariance)[order], np.square(np.diag(lower))
        steps = energies * worth + self.fed_back(energies, lower)
        return float(self.rows * cost_bits(steps).sum())

    @cached_property
    def most(self) -> float:
        """Bits that a rotation could save, by estimate: all but those of axes that make Cᵀ S C diagonal."""
        order, lower = self.visited
        crossed = lower.T @ self.covariance[np.ix_(order, order)] @ lower  # its eigenvalues are those of S M
        return self.bits - float(self.rows * cost_bits(np.maximum(np.linalg.eigvalsh(crossed), 0)).sum())

    def fed_back(self, energies: Array, lower: Array) -> Array:
        """What targets take up of errors before them, in squared steps [n]; axes as visited."""
        squares = np.square(lower)
        errors = energies / (1 + ERRORS * energies * np.diag(squares))
        return errors @ np.tril(squares, -1)

    def moved(self, transform: Orthogonal) -> Described:
        """The same matrix coded under a transform of its columns."""
        covariance, moment = (turned(one, transform) for one in (self.covariance, self.moment))
        return Described(self.rows, covariance, moment)


def _sizes(weight: Array) -> Array:
    """w R⁻¹ wᵀ of every row w, R the covariance of all others: the same in all coordinates, [m].

    Measured by a covariance that it is part of, a row could not stand out where there are fewer rows than columns.
    """
    from scipy.linalg import solve_triangular

    whole = weight.T @ weight
    lower = np.linalg.cholesky(whole + (RIDGE * np.diag(whole).mean() + TINY) * np.eye(len(whole)))
    within = np.square(solve_triangular(lower, weight.T, lower=True, check_finite=False)).sum(axis=0)
    return within / np.maximum(1 - within, LEAST_SIZE)  # Sherman and Morrison


def cost_bits(steps: Array) -> Array:
    """Estimated rate + λ·distortion of a weight in each column, by energies in squared steps."""
    return 0.5 * np.log2(1 + STEP_ENERGY * steps) + SLOPE * steps / (1 + ERRORS * steps)


def turned(moment: Array, transform: Orthogonal) -> Array:
    """T H Tᵀ for the orthogonal T that leads from the tensor's columns to those coded."""
    found = transform.undone_rows(transform.undone_rows(moment).T)
    return (found + found.T) / 2
