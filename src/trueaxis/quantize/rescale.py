"""Gains and rescalers of WaterSIC: steps chosen once more after the integers are known. They cost bytes, never symbols.

    column of k ─▶ gain_code ─▶ its step, gained; the loop feeds the gained error back
    all of k ─▶ rescaled ─▶ row and column steps that minimize D = ‖(diag(r) Ŵ diag(a) − W) C‖²

A gain is a multiple of 1/32 octave, so that it rides on the step codes of the file. Reference: WaterSIC
(arXiv:2603.04956), column LMMSE gains and diagonal rescalers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trueaxis.metric.metric import distance
from trueaxis.quantize.grid import OCTAVE, steps
from trueaxis.quantize.outcome import Outcome
from trueaxis.quantize.plan import Plan
from trueaxis.types import Array

LARGEST_GAIN = OCTAVE  # codes: a factor of 2 either way
ALTERNATIONS = 3
PULL = 1e-9  # toward a gain of 1, relative to the mean of the normal equations' diagonal


def gain_code(target: Array, rebuilt: Array) -> int:
    """Code of the least-squares gain ⟨t, q⟩ / ⟨q, q⟩ of one column; 0 where the column is zero."""
    energy = float(rebuilt @ rebuilt)
    return int(_codes(np.array(float(target @ rebuilt) / energy if energy > 0 else 1.0)))


def rescaled(plan: Plan, outcome: Outcome) -> Outcome:
    """The same integers with row and column steps fitted by alternating least squares; D never rises.

    Args:
        plan: Its weight and metric; the grid must have one step per row and OCTAVE codes per octave.
        outcome: Of carrying out the plan.
    """
    weight = plan.weight.astype(np.float64)
    rebuilt = weight + outcome.errors
    moment = np.eye(weight.shape[1]) if plan.metric.second_moment is None else plan.metric.second_moment
    columns = np.ones(weight.shape[1])
    for _ in range(ALTERNATIONS):
        rows = _row_gains(rebuilt * columns, weight, moment)
        rows /= np.exp(np.log(rows).mean())
        columns = _column_gains(rebuilt * rows[:, None], weight, moment)
    row_codes = _codes(rows)
    columns = _column_gains(rebuilt * steps(row_codes, OCTAVE)[:, None], weight, moment)
    column_codes = _codes(columns)
    errors = (rebuilt * steps(row_codes, OCTAVE)[:, None] * steps(column_codes, OCTAVE) - weight).astype(np.float32)
    if distance(errors, plan.metric) >= distance(outcome.errors, plan.metric):
        return outcome
    old = outcome.quantized.grid
    grid = replace(old, column_codes=old.column_codes + column_codes, row_codes=old.row_codes + row_codes[:, None])
    return replace(
        outcome,
        quantized=replace(outcome.quantized, grid=grid),
        visited_errors=np.ascontiguousarray(errors.T[outcome.order]),
    )


def _row_gains(rebuilt: Array, weight: Array, moment: Array) -> Array:
    """rᵢ = (ŵᵢ H wᵢᵀ) / (ŵᵢ H ŵᵢᵀ), within the range of gains; 1 for a row of zeros."""
    moved = rebuilt @ moment
    energy = np.einsum("ij,ij->i", moved, rebuilt)
    found = np.divide(np.einsum("ij,ij->i", moved, weight), energy, out=np.ones(len(energy)), where=energy > 0)
    return _bounded(found)


def _column_gains(rebuilt: Array, weight: Array, moment: Array) -> Array:
    """a of ((ŴᵀŴ) ∘ H) a = diag(Ŵᵀ W H), within the range of gains; 1 for a column of zeros."""
    normal = (rebuilt.T @ rebuilt) * moment
    pull = PULL * (float(np.diag(normal).mean()) or 1.0)
    right = np.einsum("ij,ij->j", rebuilt, weight @ moment) + pull
    normal[np.diag_indices_from(normal)] += pull
    return _bounded(np.linalg.solve(normal, right))


def _bounded(gains: Array) -> Array:
    return np.clip(gains, 2.0 ** (-LARGEST_GAIN / OCTAVE), 2.0 ** (LARGEST_GAIN / OCTAVE))


def _codes(gains: Array) -> Array:
    return np.rint(np.log2(_bounded(gains)) * OCTAVE).astype(np.int32)
