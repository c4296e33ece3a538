"""Terms: the f of a matrix W = f + r, stored in one record before the residual r.

    function record: u8 kind 1, u8 term, what the term needs        then a residual        W = f + r

    term 0  product                A B, both coded
    term 1  splines over rows      A hats, B coded        term 2  splines over columns   A coded, B hats
    term 3  shared                 Σ θ_k B_k; the B_k are coded in this record, or in that of a tensor that is named

Factors are rows of integers, times a step per row and a step per column, through the side coder. They are rounded
before the residual is made, so its integers make up for that. A hat is 1 at its knot and falls to 0 at the next ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trueaxis import _core
from trueaxis.entropy.side import INTEGERS_PER_BYTE
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.quantize.grid import nearest_codes, steps
from trueaxis.runtime.factors import product
from trueaxis.types import Array

SUM = 1
RESOLUTION = 4  # step codes per octave
LARGEST_CODE = 60 * RESOLUTION  # the product of two steps is a normal float32
LARGEST_INDEX = 1 << 24  # a float32 holds it exactly
CONTEXTS = 30  # of entries, by row
MOST_SHARED = 16  # matrices that one tensor holds for others
Bases = Callable[[str], Array]
"""Name of a tensor ─▶ the matrices [K, m, n] that its function record holds for others."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A coded factor: entry (k, j) = indices · 2^(row code / 4) · 2^(column code / 4).

    Attributes:
        indices: int32 [r, size].
        row_codes, column_codes: int32 [r] and [size].
    """

    indices: Array
    row_codes: Array
    column_codes: Array

    @classmethod
    def rounded(cls, values: Array, row_steps: Array, column_steps: Array) -> Rows:
        """Values [r, size] to the nearest multiples of about row step · column step."""
        rows, columns = (
            np.clip(nearest_codes(one, RESOLUTION), -LARGEST_CODE, LARGEST_CODE) for one in (row_steps, column_steps)
        )
        indices = np.rint(values / _steps(rows, columns).astype(np.float64))
        return cls(np.clip(indices, -LARGEST_INDEX, LARGEST_INDEX).astype(np.int32), rows, columns)

    def values(self) -> Array:
        """float32 [r, size]."""
        return self.indices.astype(np.float32) * _steps(self.row_codes, self.column_codes)

    def payload(self) -> bytes:
        """Its length and bytes."""
        codes = [np.diff(one, prepend=0) for one in (self.row_codes, self.column_codes)]
        numbers = np.concatenate([*codes, self.indices.reshape(-1)]).astype(np.int32)
        coded = _core.encode_integers(numbers, _contexts(*self.indices.shape))
        return pack_varint(len(coded)) + coded


def read_rows(payload: bytes, start: int, count: int, size: int) -> tuple[Rows, int]:
    """A coded factor [count, size], and where it ends.

    Raises:
        ValueError: It is damaged.
    """
    length, start = unpack_varint(payload, start)
    coded = payload[start : start + length]
    if len(coded) != length or count * size + count + size > (length + 8) * INTEGERS_PER_BYTE:
        raise ValueError(f"{len(coded)} bytes are too few for a factor [{count}, {size}]")
    numbers = _core.decode_integers(coded, _contexts(count, size)).astype(np.int64)
    rows, columns = (np.cumsum(one) for one in (numbers[:count], numbers[count : count + size]))
    indices = numbers[count + size :].reshape(count, size)
    if max(np.abs(rows).max(), np.abs(columns).max()) > LARGEST_CODE or np.abs(indices).max() > LARGEST_INDEX:
        raise ValueError("a number of a factor is out of range")
    return Rows(indices.astype(np.int32), rows.astype(np.int32), columns.astype(np.int32)), start + length


def _steps(rows: Array, columns: Array) -> Array:
    return steps(rows, RESOLUTION)[:, None] * steps(columns, RESOLUTION)


def _contexts(count: int, size: int) -> Array:
    """Of row codes (0), column codes (1), and entries by their row."""
    bins = 2 + np.arange(count) * min(count, CONTEXTS) // count
    return np.concatenate([np.zeros(count), np.ones(size), np.repeat(bins, size)]).astype(np.uint8)


def hats(knots: int, size: int) -> Array:
    """float32 [size, knots]: linear splines with evenly spaced knots; ones for a single knot.

    Example:
        >>> hats(2, 3).tolist()
        [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    if knots == 1:
        return np.ones((size, 1), np.float32)
    apart = np.abs(np.arange(size)[:, None] * (knots - 1) - np.arange(knots) * (size - 1))
    return (np.maximum(size - 1 - apart, 0) / (size - 1)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Product:
    """A B: left is Aᵀ [r, m], right B [r, n]."""

    left: Rows
    right: Rows
    code: ClassVar[int] = 0

    def values(self, bases: Bases) -> Array:
        return product(np.ascontiguousarray(self.left.values().T), self.right.values())

    def body(self) -> bytes:
        return pack_varint(len(self.left.indices)) + self.left.payload() + self.right.payload()


@dataclass(frozen=True, eq=False)
class RowSplines:
    """Hats over `size` rows times B [r, n]."""

    right: Rows
    size: int
    code: ClassVar[int] = 1

    def values(self, bases: Bases) -> Array:
        return product(hats(len(self.right.indices), self.size), self.right.values())

    def body(self) -> bytes:
        return pack_varint(len(self.right.indices)) + self.right.payload()


@dataclass(frozen=True, eq=False)
class ColumnSplines:
    """Aᵀ [r, m] transposed times hats over `size` columns."""

    left: Rows
    size: int
    code: ClassVar[int] = 2

    def values(self, bases: Bases) -> Array:
        knots = np.ascontiguousarray(hats(len(self.left.indices), self.size).T)
        return product(np.ascontiguousarray(self.left.values().T), knots)

    def body(self) -> bytes:
        return pack_varint(len(self.left.indices)) + self.left.payload()


@dataclass(frozen=True, eq=False)
class Shared:
    """Σ θ_k B_k; `own` holds the B_k as rows [K·m, n], or `source` names the tensor that does.

    Attributes:
        weights: θ, float32 [K].
        shape: (m, n).
    """

    weights: Array
    shape: tuple[int, int]
    own: Rows | None = None
    source: str = ""
    code: ClassVar[int] = 3

    def matrices(self) -> Array:
        """The B_k [K, m, n] that it holds for all."""
        assert self.own is not None
        return self.own.values().reshape(-1, *self.shape)

    def values(self, bases: Bases) -> Array:
        found = bases(self.source) if self.own is None else self.matrices()
        if found.shape != (self.weights.size, *self.shape):
            raise ValueError(f"{self.source[:80]!r} holds matrices {list(found.shape)} for others")
        total = np.zeros(self.shape)
        for weight, matrix in zip(self.weights.astype(np.float64), found, strict=True):
            total += weight * matrix
        return total.astype(np.float32)

    def body(self) -> bytes:
        name = self.source.encode()
        head = pack_varint(self.weights.size) + self.weights.astype("<f4").tobytes() + pack_varint(len(name)) + name
        return head + (self.own.payload() if self.own is not None else b"")


Term = Product | RowSplines | ColumnSplines | Shared


def pack_term(term: Term) -> bytes:
    """Payload of a function record."""
    return bytes([SUM, term.code]) + term.body()


def read_term(payload: bytes, rows: int, columns: int) -> Term:
    """Inverse of `pack_term`, for a matrix coded as [rows, columns].

    Raises:
        ValueError: It is damaged or unknown.
    """
    if len(payload) < 2 or payload[1] > Shared.code:
        raise ValueError(f"term {payload[1:2].hex() or 'none'} is unknown; install a newer version")
    count, place = unpack_varint(payload, 2)
    if payload[1] == Shared.code:
        found, place = _read_shared(payload, count, place, (rows, columns))
    else:
        if not 1 <= count <= min(rows, columns):
            raise ValueError(f"a term of rank {count} does not make [{rows}, {columns}]")
        found, place = _READERS[payload[1]](payload, count, place, rows, columns)
    if place != len(payload):
        raise ValueError(f"{len(payload) - place} bytes are left after a term")
    return found


def _read_product(payload: bytes, rank: int, place: int, rows: int, columns: int) -> tuple[Term, int]:
    left, place = read_rows(payload, place, rank, rows)
    right, place = read_rows(payload, place, rank, columns)
    return Product(left, right), place


def _read_row_splines(payload: bytes, rank: int, place: int, rows: int, columns: int) -> tuple[Term, int]:
    right, place = read_rows(payload, place, rank, columns)
    return RowSplines(right, rows), place


def _read_column_splines(payload: bytes, rank: int, place: int, rows: int, columns: int) -> tuple[Term, int]:
    left, place = read_rows(payload, place, rank, rows)
    return ColumnSplines(left, columns), place


_READERS = (_read_product, _read_row_splines, _read_column_splines)


def _read_shared(payload: bytes, count: int, place: int, shape: tuple[int, int]) -> tuple[Term, int]:
    if not 1 <= count <= MOST_SHARED or place + 4 * count > len(payload):
        raise ValueError(f"a sum of {count} shared matrices is damaged, or more than {MOST_SHARED}")
    weights = np.frombuffer(payload, "<f4", count, place)
    if not np.isfinite(weights).all():
        raise ValueError("a weight of a shared matrix is not finite")
    length, place = unpack_varint(payload, place + 4 * count)
    name = payload[place : place + length]
    if len(name) != length:
        raise ValueError("the name of a tensor is cut off")
    if name:
        return Shared(weights, shape, None, name.decode("utf-8", errors="replace")), place + length
    own, place = read_rows(payload, place, count * shape[0], shape[1])
    return Shared(weights, shape, own), place
