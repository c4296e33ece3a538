"""Scale classes and frequency tables: what the coder is told about every index before it reads it.

    scale codes of row and column ─▶ class (¼ octave of mean |k|) ─▶ one table per class and trellis quantizer

All tables of a model are one `Tables`; they are built from counts on the encoder's side and travel as integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trueaxis import _core
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.types import Array, FormatError

CLASSES = 48
CODES_PER_OCTAVE = 4
ZERO_CLASS = 20  # class of mean |k| = 1
MAGNITUDES = (7, 15, 31, 63)
TOTAL = 4096
ABSENT_BITS = 14.0  # what rounding pays for a symbol that the table does not have yet
LARGEST_ORDER = 24


@dataclass(frozen=True, eq=False)
class Tables:
    """Frequency tables and reconstruction offsets of a model.

    Attributes:
        frequencies: uint16 [2, classes, K + 2]: of ±k for |k| = 0..K (k and −k each), then of an escape; sums to 4096
            over all symbols, or all zero where a class does not occur.
        escape_orders: uint8 [classes], Exp-Golomb order of escaped magnitudes.
        offsets: int8 [2, classes, 2], reconstruction offset of |k| = 1 and |k| ≥ 2 in 1/64 of the fine grid.
    """

    frequencies: Array
    escape_orders: Array
    offsets: Array

    @property
    def largest_magnitude(self) -> int:
        """K, the largest |k| that is not an escape."""
        return self.frequencies.shape[2] - 2

    @cached_property
    def coder(self) -> _core.TableSet:
        """The same tables in the C++ core, checked there."""
        return _core.TableSet(np.ascontiguousarray(self.frequencies), np.ascontiguousarray(self.escape_orders))

    @cached_property
    def weights_per_word(self) -> int:
        """Weights that a lane decodes at most before it needs a 16-bit word.

        A symbol of frequency f takes at least (4096 − f) · ⌊x / 4096⌋ from a state x; summed from 2³² to 2¹⁶.
        """
        return 12 * TOTAL // (TOTAL - min(int(self.frequencies.max()), TOTAL - 1)) + 1

    def code_bits(self) -> Array:
        """float32 [2, classes, K + 2]: bits of one symbol, its sign included; Laplacian where a class is absent."""
        frequency = self.frequencies.astype(np.float64)
        present = frequency.sum(axis=2, keepdims=True) > 0
        coded = np.where(frequency > 0, 12.0 - np.log2(np.maximum(frequency, 1)), ABSENT_BITS)
        return np.where(present, coded, laplacian_bits(self.largest_magnitude)[None]).astype(np.float32)


def escape_orders() -> Array:
    """uint8 [classes]: an Exp-Golomb order that suits the mean magnitude of each class."""
    octaves = (np.arange(CLASSES) - ZERO_CLASS) / CODES_PER_OCTAVE
    return np.clip(np.floor(octaves), 0, LARGEST_ORDER).astype(np.uint8)


def laplacian_bits(largest: int) -> Array:
    """float64 [classes, largest + 2]: ideal lengths for a rounded Laplacian of each class's mean magnitude."""
    mean = 2.0 ** ((np.arange(CLASSES) - ZERO_CLASS) / CODES_PER_OCTAVE)
    edges = np.arange(largest + 1) + 0.5
    tail = np.exp(-edges[None, :] / mean[:, None])
    zero = 1.0 - tail[:, :1]
    inner = 0.5 * (tail[:, :-1] - tail[:, 1:])
    probability = np.concatenate([zero, inner, tail[:, -1:]], axis=1)
    return np.minimum(-np.log2(np.maximum(probability, 2.0**-ABSENT_BITS)), ABSENT_BITS)


def first_tables() -> Tables:
    """Tables before anything was counted: no frequencies, no offsets."""
    return Tables(
        np.zeros((2, CLASSES, MAGNITUDES[-1] + 2), np.uint16), escape_orders(), np.zeros((2, CLASSES, 2), np.int8)
    )


def offsets_from(residuals: Sequence[tuple[Array, Array]]) -> Array:
    """int8 [2, classes, 2] centroid offsets from every matrix's residual sums and counts [2, classes, 2]."""
    sums = np.sum([found for found, _ in residuals], axis=0)
    counts = np.sum([found for _, found in residuals], axis=0)
    mean = np.where(counts >= 32, sums / np.maximum(counts, 1), 0.0)
    return np.clip(np.rint(mean * 64), -63, 63).astype(np.int8)


def fit_tables(counts: Array, offsets: Array) -> Tables:
    """Tables for counts uint64 [2, classes, 65] of |k| = 0..63 and beyond, with the alphabet that costs least.

    The estimate compares alphabets only; it is never reported as a size.
    """
    candidates = [tables_for(counts, offsets, largest) for largest in MAGNITUDES]
    return min(candidates, key=lambda tables: _estimated_bits(tables, counts))


def tables_for(counts: Array, offsets: Array, largest: int) -> Tables:
    """Tables of one alphabet for counts uint64 [2, classes, 65]."""
    flat = np.ascontiguousarray(_folded(counts, largest).reshape(-1, largest + 2))
    frequencies = _core.normalize_counts(flat).reshape(2, CLASSES, largest + 2)
    return Tables(frequencies, escape_orders(), offsets)


def _folded(counts: Array, largest: int) -> Array:
    """Counts with everything above `largest` in one escape symbol."""
    return np.concatenate([counts[:, :, : largest + 1], counts[:, :, largest + 1 :].sum(axis=2, keepdims=True)], axis=2)


def _estimated_bits(tables: Tables, counts: Array) -> float:
    """Ideal length of the counted symbols, escapes taken as the shortest ones, and of the tables."""
    largest, orders = tables.largest_magnitude, tables.escape_orders
    excess = np.arange(1, counts.shape[2] - largest)
    scaled = np.floor((excess[None, :] - 1) / 2.0 ** orders[:, None]) + 1
    payload = 2 * np.floor(np.log2(scaled)) + 2 + orders[:, None]
    escapes = float((counts[:, :, largest + 1 :] * payload[None]).sum())
    coded = float((_folded(counts, largest) * tables.code_bits()).sum())
    return coded + escapes + 8 * len(pack_tables(tables))


def pack_tables(tables: Tables) -> bytes:
    """Bytes of a `tables` record; see docs/format.md."""
    used = _used_magnitudes(tables.frequencies)
    shape = np.concatenate([used.reshape(-1), np.diff(tables.escape_orders.astype(np.int64), prepend=0)])
    values = [_describe_table(tables, cell, used) for cell in np.argwhere(used > 0)]
    body = np.concatenate([np.zeros(0, np.int64), *values])
    head = _core.encode_integers(shape.astype(np.int32), _shape_contexts())
    coded = _core.encode_integers(body.astype(np.int32), _body_contexts(used))
    return bytes([MAGNITUDES.index(tables.largest_magnitude)]) + pack_varint(len(head)) + head + coded


def unpack_tables(payload: bytes) -> Tables:
    """Inverse of `pack_tables`.

    Raises:
        FormatError: Not the bytes of valid tables.
    """
    if not payload or payload[0] >= len(MAGNITUDES):
        raise FormatError("tables record: unknown alphabet; the file is damaged or newer")
    largest = MAGNITUDES[payload[0]]
    try:
        length, start = unpack_varint(payload, 1)
        if start + length > len(payload):
            raise ValueError("the first sequence is truncated")
        shape = _core.decode_integers(payload[start : start + length], _shape_contexts())
        used = shape[: 2 * CLASSES].reshape(2, CLASSES).astype(np.int64)
        orders = np.cumsum(shape[2 * CLASSES :], dtype=np.int64)
        if used.min() < 0 or used.max() > largest + 1 or orders.min() < 0 or orders.max() > LARGEST_ORDER:
            raise ValueError("a table length or escape order is out of range")
        body = _core.decode_integers(payload[start + length :], _body_contexts(used)).astype(np.int64)
        frequencies, offsets = _read_tables(body, used, largest)
        tables = Tables(frequencies, orders.astype(np.uint8), offsets)
        _ = tables.coder
    except ValueError as error:
        raise FormatError(f"tables record: {error}; the file is damaged") from error
    return tables


def _used_magnitudes(frequencies: Array) -> Array:
    """int64 [2, classes]: 1 + the largest |k| with a frequency; 0 where the table is absent."""
    inner = frequencies[:, :, :-1] > 0
    last = inner.shape[2] - np.argmax(inner[:, :, ::-1], axis=2)
    return np.where(inner.any(axis=2), last, 0)


def _shape_contexts() -> Array:
    return np.repeat(np.array([0, 1], np.uint8), [2 * CLASSES, CLASSES])


def _body_contexts(used: Array) -> Array:
    """Contexts of the values of all present tables: frequencies of |k| = 1.., escape, two offsets."""
    parts = [np.concatenate([np.minimum(np.arange(1, n), 15), [16, 17, 18]]) for n in used[used > 0]]
    return np.concatenate([np.zeros(0), *parts]).astype(np.uint8)


def _previous(used: Array, cell: Array) -> int | None:
    """The nearest lower class of the same quantizer that has a table; its frequencies predict this one's."""
    lower = np.flatnonzero(used[cell[0], : cell[1]])
    return int(lower[-1]) if lower.size else None


def _describe_table(tables: Tables, cell: Array, used: Array) -> Array:
    row = tables.frequencies[cell[0], cell[1]].astype(np.int64)
    before = _previous(used, cell)
    if before is not None:
        row = row - tables.frequencies[cell[0], before].astype(np.int64)
    return np.concatenate([row[1 : used[cell[0], cell[1]]], row[-1:], tables.offsets[cell[0], cell[1]]])


def _read_tables(body: Array, used: Array, largest: int) -> tuple[Array, Array]:
    frequencies = np.zeros((2, CLASSES, largest + 2), np.int64)
    offsets = np.zeros((2, CLASSES, 2), np.int64)
    position = 0
    for cell in np.argwhere(used > 0):
        count = int(used[cell[0], cell[1]]) - 1
        row = frequencies[cell[0], cell[1]]
        row[1 : count + 1] = body[position : position + count]
        row[-1] = body[position + count]
        before = _previous(used, cell)
        if before is not None:
            row[1 : count + 1] += frequencies[cell[0], before, 1 : count + 1]
            row[-1] += frequencies[cell[0], before, -1]
        row[0] = TOTAL - 2 * row[1:-1].sum() - row[-1]
        offsets[cell[0], cell[1]] = body[position + count + 1 : position + count + 3]
        position += count + 3
    if frequencies.min() < 0 or frequencies.max() > TOTAL or np.abs(offsets).max() > 127:
        raise ValueError("a frequency or offset is out of range")
    return frequencies.astype(np.uint16), offsets.astype(np.int8)
