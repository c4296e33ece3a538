"""Side information: steps and scale codes of a matrix to bytes and back.

    column steps, row steps, column scales, row scales ─▶ each in its shortest form ─▶ one coded array

The byte layout is in docs/format.md.
"""

from __future__ import annotations

import numpy as np

from trueaxis import _core
from trueaxis.entropy.model import CODES_PER_OCTAVE
from trueaxis.quantize.grid import steps
from trueaxis.types import Array, Contexts, Grid

INTEGERS_PER_BYTE = 4608  # a number costs at least log2(4096 / 4091) bits
LARGEST_CODE = 1 << 20


def predicted_scale(column_codes: Array, resolution: int, shift: int) -> Array:
    """Scale code expected from a column's step: a step one octave larger makes indices one octave smaller."""
    return -((column_codes.astype(np.int64) * (CODES_PER_OCTAVE << shift)) // resolution)


def pack_side(grid: Grid, contexts: Contexts) -> tuple[bytes, int]:
    """Side information and its mode bits: what of each array is coded is whatever takes fewest bytes.

    Bit a of the first four: array a as differences of neighbours instead of around its median. Bit 5: scale codes of
    columns as they are instead of relative to the steps.
    """
    scale = contexts.column_codes.astype(np.int64)
    relative = scale - predicted_scale(grid.column_codes, grid.resolution, contexts.shift)
    values, modes = [], 0
    for number, arrays in enumerate(
        ([grid.column_codes], [grid.row_codes.reshape(-1)], [relative, scale], [contexts.row_codes])
    ):
        choices = {}
        for kind, array in enumerate(arrays):
            integers = np.asarray(array, np.int64)
            choices[kind << 5] = _around_median(integers)
            choices[kind << 5 | 1 << number] = _differences(integers)
        mode = min(
            choices, key=lambda mode: len(_core.encode_integers(choices[mode], _side_contexts([choices[mode].size])))
        )
        modes |= mode
        values.append(choices[mode])
    coded = _core.encode_integers(np.concatenate(values), _side_contexts([array.size for array in values]))
    return coded, modes


def _around_median(integers: Array) -> Array:
    median = int(np.median(integers))
    return np.concatenate([[median], integers - median]).astype(np.int32)


def _differences(integers: Array) -> Array:
    return np.concatenate([[0], np.diff(integers, prepend=0)]).astype(np.int32)


def _side_contexts(lengths: list[int]) -> Array:
    """The first number of each array has a context of its own."""
    repeats = [count for length in lengths for count in (1, length - 1)]
    return np.repeat(np.arange(2 * len(lengths), dtype=np.uint8), repeats)


def side_lengths(rows: int, columns: int, group: int) -> list[int]:
    """Numbers in each of the four arrays, their first one included."""
    return [columns + 1, rows * -(-columns // group) + 1, columns + 1, rows + 1]


def unpack_side(
    side: bytes, rows: int, columns: int, group: int, resolution: int, shift: int, modes: int
) -> tuple[Grid, Contexts]:
    """Inverse of `pack_side`, for a matrix of these dimensions.

    Raises:
        ValueError: The bytes are damaged.
    """
    lengths = side_lengths(rows, columns, group)
    coded = _core.decode_integers(side, _side_contexts(lengths)).astype(np.int64)
    arrays = []
    for number, array in enumerate(np.split(coded, np.cumsum(lengths)[:-1])):
        differences = bool(modes >> number & 1)
        body = np.cumsum(array[1:]) if differences else array[1:] + array[0]
        if np.abs(body).max() > LARGEST_CODE or (differences and array[0] != 0):
            raise ValueError("a step or scale code is out of range")
        arrays.append(body)
    column_steps, row_steps, scale, row_scale = arrays
    if not modes >> 5:
        scale = scale + predicted_scale(column_steps, resolution, shift)
    grid = Grid(column_steps.astype(np.int32), row_steps.astype(np.int32).reshape(rows, -1), resolution, group)
    for codes in (grid.column_codes, grid.row_codes):
        steps(codes, resolution)
    return grid, Contexts(row_scale.astype(np.int32), scale.astype(np.int32), shift)
