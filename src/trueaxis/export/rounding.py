"""Rounding to integers of few bits with a scale per row and group of columns, by noise feedback in a metric.

W [m, n], H [n, n] ─▶ scales [m, n / group] ─▶ column by column, errors fed into the columns that follow ─▶ k, scales

The layout fixes the rate, so that what is left to choose are the scales and, for every weight, which way to round:
D = ‖E C‖² with H = C Cᵀ is the sum of C_jj² times the squared error of what column j was to be after feedback. Scales
minimize that sum for nearest rounding. The highest energy is visited first, which leaves the C_jj as equal as an order
can: with equal steps in all columns, D is their mean square.

References: GPTQ (arXiv:2210.17323); docs/theory.md on feedback.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.quantize.plan import Factor, factorize
from trueaxis.types import Array

if TYPE_CHECKING:
    import torch

BLOCK = 64  # columns that are fed into each other one by one
DAMPING = 0.01
SHRINKS = np.linspace(0.5, 1.1, 25)  # of the scale at which the largest magnitude is just reached


@dataclass(frozen=True, eq=False)
class Rounded:
    """Integers k [m, n] int8 and scales [m, n / group] in the dtype they are stored in: W ≈ k · scale."""

    indices: torch.Tensor
    scales: torch.Tensor

    def values(self) -> torch.Tensor:
        """float32 [m, n]."""
        group = self.indices.shape[1] // self.scales.shape[1]
        return self.indices.float() * self.scales.float().repeat_interleave(group, dim=1)


def round_groups(weight: torch.Tensor, moment: Array | None, bits: int, group: int, dtype: torch.dtype) -> Rounded:
    """Rounds a matrix.

    Args:
        weight: W [m, n] float32; n is a multiple of `group`.
        moment: H [n, n] float64, or None for rounding to the nearest.
        bits: Of an integer, which lies in −2^(bits−1) … 2^(bits−1) − 1.
        group: Columns that share a scale.
        dtype: Of the scales.

    Example:
        >>> import torch
        >>> round_groups(torch.tensor([[1.0, -0.5]]), None, 8, 2, torch.float32).values().round(decimals=2).tolist()
        [[1.0, -0.5]]
    """
    import torch

    factor = None if moment is None else factorize(moment, DAMPING, "ascending")
    costs = torch.ones(weight.shape[1])
    if factor is not None:
        costs[torch.from_numpy(factor.order)] = torch.from_numpy(factor.diagonal).float() ** 2
    scales = _scales(weight, costs, bits, group).to(dtype)
    steps = scales.float().repeat_interleave(group, dim=1)
    indices = _nearest(weight, steps, bits) if factor is None else _fed_back(weight, steps, bits, factor)
    return Rounded(indices.to(torch.int8), scales)


def _nearest(values: torch.Tensor, steps: torch.Tensor, bits: int) -> torch.Tensor:
    half = 1 << (bits - 1)
    return (values / steps).round_().clamp_(-half, half - 1)


def _scales(weight: torch.Tensor, costs: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Of every row and group the scale of `SHRINKS` with the least cost of nearest rounding; 1 where all are zeros."""
    import torch

    groups = weight.reshape(weight.shape[0], -1, group)
    largest = groups.abs().amax(dim=2) / ((1 << (bits - 1)) - 0.5)
    largest[largest == 0] = 1.0
    weights, best, found = costs.reshape(-1, group), torch.full_like(largest, torch.inf), largest
    for shrink in SHRINKS:
        steps = (largest * float(shrink))[:, :, None]
        lost = ((_nearest(groups, steps, bits) * steps - groups).square_() * weights).sum(dim=2)
        found = torch.where(lost < best, steps[:, :, 0], found)
        best = torch.minimum(lost, best)
    return found


def _fed_back(weight: torch.Tensor, steps: torch.Tensor, bits: int, factor: Factor) -> torch.Tensor:
    """k [m, n]: every column rounded after the errors of those before it were taken out of it."""
    import torch

    order, feedback = torch.from_numpy(factor.order), torch.from_numpy(factor.feedback)
    ordered, scales = weight.T[order].contiguous(), steps.T[order].contiguous()
    targets, indices, errors = ordered.clone(), torch.empty_like(ordered), torch.empty_like(ordered)
    for stop in range(len(order), 0, -BLOCK):
        start = max(0, stop - BLOCK)
        targets[start:stop].addmm_(feedback[stop:, start:stop].T, errors[stop:], alpha=-1)
        for j in range(stop - 1, start - 1, -1):
            indices[j] = _nearest(targets[j], scales[j], bits)
            errors[j] = indices[j] * scales[j] - ordered[j]
            targets[start:j].addr_(feedback[j, start:j], errors[j], alpha=-1)
    found = torch.empty_like(weight)
    found[:, order] = indices.T
    return found
