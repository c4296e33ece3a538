"""Transforms: what leads a decoded matrix back from the coordinates it was coded in.

    residual ─▶ values [rows, columns] ─▶ transforms, the last one first ─▶ transpose ─▶ the tensor or its slice

    reflection   exchanges the last axis with that of the mean. A stream without a mean has nothing along the latter, so
                 matrices of models with layer norms are coded with one column, or row, of zeros
    diagonal     a multiple of the identity that a square matrix was coded without
    orthogonal   stored factors of a rotation, see orthogonal.py

Each is a record of its own: u8 kind, then what the kind needs. All bits of every result are part of the format.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trueaxis.runtime.orthogonal import COLUMNS, KINDS, ROWS, parse_orthogonal
from trueaxis.types import Array, Transform

TRANSPOSE = b"\0"
REFLECTION, DIAGONAL = 1, 2  # kinds
CHUNK_ENTRIES = 1 << 22
PRODUCT_BITS = 19  # of every factor of a product: 2 · 19 + 15 = 53, what float64 adds up without rounding
LARGEST_PRODUCT = 1 << 15  # terms of a sum


@dataclass(frozen=True)
class Reflection:
    """W U, U W or U W U with the U of `reflected_columns`; its own inverse but for rounding.

    Attributes:
        sides: COLUMNS, ROWS or their sum.
    """

    sides: int

    @property
    def payload(self) -> bytes:
        """Kind and sides."""
        return bytes((REFLECTION, self.sides))

    def decoded(self, values: Array) -> Array:
        """The reflection of W [m, n].

        Example:
            >>> Reflection(COLUMNS).decoded(np.array([[0.0, 1.0]])).round(4).tolist()
            [[-0.7071, -0.7071]]
        """
        if self.sides & COLUMNS:
            values = reflected_columns(values)
        return np.ascontiguousarray(reflected_columns(values.T).T) if self.sides & ROWS else values

    def undone(self, values: Array) -> Array:
        """The reflection once more."""
        return self.decoded(values)


@dataclass(frozen=True)
class Diagonal:
    """W + c·I for a square W.

    Attributes:
        value: c, a float32.
    """

    value: float

    @property
    def payload(self) -> bytes:
        """Kind and c."""
        return struct.pack("<Bf", DIAGONAL, self.value)

    def decoded(self, values: Array) -> Array:
        """W + c·I."""
        return values + np.eye(len(values), dtype=values.dtype) * values.dtype.type(self.value)

    def undone(self, values: Array) -> Array:
        """W − c·I."""
        return Diagonal(-self.value).decoded(values)


def parse_transform(payload: bytes, rows: int, columns: int) -> Transform | None:
    """The transform of a record; None for a kind that is unknown.

    Args:
        payload: Of the record, for a matrix coded as [rows, columns].

    Raises:
        ValueError: It is damaged or does not fit.
    """
    kind, rest = payload[:1], payload[1:]
    if kind == bytes([REFLECTION]):
        if rest not in (b"\1", b"\2", b"\3"):
            raise ValueError("a reflection has one byte of sides, 1 to 3")
        return Reflection(rest[0])
    if kind == bytes([DIAGONAL]):
        if len(rest) != 4 or rows != columns or not math.isfinite(struct.unpack("<f", rest)[0]):
            raise ValueError(f"a diagonal is one finite float32 for a square matrix, not [{rows}, {columns}]")
        return Diagonal(struct.unpack("<f", rest)[0])
    return parse_orthogonal(payload, rows, columns) if kind and kind[0] in KINDS else None


def decoded(values: Array, transforms: Sequence[Transform]) -> Array:
    """Coded values [m, n] in the coordinates of the tensor: the last transform comes first."""
    for transform in reversed(transforms):
        values = transform.decoded(values)
    return values


def undone(values: Array, transforms: Sequence[Transform]) -> Array:
    """A decoded matrix [m, n] back in the coordinates it was coded in."""
    for transform in transforms:
        values = transform.undone(values)
    return values


def reflected_columns(values: Array) -> Array:
    """W (I − v vᵀ / (1 + 1/√n)), v = (1/√n, …, 1/√n, 1/√n + 1), computed in float64; dtype as it came."""
    rows, columns = values.shape
    root = 1 / np.sqrt(columns)
    # Column by column: the order of the sum, and with it every bit of the result, is part of the format.
    total = np.zeros(rows)
    for column in range(columns):
        total += values[:, column]
    share = (root * total + values[:, -1]) / (1 + root)
    moved = np.empty_like(values)
    step = max(1, CHUNK_ENTRIES // columns)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        moved[part] = values[part] - root * share[part, None]
        moved[part, -1] = values[part, -1] - (root + 1) * share[part]
    return moved


def exact_product(left: Array, right: Array) -> Array:
    """A B for A [m, n], B [n, k] float32 with n at most 2¹⁵: the same bits on every machine, float32.

    Every row of A and every column of B is rounded to integers of 20 bits times a power of two. Their products add up
    below 2⁵³, so that float64 gives the one right sum in whatever order.

    Example:
        >>> exact_product(np.array([[0.5, 2.0]]), np.array([[1.0], [0.25]])).tolist()
        [[1.0]]
    """
    import torch

    integers, exponents = _fixed_point(right.T)
    factor = torch.from_numpy(integers.T)
    product = np.empty((left.shape[0], right.shape[1]), np.float32)
    step = max(1, CHUNK_ENTRIES // left.shape[1])
    for first in range(0, left.shape[0], step):
        part = slice(first, first + step)
        rows, own = _fixed_point(left[part])
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            product[part] = np.ldexp((torch.from_numpy(rows) @ factor).numpy(), own[:, None] + exponents)
    return product


def _fixed_point(values: Array) -> tuple[Array, Array]:
    """Integers as float64 and the exponent [rows] of the power of two they are multiples of."""
    exponents = np.frexp(np.abs(values).max(axis=1).astype(np.float64))[1] - PRODUCT_BITS
    return np.rint(np.ldexp(values.astype(np.float64), -exponents[:, None])), exponents
