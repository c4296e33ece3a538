"""Orthogonal transforms: stored factors of a rotation that a matrix was coded in.

    coded values [rows, columns] ─▶ float64 ─▶ planes, mirrors or a Hadamard on one axis of one side ─▶ rounded once

    side of n coordinates = outer · size · inner      every factor acts on `size` alone, alike for all outer and inner

    planes     a product of rotations, each in a plane of two coordinates: sparse ones, blocks, all of a small matrix
    mirrors    a product of Householder reflections with vectors of integers
    hadamard   Walsh–Hadamard of a power of two, then signs

A Kronecker product A ⊗ B is two records: one acts on the outer axis, one on the inner. Blocks down the diagonal are
planes of coordinates that lie close together. Diagonals need no record: they are the steps of rows and columns.
Everything is in float64 by operations that IEEE 754 rounds correctly, in an order that docs/format.md fixes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from trueaxis import _core
from trueaxis.entropy.side import INTEGERS_PER_BYTE
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.types import Array

COLUMNS, ROWS = 1, 2  # sides
PLANES, MIRRORS, HADAMARD = 3, 4, 5  # kinds
CHUNK_ENTRIES = 1 << 18  # stays in a cache however many factors there are
MOST_BITS = 20  # of an angle
PLANES_PER_BYTE = 2
LARGEST_ENTRY = 1 << 15  # of a vector; squares of 2²² of them add up exactly in float64
LARGEST_SIZE = 1 << 22


@dataclass(frozen=True)
class Axis:
    """What factors act on: coordinate ((a · size) + b) · inner + c of a side, for every a and c the coordinate b.

    Attributes:
        side: COLUMNS or ROWS.
        size, inner: Extents; size · inner divides the number of coordinates.
    """

    side: int
    size: int
    inner: int = 1

    @property
    def payload(self) -> bytes:
        """Side and extents."""
        return bytes([self.side]) + pack_varint(self.size) + pack_varint(self.inner)

    @classmethod
    def read(cls, payload: bytes, rows: int, columns: int) -> tuple[Axis, int]:
        """An axis at the start of a payload, and where it ends.

        Raises:
            ValueError: It does not fit a matrix [rows, columns].
        """
        side = payload[0]
        size, start = unpack_varint(payload, 1)
        inner, start = unpack_varint(payload, start)
        if side not in (COLUMNS, ROWS) or not 1 < size <= LARGEST_SIZE or not inner:
            raise ValueError(f"an axis of extent {size} on side {side}")
        extent = columns if side == COLUMNS else rows
        if extent % (size * inner):
            raise ValueError(f"an axis of extent {size} times {inner} does not divide {extent} coordinates")
        return cls(side, size, inner), start


class _Orthogonal(ABC):
    """What all kinds share: a matrix is worked on in parts, each [outer, size, inner · lines] in float64."""

    axis: Axis

    def decoded(self, values: Array) -> Array:
        """Values one step nearer to the tensor, dtype as it came."""
        return self._worked(values, False)

    def undone(self, values: Array) -> Array:
        """Inverse of `decoded`, but for rounding."""
        return self._worked(values, True)

    def undone_rows(self, values: Array) -> Array:
        """T X for X [n, k] and the T with `undone(X)` = X Tᵀ on columns, in float64."""
        moved = np.array(values, np.float64, order="C")
        self._turn(moved.reshape(len(moved) // (self.axis.size * self.axis.inner), self.axis.size, -1), True)
        return moved

    @abstractmethod
    def _turn(self, block: Array, back: bool) -> None:
        """In place."""

    def _worked(self, values: Array, back: bool) -> Array:
        moved = np.empty_like(values, order="C")
        lines, target = (values, moved) if self.axis.side == COLUMNS else (values.T, moved.T)
        count, extent = lines.shape
        step = max(1, CHUNK_ENTRIES // extent)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused as infinite
            for first in range(0, count, step):
                part = slice(first, first + step)
                block = np.array(lines[part].T, np.float64, order="C")
                self._turn(block.reshape(extent // (self.axis.size * self.axis.inner), self.axis.size, -1), back)
                target[part] = block.T
        return moved


@dataclass(frozen=True, eq=False)
class Planes(_Orthogonal):
    """Rotations in planes, one after the other: x_i ← c·x_i − s·x_j, x_j ← s·x_i + c·x_j.

    With t = code / 2^bits, the tangent of half the angle, c = (1 − t²) / (1 + t²) and s = 2t / (1 + t²).

    Attributes:
        axis: What they act on.
        bits: Resolution of the codes.
        first, second: int [k], i < j of every plane.
        codes: int [k], at most 2^bits in magnitude: a quarter turn.
    """

    axis: Axis
    bits: int
    first: Array
    second: Array
    codes: Array
    kind: ClassVar[int] = PLANES

    @property
    def payload(self) -> bytes:
        """Kind, axis, resolution, number of planes; their coordinates and codes."""
        steps = np.diff(self.first, prepend=0)
        numbers = np.concatenate([steps, self.second - _expected(self.first, self.second) - 1, self.codes])
        head = bytes([self.kind]) + self.axis.payload + bytes([self.bits]) + pack_varint(self.first.size)
        return head + _core.encode_integers(numbers.astype(np.int32), _contexts(self.first.size))

    @classmethod
    def read(cls, payload: bytes, start: int, axis: Axis) -> Planes:
        """The rest of a payload.

        Raises:
            ValueError: It is damaged.
        """
        bits, (count, start) = payload[start], unpack_varint(payload, start + 1)
        coded = payload[start:]
        if not 1 <= bits <= MOST_BITS or not 1 <= count <= PLANES_PER_BYTE * len(coded):
            raise ValueError(f"{count} planes of {bits} bits in {len(coded)} bytes")
        steps, apart, codes = _core.decode_integers(coded, _contexts(count)).astype(np.int64).reshape(3, count)
        first = np.cumsum(steps)
        second = np.empty(count, np.int64)
        before = 0
        for k in range(count):
            before = second[k] = (first[k] if steps[k] else before) + 1 + apart[k]
        if first.min() < 0 or (first >= second).any() or second.max() >= axis.size:
            raise ValueError(f"a plane lies outside {axis.size} coordinates")
        if np.abs(codes).max() > 1 << bits:
            raise ValueError("an angle is out of range")
        return cls(axis, bits, first, second, codes)

    @cached_property
    def _rounds(self) -> list[Array]:
        """Numbers of planes that have no coordinate in common: each round is turned at once, to the same bits."""
        depths = _depths(self.first.tolist(), self.second.tolist())
        order = np.argsort(depths, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(depths[order])) + 1)

    def _turn(self, block: Array, back: bool) -> None:
        tangent = self.codes / float(1 << self.bits)
        square = tangent * tangent
        cosine, sine = (1 - square) / (1 + square), 2 * tangent / (1 + square)
        for part in reversed(self._rounds) if back else self._rounds:
            first, second = self.first[part], self.second[part]
            c, s = cosine[part, None], -sine[part, None] if back else sine[part, None]
            one, other = block[:, first], block[:, second]
            block[:, first] = c * one - s * other
            block[:, second] = s * one + c * other


@dataclass(frozen=True, eq=False)
class Mirrors(_Orthogonal):
    """Householder reflections, one after the other: x ← x − (2 (v·x) / (v·v)) v.

    Attributes:
        axis: What they act on.
        vectors: int [k, size], none of them zero.
    """

    axis: Axis
    vectors: Array
    kind: ClassVar[int] = MIRRORS

    @property
    def payload(self) -> bytes:
        """Kind, axis, number of vectors; their entries."""
        head = bytes([self.kind]) + self.axis.payload + pack_varint(len(self.vectors))
        numbers = self.vectors.astype(np.int32).reshape(-1)
        return head + _core.encode_integers(numbers, np.zeros(numbers.size, np.uint8))

    @classmethod
    def read(cls, payload: bytes, start: int, axis: Axis) -> Mirrors:
        """The rest of a payload.

        Raises:
            ValueError: It is damaged.
        """
        count, start = unpack_varint(payload, start)
        coded = payload[start:]
        if not 1 <= count <= len(coded) or count * axis.size > (len(coded) + 8) * INTEGERS_PER_BYTE:
            raise ValueError(f"{count} vectors of {axis.size} entries in {len(coded)} bytes")
        vectors = _core.decode_integers(coded, np.zeros(count * axis.size, np.uint8)).reshape(count, axis.size)
        if np.abs(vectors).max() > LARGEST_ENTRY or not vectors.any(axis=1).all():
            raise ValueError("a vector is zero or too long")
        return cls(axis, vectors)

    def _turn(self, block: Array, back: bool) -> None:
        for vector in self.vectors[::-1] if back else self.vectors:
            (places,) = np.nonzero(vector)
            entries = vector[places].astype(np.float64)
            total = np.zeros_like(block[:, 0])
            # One by one: the order of the sum, and with it every bit of the result, is part of the format.
            for place, entry in zip(places.tolist(), entries.tolist(), strict=True):
                total += entry * block[:, place]
            share = 2 * total / float(entries @ entries)
            for place, entry in zip(places.tolist(), entries.tolist(), strict=True):
                block[:, place] -= entry * share


@dataclass(frozen=True, eq=False)
class Hadamard(_Orthogonal):
    """Walsh–Hadamard of a power of two, divided by the root of its size, then signs.

    Attributes:
        axis: What it acts on.
        negative: bool [size], coordinates that change their sign after it.
    """

    axis: Axis
    negative: Array
    kind: ClassVar[int] = HADAMARD

    @property
    def payload(self) -> bytes:
        """Kind, axis; a bit per sign."""
        return bytes([self.kind]) + self.axis.payload + np.packbits(self.negative, bitorder="little").tobytes()

    @classmethod
    def read(cls, payload: bytes, start: int, axis: Axis) -> Hadamard:
        """The rest of a payload.

        Raises:
            ValueError: It is damaged.
        """
        bits = np.unpackbits(np.frombuffer(payload, np.uint8, offset=start), bitorder="little")
        if axis.size & (axis.size - 1) or bits.size != -(-axis.size // 8) * 8 or bits[axis.size :].any():
            raise ValueError(f"a Hadamard of {axis.size} coordinates with {bits.size} signs")
        return cls(axis, bits[: axis.size].astype(bool))

    def _turn(self, block: Array, back: bool) -> None:
        if back:
            block[:, self.negative] *= -1
        half = 1
        while half < self.axis.size:
            pairs = block.reshape(block.shape[0], -1, 2, half, block.shape[2])
            total, difference = pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]
            pairs[:, :, 0], pairs[:, :, 1] = total, difference
            half *= 2
        block *= 1 / np.sqrt(float(self.axis.size))
        if not back:
            block[:, self.negative] *= -1


Orthogonal = Planes | Mirrors | Hadamard
KINDS: dict[int, type[Planes] | type[Mirrors] | type[Hadamard]] = {
    one.kind: one for one in (Planes, Mirrors, Hadamard)
}  # fmt: skip


def parse_orthogonal(payload: bytes, rows: int, columns: int) -> Orthogonal:
    """The transform of a record whose kind is one of `KINDS`.

    Raises:
        ValueError: It is damaged or does not fit a matrix coded as [rows, columns].
    """
    try:
        axis, end = Axis.read(payload[1:], rows, columns)
        return KINDS[payload[0]].read(payload, 1 + end, axis)
    except IndexError as error:
        raise ValueError("it ends too early") from error


def _expected(first: Array, second: Array) -> Array:
    """What the second coordinate of every plane is one beyond, if nothing is said: the one before, or the first."""
    same = np.diff(first, prepend=0) == 0
    return np.where(same, np.concatenate([[0], second[:-1]]), first)


def _contexts(count: int) -> Array:
    return np.repeat(np.arange(3, dtype=np.uint8), count)


def sparse(axis: Axis, bits: int, planes: Sequence[tuple[int, int, int]]) -> Planes:
    """Planes in an order that takes fewest bytes and does the same: those without a common coordinate lie sorted."""
    first, second, codes = np.array(planes).T
    order = np.lexsort((codes, second, first, _depths(first.tolist(), second.tolist())))
    return Planes(axis, bits, first[order], second[order], codes[order])


def _depths(first: Sequence[int], second: Sequence[int]) -> Array:
    """How many planes, each with a coordinate in common with the next, end in every one: int [k]."""
    reached: dict[int, int] = {}
    depths = np.empty(len(first), np.int64)
    for k, (i, j) in enumerate(zip(first, second, strict=True)):
        depths[k] = reached[i] = reached[j] = 1 + max(reached.get(i, 0), reached.get(j, 0))
    return depths
