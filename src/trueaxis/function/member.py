"""Member: a matrix as the candidates for f see it, and what it takes to describe one.

    plan, c ─▶ W, its steps, the root of its metric ─▶ fit ─▶ f, stored as a term ─▶ bits of f + bits of W − f

Bits of a residual are estimated from the energy that its rows and columns have in steps, its distortion added at the
slope in force, so that candidates that change both can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.align.basis import ERRORS, SLOPE, STEP_ENERGY
from trueaxis.record import USUAL_FRAME
from trueaxis.runtime.terms import Bases, Term, pack_term
from trueaxis.types import Array

if TYPE_CHECKING:
    from trueaxis.quantize.plan import Plan

TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Member:
    """One matrix.

    Attributes:
        name: Of its tensor.
        matrix: W [m, n] float32, as it is coded.
        row_steps, column_steps: float64 [m] and [n], the scalar step of entry (i, j) is their product.
        order, feedback: As in the plan; None without feedback.
    """

    name: str
    matrix: Array
    row_steps: Array
    column_steps: Array
    order: Array
    feedback: Array | None

    @classmethod
    def planned(cls, name: str, plan: Plan, c: float) -> Member:
        """A matrix with the steps that it gets at c."""
        rows = np.exp(np.log(plan.row_steps).mean(axis=1))
        return cls(name, plan.weight, rows, 2 * c * plan.column_steps, plan.order, plan.feedback)

    @cached_property
    def root(self) -> Array:
        """R [n, n] with (E R)² / row step² the distortion of E in squared steps."""
        if self.feedback is None:
            return np.diag(1 / self.column_steps)
        root = np.empty(self.feedback.shape)
        root[self.order] = self.feedback.astype(np.float64) / self.column_steps[self.order]
        return root

    @cached_property
    def whitened(self) -> Array:
        """W [m, n] in coordinates where distortion is a sum of squares, in steps."""
        return self.matrix / self.row_steps[:, None] @ self.root

    @cached_property
    def bits(self) -> float:
        """Of the whole matrix as a residual."""
        return self.residual_bits(np.zeros((1, 1)))

    def steps_squared(self, mean: Array) -> Array:
        """(W − f)² [m, n] in squared steps."""
        return np.square((self.matrix - mean) / self.row_steps[:, None] / self.column_steps)

    def residual_bits(self, mean: Array) -> float:
        """Estimated bits of W − f, and its distortion at the slope in force."""
        squares = self.steps_squared(mean)
        columns = squares.mean(axis=0)
        rows = (squares / np.maximum(columns, TINY)).mean(axis=1)
        energy = rows[:, None] * columns
        cost = 0.5 * np.log2(1 + STEP_ENERGY * energy) + SLOPE * energy / (1 + ERRORS * energy)
        return float(cost.sum())

    def resolution(self, mean: Array) -> float:
        """Step [steps] of one number that moves a whole row or column, over the norm of what it moves.

        Its error grows the residual it leaves: δ²/2v nats beside log δ saved, v the energy of the residual and of the
        steps themselves; least together at δ² = v.
        """
        return float(np.sqrt(12 * (self.steps_squared(mean).mean() + 1 / STEP_ENERGY)))


@dataclass(frozen=True, eq=False)
class Fit:
    """What a candidate found for one matrix.

    Attributes:
        candidate: Its name.
        term: How f is stored.
        mean: f [m, n] float32, as it decodes.
        function_bits: Of the record.
        residual_bits: Estimated, with the distortion.
    """

    candidate: str
    term: Term
    mean: Array
    function_bits: float
    residual_bits: float

    @classmethod
    def of(cls, candidate: str, member: Member, term: Term, bases: Bases) -> Fit:
        """The fit that a term makes."""
        mean = term.values(bases)
        size = 8.0 * (len(pack_term(term)) + USUAL_FRAME)
        return cls(candidate, term, mean, size, member.residual_bits(mean))

    @property
    def bits(self) -> float:
        """Total description length."""
        return self.function_bits + self.residual_bits


Candidate = Callable[[Sequence[Member]], list[Fit]]
"""Matrices of one kind over depth ─▶ a fit of each, or none at all."""


def no_bases(name: str) -> Array:
    """For terms that need no other tensor."""
    raise ValueError(f"{name[:80]!r} holds no matrices for others")
