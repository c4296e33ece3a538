"""Transforms: what leads a decoded matrix back from the coordinates it was coded in.

    residual ─▶ values [rows, columns] ─▶ reflection of columns, rows ─▶ transpose ─▶ the tensor or its slice

The reflection exchanges the last axis with that of the mean. A stream without a mean has nothing along the latter, so
matrices of models with layer norms are coded with one column, or row, of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trueaxis.types import Array

TRANSPOSE = b"\0"
REFLECTION = 1  # kind; then one byte, the sum of these
COLUMNS, ROWS = 1, 2
CHUNK_ENTRIES = 1 << 22


def reflection(sides: int) -> bytes:
    """Payload of a reflection of the columns' space, the rows' space, or both."""
    return bytes((REFLECTION, sides))


def reflected(values: Array, sides: int) -> Array:
    """W U, U W or U W U for W [m, n]; its own inverse but for rounding.

    Example:
        >>> reflected(np.array([[0.0, 1.0]]), COLUMNS).round(4).tolist()
        [[-0.7071, -0.7071]]
    """
    if sides & COLUMNS:
        values = reflected_columns(values)
    return np.ascontiguousarray(reflected_columns(values.T).T) if sides & ROWS else values


def undone(values: Array, transforms: Sequence[bytes]) -> Array:
    """A decoded matrix [m, n] back in the coordinates it was coded in; for payloads of `reflection`."""
    for payload in reversed(transforms):
        values = reflected(values, payload[1])
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
