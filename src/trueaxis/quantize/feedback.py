"""Noise feedback: carries out a plan at one c. One loop over blocks of columns, every block a matrix product.

    t_j = w_j − Σ_{i>j} e_i C_ij / C_jj      k_j = round(t_j / Δ_j)      e_j = ŵ_j − w_j      D = ‖E C‖²

Columns are visited from the last to the first in the plan's order. Inside a block the C++ core quantizes column by
column, along the plan's trellis (cpp/feedback.hpp); the errors of a finished block then reach all remaining columns
by one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from trueaxis import _core
from trueaxis.entropy.model import CLASSES, CODES_PER_OCTAVE, ZERO_CLASS, Tables
from trueaxis.quantize.grid import OCTAVE, column_groups, nearest_codes, resolution_for, steps
from trueaxis.quantize.plan import Plan, shift_for
from trueaxis.types import Array, Contexts, Grid, Quantized

BLOCK = 64


@dataclass(frozen=True, eq=False)
class Outcome:
    """One quantized matrix and what the next pass can learn from it.

    Attributes:
        quantized: The integers.
        residual_sums, residual_counts: float64 [2, classes, 2], for centroids.
        visited_errors: Errors of the columns [n, m] float32, in the plan's order.
        order: The plan's order.
    """

    quantized: Quantized
    residual_sums: Array
    residual_counts: Array
    visited_errors: Array
    order: Array

    @cached_property
    def errors(self) -> Array:
        """Ŵ − W [m, n] float32."""
        return np.ascontiguousarray(self.visited_errors[np.argsort(self.order)].T)


def grid_at(plan: Plan, c: float) -> Grid:
    """The plan's steps times c, as codes of the file.

    c goes to the codes that differ from each other, so that the size of the file is a smooth function of c.
    """
    rows, columns = plan.weight.shape
    varied_columns, varied_rows = np.ptp(plan.column_steps) > 0, np.ptp(plan.row_steps) > 0
    samples = rows if varied_columns else min(plan.group, columns)
    resolution = resolution_for(samples) if varied_columns or varied_rows else OCTAVE
    to_columns, to_rows = (c, 1.0) if varied_columns else (1.0, c)
    return Grid(
        nearest_codes(plan.column_steps * to_columns, resolution),
        nearest_codes(plan.row_steps * to_rows, resolution),
        resolution,
        plan.group,
    )


def quantize(plan: Plan, c: float, tables: Tables) -> Outcome:
    """Carries out `plan` with every step times c, rounding against the coder's `tables`.

    Args:
        plan: From one of the planners.
        c: Common factor of all steps.
        tables: Code lengths and reconstruction offsets to round with; the offsets must be those of the file.
    """
    rows, columns = plan.weight.shape
    grid = grid_at(plan, c)
    shift = shift_for(rows)
    row_codes = plan.row_scale_codes
    order = plan.order
    column_steps = steps(grid.column_codes[order], grid.resolution)
    row_steps = np.ascontiguousarray(steps(grid.row_codes, grid.resolution))
    groups = np.ascontiguousarray(column_groups(grid)[order])
    weights = torch.from_numpy(plan.weight).t().contiguous().numpy()[order]
    targets = torch.from_numpy(weights.copy())
    indices = np.empty((columns, rows), np.int32)
    errors = np.empty((columns, rows), np.float32)
    column_codes = np.empty(columns, np.int32)
    sums, counts = np.zeros((2, CLASSES, 2)), np.zeros((2, CLASSES, 2))
    offsets = tables.offsets.astype(np.float32) / 64 if plan.centroids else np.zeros((2, CLASSES, 2), np.float32)
    bits = tables.code_bits()
    for stop in range(columns, 0, -BLOCK):
        start = max(0, stop - BLOCK)
        block = slice(start, stop)
        feedback = None if plan.feedback is None else np.ascontiguousarray(plan.feedback[block, block])
        indices[block], errors[block], column_codes[block] = _core.quantize_block(
            weights[block], targets[block].numpy(), feedback, column_steps[block], row_steps, groups[block],
            row_codes, shift, CODES_PER_OCTAVE << shift, (ZERO_CLASS << shift) + (1 << shift) // 2,
            bits, offsets, tables.escape_orders, 4.0 * plan.rate_weight, plan.trellis,
            sums, counts,
        )  # fmt: skip
        if plan.feedback is not None and start > 0:
            factor = torch.from_numpy(plan.feedback[block, :start])
            targets[:start] -= factor.T @ torch.from_numpy(errors[block])
    back = np.argsort(order)
    contexts = Contexts(row_codes, np.ascontiguousarray(column_codes[back]), shift)
    quantized = Quantized(np.ascontiguousarray(indices[back]), grid, contexts, plan.trellis, plan.centroids)
    return Outcome(quantized, sums, counts, errors, order)
