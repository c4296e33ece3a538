"""Steps as integers: from real steps to codes of the file and back, bit for bit.

A step is 2^(code / 32) as float32: an exponent and one of 32 mantissas. Every grid resolution divides 32, so one
table serves all; a grid of resolution 8 stores code // 4.
"""

from __future__ import annotations

import numpy as np

from trueaxis.types import Array, FormatError, Grid

OCTAVE = 32
# float32 bit patterns of 2^(i/32), correctly rounded; part of the file format.
# fmt: off
MANTISSAS = np.array([
    0x3F800000, 0x3F82CD87, 0x3F85AAC3, 0x3F88980F, 0x3F8B95C2, 0x3F8EA43A, 0x3F91C3D3, 0x3F94F4F0,
    0x3F9837F0, 0x3F9B8D3A, 0x3F9EF532, 0x3FA27043, 0x3FA5FED7, 0x3FA9A15B, 0x3FAD583F, 0x3FB123F6,
    0x3FB504F3, 0x3FB8FBAF, 0x3FBD08A4, 0x3FC12C4D, 0x3FC5672A, 0x3FC9B9BE, 0x3FCE248C, 0x3FD2A81E,
    0x3FD744FD, 0x3FDBFBB8, 0x3FE0CCDF, 0x3FE5B907, 0x3FEAC0C7, 0x3FEFE4BA, 0x3FF5257D, 0x3FFA83B3,
], dtype=np.uint32)
# fmt: on
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
