"""Invertible linear maps of one activation space: x′ = T x, without ever writing T out as a matrix.

    W′ = T_out W T_in⁻¹        H′ = T_in H T_inᵀ        b′ = T_out b

A map is a tuple of steps, applied first to last. Every step knows two things: what it does to the rows of an array (T X)
and what its inverse does to the columns of one (X T⁻¹). All of it is float64 NumPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trueaxis.types import Array


class Step(Protocol):
    """One invertible factor of a map on a space of n coordinates."""

    def rows(self, values: Array) -> Array:
        """T X for X [n, k]."""
        ...

    def columns(self, values: Array) -> Array:
        """X T⁻¹ for X [k, n]."""
        ...


@dataclass(frozen=True, eq=False)
class Scale:
    """x′ᵢ = sᵢ xᵢ. Where sᵢ = 0 the coordinate is dead: its inverse is taken as 0.

    Attributes:
        factors: s [n] float64.
    """

    factors: Array

    def rows(self, values: Array) -> Array:
        return values * self.factors[:, None]

    def columns(self, values: Array) -> Array:
        return values * np.divide(1.0, self.factors, out=np.zeros_like(self.factors), where=self.factors != 0)


@dataclass(frozen=True, eq=False)
class Unscale:
    """x′ᵢ = xᵢ / γᵢ: what is left of a normalized input once γ has moved into its readers, exactly W · diag(γ).

    Attributes:
        factors: γ [n] float64; where γᵢ = 0 the input is zero and stays so.
    """

    factors: Array

    def rows(self, values: Array) -> Array:
        return values * np.divide(1.0, self.factors, out=np.zeros_like(self.factors), where=self.factors != 0)[:, None]

    def columns(self, values: Array) -> Array:
        return values * self.factors


@dataclass(frozen=True, eq=False)
class Permute:
    """x′ᵢ = x at order[i].

    Attributes:
        order: int [n], a permutation.
    """

    order: Array

    def rows(self, values: Array) -> Array:
        return values[self.order]

    def columns(self, values: Array) -> Array:
        return values[:, self.order]


@dataclass(frozen=True, eq=False)
class Rotate:
    """Orthogonal blocks down the diagonal; one block is a rotation of the whole space.

    Attributes:
        blocks: [count, s, s] float64, each orthogonal, count · s = n; rows of a block are its axes.
    """

    blocks: Array

    def rows(self, values: Array) -> Array:
        count, side, _ = self.blocks.shape
        return (self.blocks @ values.reshape(count, side, -1)).reshape(values.shape)

    def columns(self, values: Array) -> Array:
        return self.rows(values.T).T


Map = Sequence[Step]


def on_rows(steps: Map, values: Array) -> Array:
    """T X for X [n, k] or [n]."""
    moved = values.reshape(values.shape[0], -1)
    for step in steps:
        moved = step.rows(moved)
    return moved.reshape(values.shape)


def on_columns(steps: Map, values: Array) -> Array:
    """X T⁻¹ for X [k, n]."""
    for step in steps:
        values = step.columns(values)
    return values


def moment(steps: Map, second_moment: Array) -> Array:
    """H′ = T H Tᵀ, symmetric to the last bit."""
    moved = on_rows(steps, on_rows(steps, second_moment).T)
    return (moved + moved.T) / 2


def row_weights(steps: Map, size: int) -> Array | None:
    """diag(S⁻ᵀ S⁻¹) of an output map whose scales stand alone: what an error after S costs where it cost 1 before.

    Rotations and permutations change nothing; None then.

    Args:
        steps: Output map.
        size: Number of outputs.
    """
    weights, scaled = np.ones(size), False
    for step in steps:
        if isinstance(step, Scale):
            weights, scaled = weights / np.square(step.factors), True
        elif isinstance(step, Permute):
            weights = weights[step.order]
    return weights if scaled else None
