"""Axes of one space: candidates, and the estimated rate by which they are judged.

    terms (who reads and writes the space) ─▶ axes ─▶ R [n, n] orthogonal, its rows the new axes
                                          └─▶ estimated_bits(R): what every matrix would take there

At high rate Σ log C_jj is the same for every orthogonal R, so metric-aligned axes pay through columns that fall below
the water level; axes that follow the weights' own covariance pay at every rate. `joint` minimizes the two together,
over all matrices of the space at once.

References: Ablin, Cardoso & Gramfort 2019, Beyond Pham's algorithm for joint diagonalization (quasi-Newton on the
orthogonal group); QuaRot (arXiv:2404.00456) for rotation of the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trueaxis.parallel import ordered_map
from trueaxis.types import Array, CalibrationError

if TYPE_CHECKING:
    import torch

STEP_ENERGY = 17.0  # ½ log₂(1 + 17 u) bits for u = σ²/Δ²: an entropy-coded uniform quantizer from low to high rate
ERRORS = 12.0  # its error: u / (1 + 12 u) steps², all of u at low rate, 1/12 at high rate
SLOPE = ERRORS / (2 * math.log(2))  # bits that a step² of distortion is worth there, −dR/dD at high rate
DAMPING = 1e-3
TINY = 1e-20
ITERATIONS = 8  # twelve change the rate by 0.002 bits more
CURVATURE_FLOOR = 0.01
LARGEST_ANGLE = 0.2
HALVINGS = 6
NEWTON_STEPS = 3
PATIENCE = 3e-5  # of the bits: an iteration that gains less is the last


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


Axes = Callable[[Sequence[Term], float, int, int], Array]
"""(terms, water level c², seed, workers) ─▶ R [n, n], the same for any number of workers."""


def estimated_bits(axes: Array, terms: Sequence[Term], water: float, threads: int = 1) -> float:
    """Estimated rate + λ·distortion per weight, in bits, at steps² of `water` / (level · C_jj²): to compare axes by.

    Example:
        >>> term = Term(np.diag([4.0, 1.0]), 10, None, 1.0)
        >>> turned = np.array([[0.6, 0.8], [-0.8, 0.6]])
        >>> estimated_bits(np.eye(2), [term], 0.1) < estimated_bits(turned, [term], 0.1)
        True
    """
    import torch

    turned = torch.from_numpy(axes.astype(np.float32, order="C"))
    return _total_bits(_levels(turned, _Stacked(terms, water, threads)))


def identity(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """The checkpoint's own axes."""
    return np.eye(_size(terms))


def random_orthogonal(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Haar-distributed: stabilizes, blind to structure."""
    from scipy.stats import ortho_group

    return ortho_group.rvs(_size(terms), random_state=seed) if _size(terms) > 1 else np.eye(1)


def hadamard(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Signed Hadamard of any size: Sylvester's for the power of two in n, an orthogonal DCT for the odd rest."""
    from scipy.fft import dct
    from scipy.linalg import hadamard as sylvester

    size = _size(terms)
    power = size & -size
    flat = sylvester(power) / np.sqrt(power)
    rest = dct(np.eye(size // power), norm="ortho", axis=0)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size)
    return np.kron(rest, flat) * signs


def pca_weights(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Principal axes of the weights' own covariance."""
    return _principal(_total(terms))


def pca_metric(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Principal axes of what is read, each reader weighed by its sensitivity; own axes where nothing is read."""
    read = _read(terms)
    return np.eye(_size(terms)) if read is None else _principal(read)


def pca_joint(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Principal axes of Σ_W^½ H Σ_W^½: directions in which large weights meet large inputs."""
    weights, read = _total(terms), _read(terms)
    if read is None:
        return _principal(weights)
    values, vectors = _eigen(weights)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return _principal(root @ read @ root)


def joint(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Approximate joint diagonalization of all terms by estimated rate, from the better of the principal axes.

    A quasi-Newton step on the orthogonal group: the gradient in the angle of each pair of axes, divided by the
    curvature that the covariances' diagonals imply, then halved until the rate falls.
    """
    import torch

    starts = [axes(terms, water, seed, threads) for axes in (identity, pca_weights, pca_metric, pca_joint)]
    together = gathered(terms)  # which start is best is plain enough from these
    start = min(starts, key=lambda axes: estimated_bits(axes, together, water, threads))
    stacked = _Stacked(terms, water, threads)
    point = _point(torch.from_numpy(start.astype(np.float32, order="C")), stacked)
    for _ in range(ITERATIONS):
        found = _searched(point, stacked)
        if found is None:
            break
        before, point = point.bits, found
        if before - point.bits < PATIENCE * before:
            break
    return _orthogonal(point.axes.detach())


AXES: dict[str, Axes] = {
    "identity": identity,
    "random": random_orthogonal,
    "hadamard": hadamard,
    "pca-weights": pca_weights,
    "pca-metric": pca_metric,
    "pca-joint": pca_joint,
    "joint": joint,
}


def gathered(terms: Sequence[Term]) -> list[Term]:
    """One term for all that share a moment: cheaper to judge by, and blind to what sets them apart."""
    shared: dict[int, list[Term]] = {}
    for term in terms:
        shared.setdefault(id(term.moment), []).append(term)
    found = []
    for alike in shared.values():
        count, worth = sum(term.count for term in alike), sum(term.count * term.level for term in alike)
        covariance = np.sum([term.count * term.level * term.covariance for term in alike], axis=0) / (worth or 1.0)
        found.append(Term(covariance, count, alike[0].moment, worth / max(count, 1)))
    return found


def best(
    names: Sequence[str], terms: Sequence[Term], water: float, seed: int, threads: int = 1
) -> tuple[str, Array, float]:
    """The candidate with the smallest estimated rate; earlier names win ties, so put the free one first.

    Returns:
        Its name, its axes, and the estimated bits per weight that they save against the checkpoint's own.
    """
    found = {name: AXES[name](terms, water, seed, threads) for name in names}
    terms = terms if len(names) > 1 else gathered(terms)  # nothing hangs on what the only candidate saves
    bits = {name: estimated_bits(axes, terms, water, threads) for name, axes in found.items()}
    own = bits.get("identity") or estimated_bits(np.eye(_size(terms)), terms, water, threads)
    name = min(names, key=lambda name: bits[name])
    return name, found[name], own - bits[name]


def chance_bits(terms: Sequence[Term]) -> float:
    """What `joint` would save per weight at high rate on white weights, by chance alone.

    E ln det of the sample covariance of N white vectors in n coordinates is below that of the covariance by about
    n (n + 1) / 2N (Muirhead 1982, 3.2.15), in the own axes by n / N. Terms that are diagonalized together each have
    chances of their own: the best axes for T of them save √T times what those for all vectors as one do.
    """
    vectors = max(sum(term.count for term in terms), 1)
    return (_size(terms) - 1) * math.sqrt(len(terms)) / (4 * math.log(2) * vectors)


def _size(terms: Sequence[Term]) -> int:
    return terms[0].covariance.shape[0]


def _total(terms: Sequence[Term]) -> Array:
    """Covariance of all vectors of the space."""
    return np.sum([term.count * term.covariance for term in terms], axis=0)


def _read(terms: Sequence[Term]) -> Array | None:
    """Moment of what is read, each reader weighed by size and sensitivity; None where nothing is."""
    found = [term.count * term.level * term.moment for term in terms if term.moment is not None]
    return np.sum(found, axis=0) if found else None


def _eigen(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues [n], ascending, and eigenvectors [n, n] in columns; torch minds the number of threads."""
    import torch

    values, vectors = torch.linalg.eigh(torch.from_numpy((matrix + matrix.T) / 2))
    return values.numpy(), vectors.numpy()


def _principal(matrix: Array) -> Array:
    return np.ascontiguousarray(_eigen(matrix)[1][:, ::-1].T)


def _orthogonal(axes: torch.Tensor) -> Array:
    """float64 axes from float32 ones, which are orthogonal to 10⁻⁴ or better: Newton's iteration squares that."""
    found = axes.double()
    for _ in range(NEWTON_STEPS):
        found = 1.5 * found - 0.5 * (found @ found.T) @ found
    return found.numpy()


class _Group(NamedTuple):
    """Terms that share a moment, in float32: what a direction is worth [n, n], or in every one alike; level·S [t, n, n]
    in units that make up for it; counts over all weights [t]."""

    worth: torch.Tensor | float
    covariances: torch.Tensor
    counts: torch.Tensor


class _Stacked:
    """Terms gathered by the moment they share; groups are worked on side by side, and summed in order.

    A moment over the water has no sizes that float32 could not hold: powers of two are moved to the covariances.
    """

    def __init__(self, terms: Sequence[Term], water: float, threads: int) -> None:
        self.threads, weights = threads, sum(term.count for term in terms) * _size(terms)
        shared: dict[int, list[Term]] = {}
        for term in terms:
            shared.setdefault(id(term.moment), []).append(term)
        self.groups = [_group(group, water, weights) for group in shared.values()]


def _group(terms: Sequence[Term], water: float, weights: int) -> _Group:
    import torch

    level, octaves = math.frexp(water)
    moment, size = (1.0, 0) if terms[0].moment is None else in_float32(terms[0].moment)
    energies = [np.ldexp(term.covariance * term.level, size - octaves) for term in terms]
    return _Group(
        moment / level,
        torch.from_numpy(np.stack(energies)).float(),
        torch.tensor([float(term.count) for term in terms]) / weights,
    )


class _Level(NamedTuple):
    """Of a group: its counts [t], energies along the axes [t, n], what makes steps² of them [n], fed-back error in
    steps² [t, n], and the group's bits per weight of all."""

    counts: torch.Tensor
    energies: torch.Tensor
    worth: torch.Tensor
    fed_back: torch.Tensor
    bits: torch.Tensor


def _level(axes: torch.Tensor, group: _Group) -> _Level:
    """Differentiable in the axes: what is linear in them is multiplied by S or H once, and never again backward."""
    import torch

    fixed = axes.detach()
    energies = ((fixed @ group.covariances) * (2 * axes - fixed)).sum(dim=2).clamp_min(0)  # rᵀSr has the gradient 2Sr
    if isinstance(group.worth, torch.Tensor):
        worth, fed_back = _fed_back(axes, group.worth, energies)
    else:
        worth, fed_back = torch.full_like(energies[0], group.worth), torch.zeros_like(energies)
    steps = energies * worth + fed_back
    cost = 0.5 * torch.log2(1 + STEP_ENERGY * steps) + SLOPE * steps / (1 + ERRORS * steps)
    return _Level(group.counts, energies, worth, fed_back, (group.counts[:, None] * cost).sum())


def _levels(axes: torch.Tensor, stacked: _Stacked) -> list[_Level]:
    return ordered_map(lambda group: _level(axes, group), stacked.groups, stacked.threads)


def _total_bits(levels: Sequence[_Level]) -> float:
    return sum(level.bits.item() for level in levels)


def _fed_back(axes: torch.Tensor, moment: torch.Tensor, energies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """C_jj² [n] and Σ_{i>j} eᵢ² C_ij² [t, n]: errors of coordinates visited before j, which its target takes up."""
    import torch

    moved = axes.detach() @ moment
    order = torch.argsort((moved * axes.detach()).sum(dim=1), descending=True, stable=True)
    half = axes[order] @ moved[order].T
    squares = damped_factor(half + half.T - half.detach()).square()
    worth, sorted_energies = squares.diagonal(), energies[:, order]
    errors = sorted_energies / (1 + ERRORS * sorted_energies * worth)
    back = torch.argsort(order)
    return worth[back], (errors @ squares.tril(-1))[:, back]


def in_float32(moment: Array) -> tuple[torch.Tensor, int]:
    """A moment [n, n] of any size over the power of two that brings it to about 1, and the exponent of that."""
    import torch

    octaves = math.frexp(float(np.diag(moment).mean()))[1]
    return torch.from_numpy(np.ldexp(moment, -octaves)).float(), octaves


def damped_factor(moment: torch.Tensor) -> torch.Tensor:
    """Lower Cholesky factor of H + δ·mean(diag H)·I, δ growing until there is one."""
    import torch

    identity, mean, damping = torch.eye(moment.shape[0]), moment.diagonal().mean(), DAMPING
    while True:  # ends: a multiple of I above the spectral radius is reached, or the moment is not finite
        factor, failure = torch.linalg.cholesky_ex(moment + (damping * mean + TINY) * identity)
        if not int(failure):
            return factor
        if damping > 1 / TINY:
            raise CalibrationError(f"metric {list(moment.shape)} is too large or not finite; calibrate again")
        damping *= 10


class _Point(NamedTuple):
    """Axes that may be differentiated, the level of every group, and the sum of their bits."""

    axes: torch.Tensor
    levels: list[_Level]
    bits: float


def _point(axes: torch.Tensor, stacked: _Stacked) -> _Point:
    leaf = axes.clone().requires_grad_(True)
    levels = _levels(leaf, stacked)
    return _Point(leaf, levels, _total_bits(levels))


def _direction(point: _Point, threads: int) -> torch.Tensor:
    """A skew-symmetric direction in which the bits fall."""
    import torch

    parts = ordered_map(lambda level: torch.autograd.grad(level.bits, point.axes)[0], point.levels, threads)
    gradient = torch.stack(parts).sum(dim=0)
    with torch.no_grad():
        slope = gradient @ point.axes.T
        slope = slope - slope.T
        curvature = torch.zeros_like(slope)
        for counts, energies, worth, fed_back, _ in point.levels:
            steps = energies * worth + fed_back
            slopes = STEP_ENERGY / (1 + STEP_ENERGY * steps) / np.log(2) + 2 * SLOPE / (1 + ERRORS * steps) ** 2
            share = counts[:, None] * worth * slopes
            gained = share.T @ energies  # [i, j]: axis i takes the energy of j
            kept = (share * energies).sum(dim=0)
            curvature += gained + gained.T - kept[:, None] - kept[None, :]
        floor = CURVATURE_FLOOR / slope.shape[0] / np.log(2)
        return (-slope / curvature.abs().clamp_min(floor)).clamp(-LARGEST_ANGLE, LARGEST_ANGLE)


def _searched(point: _Point, stacked: _Stacked) -> _Point | None:
    """Axes turned along a direction of descent (Cayley's map), by as much as lowers the bits; None if nothing does."""
    import torch

    direction, axes = _direction(point, stacked.threads), point.axes.detach()
    identity, size = torch.eye(axes.shape[0]), 1.0
    for _ in range(HALVINGS):
        half = 0.5 * size * direction
        found = _point(torch.linalg.solve(identity - half, (identity + half) @ axes), stacked)
        if found.bits < point.bits:
            return found
        size /= 3
    return None
