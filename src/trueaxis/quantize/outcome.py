"""Outcome: one quantized matrix and what the next pass can learn from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trueaxis.types import Array, Quantized

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
