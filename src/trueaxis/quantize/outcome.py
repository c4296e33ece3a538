"""Outcome: one quantized matrix and what the next pass can learn from it.

Outcome ─▶ quantized, residuals ─▶ packed ─▶ arrays and facts of a journal ─▶ unpacked, the same to the last bit
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trueaxis.types import Array, Contexts, Grid, Quantized

Residuals = tuple[Array, Array]
"""Sums and counts [classes, 2] that centroids are found from."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What carrying out a plan gives.

    Attributes:
        quantized: The integers.
        residual_sums, residual_counts: float64 [classes, 2], for centroids; zero where the plan uses none.
        visited_errors: Errors of the columns [n, m] float32, in the order of `order`.
        order: The plan's order.
    """

    quantized: Quantized
    residual_sums: Array
    residual_counts: Array
    visited_errors: Array
    order: Array

    @property
    def residuals(self) -> Residuals:
        """Sums and counts of residuals."""
        return self.residual_sums, self.residual_counts

    @cached_property
    def errors(self) -> Array:
        """Ŵ − W [m, n] float32."""
        return np.ascontiguousarray(self.visited_errors[np.argsort(self.order)].T)


def packed(quantized: Quantized, residuals: Residuals) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays and JSON facts from which `unpacked` makes both again; indices in as few bytes as hold them."""
    grid, contexts = quantized.grid, quantized.contexts
    largest = int(np.abs(quantized.indices).max(initial=0))
    kind = next(kind for kind in (np.int8, np.int16, np.int32) if largest <= np.iinfo(kind).max)
    arrays = {
        "indices": quantized.indices.astype(kind),
        "grid_columns": grid.column_codes,
        "grid_rows": grid.row_codes,
        "context_columns": contexts.column_codes,
        "context_rows": contexts.row_codes,
        "sums": residuals[0],
        "counts": residuals[1],
    }
    facts = {
        "resolution": int(grid.resolution),
        "group": int(grid.group),
        "shift": int(contexts.shift),
        "trellis": int(quantized.trellis),
        "centroids": bool(quantized.centroids),
    }
    return arrays, facts


def unpacked(arrays: Mapping[str, Array], facts: Mapping[str, Any]) -> tuple[Quantized, Residuals]:
    """What `packed` took apart."""
    grid = Grid(arrays["grid_columns"], arrays["grid_rows"], facts["resolution"], facts["group"])
    contexts = Contexts(arrays["context_rows"], arrays["context_columns"], facts["shift"])
    indices = arrays["indices"].astype(np.int32)
    return Quantized(indices, grid, contexts, facts["trellis"], facts["centroids"]), (arrays["sums"], arrays["counts"])
