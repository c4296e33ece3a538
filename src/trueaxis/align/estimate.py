"""Estimate: the rate of all matrices of one space along axes, by which axes are judged.

    terms (who reads and writes the space), axes ─▶ energies along them, what they are worth ─▶ rate + λ·distortion

In single precision: moments and covariances are brought to sizes that it holds, by powers of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from trueaxis.parallel import ordered_map
from trueaxis.types import Array, CalibrationError

STEP_ENERGY = 17.0  # ½ log₂(1 + 17 u) bits for u = σ²/Δ²: an entropy-coded uniform quantizer from low to high rate
ERRORS = 12.0  # its error: u / (1 + 12 u) steps², all of u at low rate, 1/12 at high rate
SLOPE = ERRORS / (2 * math.log(2))  # bits that a step² of distortion is worth there, −dR/dD at high rate
DAMPING = 1e-3
TINY = 1e-20


@dataclass(frozen=True, eq=False)
class Term:
    """One matrix, or several alike, as the space sees it.

    Attributes:
        covariance: S [n, n]: mean of w wᵀ over its rows (a reader) or columns (a writer), as vectors of the space.
        count: Number of those vectors.
        moment: H [n, n] for a reader; None for a writer or a table, whose errors cost the same in every direction.
        level: What squared error is worth: g of the matrix, times the other side's part for a writer.
    """

    covariance: Array
    count: int
    moment: Array | None
    level: float


def estimated_bits(axes: Array, terms: Sequence[Term], water: float, threads: int = 1) -> float:
    """Estimated rate + λ·distortion per weight, in bits, at steps² of `water` / (level · C_jj²): to compare axes by.

    Example:
        >>> term = Term(np.diag([4.0, 1.0]), 10, None, 1.0)
        >>> turned = np.array([[0.6, 0.8], [-0.8, 0.6]])
        >>> estimated_bits(np.eye(2), [term], 0.1) < estimated_bits(turned, [term], 0.1)
        True
    """
    return _bits_along(axes, Stacked(terms, water, threads))


def saved_bits(axes: Array, terms: Sequence[Term], water: float, threads: int = 1) -> float:
    """What axes save per weight against the checkpoint's own, by gathered terms."""
    stacked = Stacked(gathered(terms), water, threads)
    return own_bits(stacked) - _bits_along(axes, stacked)


def _bits_along(axes: Array, stacked: Stacked) -> float:
    return total_bits(levels_of(torch.from_numpy(axes.astype(np.float32, order="C")), stacked))


def gathered(terms: Sequence[Term]) -> list[Term]:
    """One term for all that share a moment: cheaper to judge by, and blind to what sets them apart."""
    found = []
    for alike in _by_moment(terms):
        count, worth = sum(term.count for term in alike), sum(term.count * term.level for term in alike)
        covariance = np.sum([term.count * term.level * term.covariance for term in alike], axis=0) / (worth or 1.0)
        found.append(Term(covariance, count, alike[0].moment, worth / max(count, 1)))
    return found


def size_of(terms: Sequence[Term]) -> int:
    """Coordinates of the space."""
    return terms[0].covariance.shape[0]


def _by_moment(terms: Sequence[Term]) -> list[list[Term]]:
    shared: dict[int, list[Term]] = {}
    for term in terms:
        shared.setdefault(id(term.moment), []).append(term)
    return list(shared.values())


class _Group(NamedTuple):
    """Terms that share a moment, in float32: what a direction is worth [n, n], or in every one alike; level·S [t, n, n]
    in units that make up for it; counts over all weights [t]."""

    worth: torch.Tensor | float
    covariances: torch.Tensor
    counts: torch.Tensor


class Stacked:
    """Terms gathered by the moment they share; groups are worked on side by side, and summed in order.

    A moment over the water has no sizes that float32 could not hold: powers of two are moved to the covariances.
    """

    def __init__(self, terms: Sequence[Term], water: float, threads: int) -> None:
        self.threads, weights = threads, sum(term.count for term in terms) * size_of(terms)
        self.groups = [_group(group, water, weights) for group in _by_moment(terms)]


def _group(terms: Sequence[Term], water: float, weights: int) -> _Group:
    level, octaves = math.frexp(water)
    moment, size = (1.0, 0) if terms[0].moment is None else in_float32(terms[0].moment)
    energies = [np.ldexp(term.covariance * term.level, size - octaves) for term in terms]
    return _Group(
        moment / level,
        torch.from_numpy(np.stack(energies)).float(),
        torch.tensor([float(term.count) for term in terms]) / weights,
    )


class _Sorted(NamedTuple):
    """A moment along the axes [n, n], these in visiting order [n]."""

    order: torch.Tensor
    values: torch.Tensor


class Level(NamedTuple):
    """Of a group: its counts [t], energies along the axes [t, n], what makes steps² of them [n], fed-back error in
    steps² [t, n], and the group's bits per weight of all."""

    counts: torch.Tensor
    energies: torch.Tensor
    worth: torch.Tensor
    fed_back: torch.Tensor
    bits: torch.Tensor


def _level(axes: torch.Tensor, group: _Group) -> Level:
    """Differentiable in the axes: what is linear in them is multiplied by S or H once, and never again backward."""
    fixed = axes.detach()
    energies = ((fixed @ group.covariances) * (2 * axes - fixed)).sum(dim=2)  # rᵀSr has the gradient 2Sr
    if not isinstance(group.worth, torch.Tensor):
        return _judged(group, energies, None)
    moved = fixed @ group.worth
    order = _visiting((moved * fixed).sum(dim=1))
    half = axes[order] @ moved[order].T
    return _judged(group, energies, _Sorted(order, half + half.T - half.detach()))


def _own_level(group: _Group) -> Level:
    """`_level` of the own axes."""
    energies = group.covariances.diagonal(dim1=1, dim2=2)
    if not isinstance(group.worth, torch.Tensor):
        return _judged(group, energies, None)
    order = _visiting(group.worth.diagonal())
    return _judged(group, energies, _Sorted(order, group.worth[order][:, order]))


def _visiting(energies: torch.Tensor) -> torch.Tensor:
    """The order of a matrix's columns: those of least energy are visited first, from the end."""
    return torch.argsort(energies, descending=True, stable=True)


def _judged(group: _Group, energies: torch.Tensor, moment: _Sorted | None) -> Level:
    """A group whose matrices have these energies [t, n] along the axes, at its moment along them."""
    energies = energies.clamp_min(0)
    if moment is None:
        worth, fed_back = torch.full_like(energies[0], float(group.worth)), torch.zeros_like(energies)
    else:
        worth, fed_back = _fed_back(moment, energies)
    steps = energies * worth + fed_back
    cost = 0.5 * torch.log2(1 + STEP_ENERGY * steps) + SLOPE * steps / (1 + ERRORS * steps)
    return Level(group.counts, energies, worth, fed_back, (group.counts[:, None] * cost).sum())


def levels_of(axes: torch.Tensor, stacked: Stacked) -> list[Level]:
    """Every group along the axes [n, n], these in rows."""
    return ordered_map(lambda group: _level(axes, group), stacked.groups, stacked.threads)


def own_bits(stacked: Stacked) -> float:
    """Bits per weight of all in the checkpoint's own axes, where nothing has to turn."""
    return total_bits(ordered_map(_own_level, stacked.groups, stacked.threads))


def total_bits(levels: Sequence[Level]) -> float:
    """Bits per weight of all."""
    return sum(level.bits.item() for level in levels)


def _fed_back(moment: _Sorted, energies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """C_jj² [n] and Σ_{i>j} eᵢ² C_ij² [t, n]: errors of coordinates visited before j, which its target takes up."""
    squares = damped_factor(moment.values).square()
    worth, sorted_energies = squares.diagonal(), energies[:, moment.order]
    errors = sorted_energies / (1 + ERRORS * sorted_energies * worth)
    back = torch.argsort(moment.order)
    return worth[back], (errors @ squares.tril(-1))[:, back]


def in_float32(moment: Array) -> tuple[torch.Tensor, int]:
    """A moment [n, n] of any size over the power of two that brings it to about 1, and the exponent of that."""
    octaves = math.frexp(float(np.diag(moment).mean()))[1]
    return torch.from_numpy(np.ldexp(moment, -octaves)).float(), octaves


def damped_factor(moment: torch.Tensor) -> torch.Tensor:
    """Lower Cholesky factor of H + δ·mean(diag H)·I, δ growing until there is one."""
    identity, mean, damping = torch.eye(moment.shape[0]), moment.diagonal().mean(), DAMPING
    while True:  # ends: a multiple of I above the spectral radius is reached, or the moment is not finite
        factor, failure = torch.linalg.cholesky_ex(moment + (damping * mean + TINY) * identity)
        if not int(failure):
            return factor
        if damping > 1 / TINY:
            raise CalibrationError(f"metric {list(moment.shape)} is too large or not finite; calibrate again")
        damping *= 10
