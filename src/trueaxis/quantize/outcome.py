"""Outcome: one quantized matrix and what the next pass can learn from it."""

from __future__ import annotations

from dataclasses import dataclass

from trueaxis.types import Array, Quantized


@dataclass(frozen=True, eq=False)
class Outcome:
    """What carrying out a plan gives.

    Attributes:
        quantized: The integers.
        errors: Ŵ − W [m, n] float32.
        residual_sums, residual_counts: float64 [classes, 2], for centroids; zero where the plan uses none.
    """

    quantized: Quantized
    errors: Array
    residual_sums: Array
    residual_counts: Array
