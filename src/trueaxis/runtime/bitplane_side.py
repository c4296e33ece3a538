"""What a record of bit planes tells before its planes: scale codes and frequency tables as adaptive integers.

codes of rows and columns, each less its median; tables, each less the one before it ─▶ integers ─▶ bytes
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trueaxis import _core
from trueaxis.entropy.side import INTEGERS_PER_BYTE
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.types import Array

SYMBOLS = 256  # of a coded plane; where some escape, the last one says so
TOTAL = 4096  # sum of the frequencies of a table
LARGEST_CODE = 1 << 13
TABLE_BINS = 16


class Cursor:
    """A place in a payload; every read is bounded."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._at = data, 0

    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        return self.view(size).tobytes()

    def view(self, size: int) -> Array:
        """uint8 [size], not copied."""
        if size > self.left():
            raise ValueError(f"{size} bytes are claimed, {self.left()} are left")
        self._at += size
        return np.frombuffer(self._data, np.uint8, size, self._at - size)

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int) -> int:
        value, self._at = unpack_varint(self._data, self._at)
        if value > most:
            raise ValueError(f"{value} is above {most}")
        return value

    def run(self) -> bytes:
        return self.take(self.varint(1 << 62))


def pack_codes(rows: Array, columns: Array) -> bytes:
    """Scale codes of rows and columns."""
    arrays = (rows.astype(np.int32), columns.astype(np.int32))
    medians = [int(np.median(array)) for array in arrays]
    numbers = [np.append(median, array - median) for median, array in zip(medians, arrays, strict=True)]
    return _core.encode_integers(np.concatenate(numbers).astype(np.int32), _code_contexts(*map(len, arrays)))


def unpack_codes(coded: bytes, rows: int, columns: int) -> tuple[Array, Array]:
    """Inverse of `pack_codes`: int16.

    Raises:
        ValueError: They are damaged, or too few bytes for so many.
    """
    numbers = _integers(coded, _code_contexts, rows, columns)
    arrays = numbers[1 : rows + 1] + numbers[0], numbers[rows + 2 :] + numbers[rows + 1]
    if any(np.abs(array).max() > LARGEST_CODE for array in arrays):
        raise ValueError("a scale code is out of range")
    return arrays[0].astype(np.int16), arrays[1].astype(np.int16)


def _code_contexts(rows: int, columns: int) -> Array:
    """Median and codes of rows, then of columns."""
    return np.repeat(np.arange(4, dtype=np.uint8), [1, rows, 1, columns])


def _integers(coded: bytes, contexts: Callable[[int, int], Array], first: int, second: int) -> Array:
    """int64 numbers whose contexts follow from two extents; too many for their bytes are refused first."""
    if first * second > (1 << 48) or max(first, second) > (len(coded) + 8) * INTEGERS_PER_BYTE:
        raise ValueError(f"{len(coded)} bytes are too few for {first} and {second} numbers")
    return _core.decode_integers(coded, contexts(first, second)).astype(np.int64)


def pack_tables(frequencies: Array, step: int) -> bytes:
    """uint16 [contexts, 256], each table less the one before it moved up by `step` symbols."""
    used = np.flatnonzero(frequencies.any(axis=0))
    first, extent = int(used[0]), int(used[-1] - used[0]) + 1
    numbers = frequencies[:, first : first + extent].astype(np.int32)
    coded = _core.encode_integers(
        (numbers - _predicted(numbers, step)).reshape(-1), _table_contexts(len(numbers), extent)
    )
    return bytes([first, extent - 1, step]) + pack_varint(len(coded)) + coded


def unpack_tables(cursor: Cursor, contexts: int) -> tuple[Array, int]:
    """Frequencies and step.

    Raises:
        ValueError: They are damaged.
    """
    first, extent, step = cursor.byte(), cursor.byte() + 1, cursor.byte()
    if first + extent > SYMBOLS:
        raise ValueError("symbols of a plane are beyond 255")
    numbers = _integers(cursor.run(), _table_contexts, contexts, extent).reshape(contexts, extent)
    frequencies = np.zeros((contexts, SYMBOLS), np.int64)
    for number, row in enumerate(numbers):
        before = frequencies[number - 1 : number, first : first + extent]
        frequencies[number, first : first + extent] = row + _above(before[0], step) if number else np.cumsum(row)
    if frequencies.min() < 0 or frequencies.max() >= TOTAL:
        raise ValueError("a frequency of a plane is out of range")
    return frequencies.astype(np.uint16), step


def _predicted(numbers: Array, step: int) -> Array:
    """Of the first table each frequency's lower neighbour, of others the table before, `step` symbols further up."""
    first = np.append(0, numbers[0, :-1])
    return np.stack([first, *(_above(row, step) for row in numbers[:-1])])


def _above(row: Array, step: int) -> Array:
    return np.append(np.zeros(step, row.dtype), row)[: row.size]


def _table_contexts(contexts: int, extent: int) -> Array:
    """A bin of the symbols; the first table has bins of its own."""
    bins = np.arange(extent) * TABLE_BINS // extent
    later = np.tile(bins + TABLE_BINS, contexts - 1)
    return np.concatenate([bins, later]).astype(np.uint8)
