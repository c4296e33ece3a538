"""Factors: a matrix that is coded as the product of two others.

    function record: u8 kind 0, varint r        then two residuals, A [m, r] and B [r, n]        W = A B

The record stands where the residual of a whole matrix would; what comes before it, slice and transforms, is W's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.record import Record, RecordType
from trueaxis.types import Array, Weight

PRODUCT = 0
SMALLEST_SHARE = 64  # r is at least this part of the smaller side, so that few bytes never stand for a huge matrix
CHUNK_ENTRIES = 1 << 20


def factor_records(weight: Weight, records: Sequence[Record]) -> tuple[Record, ...]:
    """Records of a matrix or of a factor, from those that it would have as a matrix of its own."""
    if weight.factor == "left":
        rank = Record(RecordType.FUNCTION, bytes([PRODUCT]) + pack_varint(weight.shape[1]))
        return (*records[:-1], rank, records[-1])
    return tuple(records[-1:] if weight.factor else records)


def read_rank(payload: bytes, rows: int, columns: int) -> int:
    """r of a function record, for a matrix coded as [rows, columns].

    Raises:
        ValueError: It is damaged, or r is not from 1/64 of the smaller side to all of it.
    """
    if payload[:1] != bytes([PRODUCT]):
        raise ValueError(f"function of kind {payload[:1].hex() or 'none'} is unknown; install a newer version")
    rank, end = unpack_varint(payload, 1)
    if end != len(payload) or not smallest_rank(rows, columns) <= rank <= min(rows, columns):
        raise ValueError(f"a product of rank {rank} does not make [{rows}, {columns}]")
    return rank


def smallest_rank(rows: int, columns: int) -> int:
    """The smallest r that a product may have."""
    return -(-min(rows, columns) // SMALLEST_SHARE)


def product(left: Array, right: Array) -> Array:
    """A B for A [m, r], B [r, n] float32: float64 sums from the first term to the last, rounded once to float32.

    A product of two float32 is exact in float64, so the order of the sum settles every bit of the result.

    Example:
        >>> product(np.ones((1, 2), np.float32), np.ones((2, 1), np.float32)).tolist()
        [[2.0]]
    """
    found = np.empty((left.shape[0], right.shape[1]), np.float32)
    wide = right.astype(np.float64)
    step = max(1, CHUNK_ENTRIES // right.shape[1])
    for first in range(0, left.shape[0], step):
        rows = left[first : first + step].astype(np.float64)
        total = np.zeros((rows.shape[0], right.shape[1]))
        for index in range(wide.shape[0]):
            total += rows[:, index, None] * wide[index]
        found[first : first + step] = total
    return found
