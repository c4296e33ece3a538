"""GGUF read back: tensors by their names in the checkpoint, for the peer's script and for benchmarks/exports.py.

    FILE, places ─▶ blocks decoded ─▶ what was added to norms taken off, interleaved rows apart ─▶ tensors

Imports nothing of trueaxis, which the peer's environment does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import gguf  # type: ignore[import-not-found]
import numpy as np

Places = Mapping[str, tuple[str, int, float]]
"""Name in the file → (name in the checkpoint, heads whose rows are interleaved or 0, what was added)."""


def read_tensors(file: Path, places: Places) -> Iterator[tuple[str, np.ndarray, str]]:
    """(name in the checkpoint, values float32, type in the file) of every tensor that has a place.

    Others are no weights, as frequencies of positions.
    """
    for one in gguf.GGUFReader(file).tensors:
        if one.name in places:
            name, heads, offset = places[one.name]
            values = gguf.quants.dequantize(one.data, one.tensor_type).astype(np.float32) - np.float32(offset)
            yield name, apart(values, heads) if heads else values, one.tensor_type.name


def apart(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of the checkpoint again: what export/gguf.py put side by side, in halves."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
