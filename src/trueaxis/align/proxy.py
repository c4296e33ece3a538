"""A rate that has a gradient: what one matrix takes and loses, as a smooth function of its axes.

    W [m, n], H [n, n] ─▶ steps c / C_jj ─▶ y = t/Δ with fed-back errors ─▶ bits of y + uniform noise, λ·D

The quantizer's recursion is relaxed in two places. Rounding becomes noise that is uniform on (−½, ½), followed by the
gain that leaves the least error at the column's energy u, so that a column far below its step loses u and not 1/12. The
errors that a column takes up are those which the others would make without feedback. Code lengths are those of the
coder's scale model: every weight at the mean |k| of its row and column, Gaussian there as the first tables are.

References: Ballé, Laparra & Simoncelli 2017, End-to-end Optimized Image Compression (uniform noise).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trueaxis.align.estimate import DAMPING, SLOPE, TINY
from trueaxis.entropy.model import ABSENT_BITS
from trueaxis.types import CalibrationError

if TYPE_CHECKING:
    import torch

ROUNDING = 1 / 12  # mean square of uniform noise, in steps²
SMALLEST_SCALE = 2.0**-6  # of mean |k|: hardly a column lies lower


class Relaxed(NamedTuple):
    """Sums over the rows given: bits by both proxies, λ·D in bits; and y [m, n] in steps, columns as visited."""

    noise_bits: torch.Tensor
    sparsity_bits: torch.Tensor
    distortion_bits: torch.Tensor
    scaled: torch.Tensor


class Visit(NamedTuple):
    """Cholesky factor of a metric: `order` int [n], `lower` C [n, n] in that order, differentiable."""

    order: torch.Tensor
    lower: torch.Tensor


def visit(moment: torch.Tensor) -> Visit:
    """Columns by descending energy and H + δI = C Cᵀ in that order, δ growing until there is one.

    Raises:
        CalibrationError: H is not finite.
    """
    import torch

    energy = moment.diagonal()
    order = torch.argsort(energy.detach(), descending=True, stable=True)
    sorted_moment, identity = moment[order][:, order], torch.eye(energy.numel())
    damping = DAMPING
    while True:  # ends: a multiple of I above the spectral radius is reached, or the moment is not finite
        factor, failure = torch.linalg.cholesky_ex(sorted_moment + (damping * energy.mean() + TINY) * identity)
        if not int(failure):
            return Visit(order, factor)
        if damping > 1 / TINY:
            raise CalibrationError(f"metric {list(moment.shape)} is too large or not finite; calibrate again")
        damping *= 10


def relaxed(
    weight: torch.Tensor, visited: Visit, unit: float, rows: torch.Tensor, share: torch.Tensor, noise: torch.Tensor
) -> Relaxed:
    """Rate and distortion of some rows of a matrix, with a gradient in `weight` and in the factor.

    Args:
        weight: [rows, n] in the axes tried.
        visited: Factor of its metric.
        unit: √g / c: the step of column j is 1 / (unit · C_jj).
        rows: [rows], 1 / step of each row relative to the others.
        share: [rows], what an error of one step costs relative to others: ρ · row step².
        noise: [rows, n], uniform on (−½, ½).
    """
    import torch

    diagonal = visited.lower.diagonal()
    plain = weight[:, visited.order] * (unit * diagonal) * rows[:, None]
    feedback = (visited.lower / diagonal).tril(-1)  # C_ij / C_jj, errors in units of their own step
    scaled = plain - _errors(plain, noise) @ feedback
    errors = _errors(scaled, noise)
    sparsity = torch.log2(1 + scaled.abs()).sum()
    return Relaxed(_code_bits(scaled, noise).sum(), sparsity, SLOPE * (errors.square().sum(1) * share).sum(), scaled)


def _errors(scaled: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """ŷ − y of noise with the Wiener gain of each column's energy."""
    energy = scaled.square().mean(dim=0, keepdim=True)
    gain = energy / (energy + ROUNDING)
    return gain * noise - (1 - gain) * scaled


def _code_bits(scaled: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """−log₂ P(y + noise) for a Gaussian of the row's and the column's scale, rounded to whole steps."""
    import torch

    magnitude = scaled.abs()
    columns = magnitude.mean(dim=0, keepdim=True)
    rows = (magnitude / columns.clamp_min(TINY)).mean(dim=1, keepdim=True)
    deviation = (rows / rows.mean().clamp_min(TINY) * columns).clamp_min(SMALLEST_SCALE) * np.sqrt(np.pi / 2)
    found, scale = (scaled + noise).abs(), deviation * np.sqrt(2)
    probability = 0.5 * (torch.erfc((found - 0.5) / scale) - torch.erfc((found + 0.5) / scale))
    return -torch.log2(probability.clamp_min(2.0**-ABSENT_BITS))
