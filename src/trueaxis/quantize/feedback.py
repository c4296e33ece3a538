"""Noise feedback: carries out a plan at one c. One loop over blocks of columns, every block a matrix product.

    t_j = w_j − Σ_{i>j} e_i C_ij / C_jj      k_j = round(t_j / Δ_j)      e_j = ŵ_j − w_j      D = ‖E C‖²

Columns are visited from the last to the first in the plan's order. A block of columns first takes up the errors of all
columns visited before it, by one product; inside it the C++ core quantizes column by column, along the plan's trellis
(cpp/feedback.hpp).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from trueaxis import _core
from trueaxis.entropy.model import CLASSES, CODES_PER_OCTAVE, ZERO_CLASS, Tables
from trueaxis.quantize.grid import OCTAVE, column_groups, nearest_codes, resolution_for, steps
from trueaxis.quantize.outcome import Outcome
from trueaxis.quantize.plan import Plan, shift_for
from trueaxis.quantize.rescale import gain_code, rescaled
from trueaxis.types import Array, Contexts, Grid, Quantized

BLOCK = 64


def grid_at(plan: Plan, c: float) -> Grid:
    """The plan's steps times c, as codes of the file.

    c goes to the codes that differ from each other, so that the size of the file is a smooth function of c.
    """
    columns = plan.weight.shape[1]
    varied_columns, varied_rows = np.ptp(plan.column_steps) > 0, np.ptp(plan.row_steps) > 0
    samples = plan.all_rows if varied_columns else min(plan.group, columns)
    resolution = plan.resolution or (resolution_for(samples) if varied_columns or varied_rows else OCTAVE)
    to_columns, to_rows = (c, 1.0) if varied_columns else (1.0, c)
    return Grid(
        nearest_codes(plan.column_steps * to_columns, resolution),
        nearest_codes(plan.row_steps * to_rows, resolution),
        resolution,
        plan.group,
    )


@dataclass(frozen=True, eq=False)
class _Block:
    """Some columns being quantized, in visiting order.

    Attributes:
        order: int [B], the columns.
        grid: Steps of the whole matrix.
        feedback: C_ij / C_jj [B, B] inside the block, or None.
        weights, targets: w and t [B, m]; targets change in place.
        call: (columns of the block, their feedback) to (k, errors, scale codes) of the core, at the steps of the grid.
    """

    order: Array
    grid: Grid
    feedback: Array | None
    weights: Array
    targets: Array
    call: Callable[[_Block, slice, Array | None], tuple[Array, Array, Array]]


Rounded = tuple[Array, Array, Array, Array]  # k, errors, scale codes, codes of the gains


def _round_plainly(block: _Block) -> Rounded:
    """The whole block in the core; all gains are 1."""
    return *block.call(block, slice(None), block.feedback), np.zeros(block.order.size, np.int32)


def _round_with_gains(block: _Block) -> Rounded:
    """Column by column: the gain of a finished column changes its step, and the gained error is what is fed back."""
    finished = []
    for j in range(block.order.size - 1, -1, -1):
        column = slice(j, j + 1)
        indices, errors, scale_codes = block.call(block, column, None)
        gain = gain_code(block.targets[j], block.weights[j] + errors[0])
        errors = 2 * indices.astype(np.float32) * _step(block, j, gain) - block.weights[column]
        if block.feedback is not None:
            block.targets[:j] -= block.feedback[column, :j].T @ errors
        finished.append((indices, errors, scale_codes, np.array([gain], np.int32)))
    indices, errors, scale_codes, gains = (np.concatenate(parts) for parts in zip(*reversed(finished), strict=True))
    return indices, errors, scale_codes, gains


def _step(block: _Block, j: int, gain: int) -> Array:
    """Steps [m] of column j of the block, gained."""
    column, grid = block.order[j : j + 1], block.grid
    rows = steps(grid.row_codes[:, column[0] // grid.group], grid.resolution)
    return rows * steps(grid.column_codes[column] + gain, grid.resolution)


def _keep(plan: Plan, outcome: Outcome) -> Outcome:
    return outcome


ROUNDERS = {"plain": _round_plainly, "gains": _round_with_gains}
REFITS = {"none": _keep, "rescalers": rescaled}


def quantize(plan: Plan, c: float, tables: Tables) -> Outcome:
    """Carries out `plan` with every step times c, rounding against the coder's `tables`.

    Args:
        plan: From one of the planners.
        c: Common factor of all steps.
        tables: Code lengths and reconstruction offsets to round with; the offsets must be those of the file.
    """
    rows, columns = plan.weight.shape
    grid, shift, row_codes = grid_at(plan, c), shift_for(plan.all_rows), plan.row_scale_codes
    column_steps, groups = steps(grid.column_codes, grid.resolution), column_groups(grid)
    row_steps = np.ascontiguousarray(steps(grid.row_codes, grid.resolution))
    sums, counts = np.zeros((2, CLASSES, 2)), np.zeros((2, CLASSES, 2))
    offsets = tables.offsets.astype(np.float32) / 64 if plan.centroids else np.zeros((2, CLASSES, 2), np.float32)
    bits = tables.code_bits()

    def call(block: _Block, part: slice, feedback: Array | None) -> tuple[Array, Array, Array]:
        return _core.quantize_block(
            block.weights[part], block.targets[part], feedback, column_steps[block.order[part]], row_steps,
            groups[block.order[part]], row_codes, shift, CODES_PER_OCTAVE << shift,
            (ZERO_CLASS << shift) + (1 << shift) // 2, bits, offsets, tables.escape_orders, 4.0 * plan.rate_weight,
            plan.trellis, sums, counts,
        )  # fmt: skip

    weights = torch.from_numpy(plan.weight).t().contiguous().numpy()
    indices, errors = np.empty((columns, rows), np.int32), np.empty((columns, rows), np.float32)
    scale_codes, gains = np.empty(columns, np.int32), np.empty(columns, np.int32)
    for stop in range(columns, 0, -BLOCK):
        visiting, visited = slice(max(0, stop - BLOCK), stop), slice(stop, columns)
        order = plan.order[visiting]
        inside = None if plan.feedback is None else np.ascontiguousarray(plan.feedback[visiting, visiting])
        block = _Block(order, grid, inside, weights[order], weights[order], call)
        if plan.feedback is not None:
            moved = torch.from_numpy(plan.feedback)[visited, visiting].t()
            torch.from_numpy(block.targets).addmm_(moved, torch.from_numpy(errors[visited]), alpha=-1)
        indices[order], errors[visiting], scale_codes[order], gains[order] = ROUNDERS[plan.rounding](block)
    grid = replace(grid, column_codes=grid.column_codes + gains)
    quantized = Quantized(indices, grid, Contexts(row_codes, scale_codes, shift), plan.trellis, plan.centroids)
    learned = float(plan.centroids)
    outcome = Outcome(quantized, learned * sums, learned * counts, errors, plan.order)
    return REFITS[plan.refit](plan, outcome)
