"""Steps as integers: from real steps to codes of the file and back, bit for bit.

A step is 2^(code / 32) as float32: an exponent and one of 32 mantissas. Every grid resolution divides 32, so one
table serves all; a grid of resolution 8 stores code // 4.
"""

from __future__ import annotations

import numpy as np

from trueaxis.types import Array, FormatError, Grid

OCTAVE = 32
# float32 bit patterns of 2^(i/32), correctly rounded; part of the file format.
MANTISSAS = np.array(
    # fmt: off
    [0x3f800000, 0x3f82cd87, 0x3f85aac3, 0x3f88980f, 0x3f8b95c2, 0x3f8ea43a, 0x3f91c3d3, 0x3f94f4f0,
     0x3f9837f0, 0x3f9b8d3a, 0x3f9ef532, 0x3fa27043, 0x3fa5fed7, 0x3fa9a15b, 0x3fad583f, 0x3fb123f6,
     0x3fb504f3, 0x3fb8fbaf, 0x3fbd08a4, 0x3fc12c4d, 0x3fc5672a, 0x3fc9b9be, 0x3fce248c, 0x3fd2a81e,
     0x3fd744fd, 0x3fdbfbb8, 0x3fe0ccdf, 0x3fe5b907, 0x3feac0c7, 0x3fefe4ba, 0x3ff5257d, 0x3ffa83b3],
    # fmt: on
    dtype=np.uint32,
)
CODE_LIMIT = 126 * OCTAVE  # steps stay normal float32 numbers


def steps(codes: Array, resolution: int) -> Array:
    """float32 steps 2^(codes / resolution), any shape.

    Raises:
        FormatError: A code outside the range of normal float32 numbers.
    """
    scaled = np.asarray(codes, dtype=np.int64) * (OCTAVE // resolution)
    if scaled.size and np.abs(scaled).max() > CODE_LIMIT:
        raise FormatError("a step code is out of range: the file is damaged")
    exponent, fraction = np.divmod(scaled, OCTAVE)
    bits = MANTISSAS[fraction] + (exponent.astype(np.int32).astype(np.uint32) << np.uint32(23))
    return bits.view(np.float32)


def nearest_codes(values: Array, resolution: int) -> Array:
    """int32 codes of the steps nearest to positive `values` in ratio; the range is clipped, zeros give the smallest."""
    limit = CODE_LIMIT // (OCTAVE // resolution)
    logs = np.log2(np.maximum(np.asarray(values, dtype=np.float64), 2.0**-126))
    return np.clip(np.rint(logs * resolution), -limit, limit).astype(np.int32)


def resolution_for(samples: int) -> int:
    """Codes per octave worth paying for when one step serves `samples` weights."""
    return 4 if samples < 1024 else 8


def column_groups(grid: Grid) -> Array:
    """int32 [n]: group of each column."""
    return (np.arange(grid.column_codes.size) // grid.group).astype(np.int32)


def row_grid(row_steps: Array, columns: int, group: int, resolution: int) -> Grid:
    """A grid with one step per row and group: row_steps [m, groups] float."""
    return Grid(np.zeros(columns, np.int32), nearest_codes(row_steps, resolution), resolution, group)


def column_grid(column_steps: Array, row_weights: Array | None, rows: int, resolution: int) -> Grid:
    """A grid of column steps [n], times 1/√weight of the row where rows are weighted."""
    if row_weights is None:
        row_codes = np.zeros((rows, 1), np.int32)
    else:
        row_codes = nearest_codes(1.0 / np.sqrt(np.maximum(row_weights, 1e-30)), resolution).reshape(rows, 1)
    return Grid(nearest_codes(column_steps, resolution), row_codes, resolution, max(1, column_steps.size))
