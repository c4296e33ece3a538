"""Invertible linear maps of one activation space: x′ = T x, without ever writing T out as a matrix.

    W′ = T_out W T_in⁻¹        H′ = T_in H T_inᵀ        b′ = T_out b

A map is a tuple of steps, applied first to last. Every step knows two things: what it does to the rows of an array
(T X) and what its inverse does to the columns of one (X T⁻¹), float32 or float64 as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trueaxis.runtime.transforms import reflected_columns
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
class Unscale:
    """x′ᵢ = xᵢ / γᵢ: what is left of a normalized input once γ has moved into its readers, W′ = W · diag(γ).

    Attributes:
        factors: γ [n] float64; where γᵢ = 0 the input is zero and stays so.
    """

    factors: Array

    def rows(self, values: Array) -> Array:
        inverse = np.divide(1.0, self.factors, out=np.zeros_like(self.factors), where=self.factors != 0)
        return values * inverse.astype(values.dtype)[:, None]

    def columns(self, values: Array) -> Array:
        return values * self.factors.astype(values.dtype)


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
        import torch  # minds the number of threads

        count, side, _ = self.blocks.shape
        blocks = torch.from_numpy(self.blocks.astype(values.dtype, copy=False))
        return (blocks @ torch.from_numpy(values.reshape(count, side, -1))).numpy().reshape(values.shape)

    def columns(self, values: Array) -> Array:
        return self.rows(values.T).T


@dataclass(frozen=True, eq=False)
class Planes:
    """Rotations in planes of two coordinates each: x′ₐ = cos·xₐ + sin·x_b, x′_b = cos·x_b − sin·xₐ.

    Attributes:
        first, second: int [p], the coordinates a and b of each plane; no coordinate twice.
        angles: [p] float64, radians.
    """

    first: Array
    second: Array
    angles: Array

    def rows(self, values: Array) -> Array:
        cosine, sine = np.cos(self.angles)[:, None], np.sin(self.angles)[:, None]
        one, other = values[self.first], values[self.second]
        moved = values.copy()
        moved[self.first] = cosine * one + sine * other
        moved[self.second] = cosine * other - sine * one
        return moved

    def columns(self, values: Array) -> Array:
        return self.rows(values.T).T


@dataclass(frozen=True, eq=False)
class Within:
    """A step on some of the coordinates: one part of a fused output.

    Attributes:
        part: int [s], the coordinates.
        step: A step on s coordinates.
    """

    part: Array
    step: Step

    def rows(self, values: Array) -> Array:
        moved = values.copy()
        moved[self.part] = self.step.rows(values[self.part])
        return moved

    def columns(self, values: Array) -> Array:
        moved = values.copy()
        moved[:, self.part] = self.step.columns(values[:, self.part])
        return moved


@dataclass(frozen=True, eq=False)
class Blank:
    """The last coordinate becomes zero: it never carries anything that is read. The one step without an inverse.

    After `Reflect` the last coordinate is the mean, which layer norms subtract.
    """

    def rows(self, values: Array) -> Array:
        moved = values.copy()
        moved[-1] = 0
        return moved

    def columns(self, values: Array) -> Array:
        moved = values.copy()
        moved[:, -1] = 0
        return moved


@dataclass(frozen=True, eq=False)
class Reflect:
    """The Householder reflection that exchanges the last axis and −(1, …, 1)/√n; its own inverse."""

    def rows(self, values: Array) -> Array:
        return reflected_columns(values.T).T

    def columns(self, values: Array) -> Array:
        return reflected_columns(values)


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
    """H′ = T H Tᵀ, symmetric to the last bit where H is."""
    for step in steps:
        if isinstance(step, Permute):
            second_moment = second_moment[np.ix_(step.order, step.order)]
        else:
            moved = step.rows(step.rows(second_moment).T)
            second_moment = (moved + moved.T) / 2
    return second_moment


def permutation(steps: Map, size: int) -> Array | None:
    """order [n] with x′ᵢ = x at order[i]; None for a map that is more than a permutation of n coordinates."""
    order = np.arange(size)
    for step in steps:
        if not isinstance(step, Permute):
            return None
        order = order[step.order]
    return order
