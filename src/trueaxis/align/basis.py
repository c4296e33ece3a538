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
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trueaxis.align.estimate import (
    ERRORS,
    SLOPE,
    STEP_ENERGY,
    Level,
    Stacked,
    Term,
    gathered,
    levels_of,
    own_bits,
    size_of,
    total_bits,
)
from trueaxis.parallel import ordered_map
from trueaxis.types import Array

if TYPE_CHECKING:
    import torch

ITERATIONS = 8  # twelve change the rate by 0.002 bits more
CURVATURE_FLOOR = 0.01
LARGEST_ANGLE = 0.2
HALVINGS = 6
NEWTON_STEPS = 3
PATIENCE = 3e-5  # of the bits: an iteration that gains less is the last
WIDE = 512  # coordinates
SIGNIFICANT = 2.0  # axes have to save so many times what chance would

Eigen = tuple[Array, Array]
"""Eigenvalues [n], ascending, and eigenvectors [n, n] in columns."""
Axes = Callable[[Sequence[Term], float, int, int], Array]
"""(terms, water level c², seed, workers) ─▶ R [n, n], the same for any number of workers."""


def identity(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """The checkpoint's own axes."""
    return np.eye(size_of(terms))


def random_orthogonal(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Haar-distributed: stabilizes, blind to structure."""
    from scipy.stats import ortho_group

    return ortho_group.rvs(size_of(terms), random_state=seed) if size_of(terms) > 1 else np.eye(1)


def hadamard(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Signed Hadamard of any size: Sylvester's for the power of two in n, an orthogonal DCT for the odd rest."""
    from scipy.fft import dct
    from scipy.linalg import hadamard as sylvester

    size = size_of(terms)
    power = size & -size
    flat = sylvester(power) / np.sqrt(power)
    rest = dct(np.eye(size // power), norm="ortho", axis=0)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size)
    return np.kron(rest, flat) * signs


def pca_weights(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Principal axes of the weights' own covariance."""
    return _principal(_eigen(_total(terms)))


def pca_metric(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Principal axes of what is read, each reader weighed by its sensitivity; own axes where nothing is read."""
    read = _read(terms)
    return np.eye(size_of(terms)) if read is None else _principal(_eigen(read))


def pca_joint(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Principal axes of Σ_W^½ H Σ_W^½: directions in which large weights meet large inputs."""
    weights, read = _eigen(_total(terms)), _read(terms)
    return _principal(weights if read is None else _between(weights, read))


def joint(terms: Sequence[Term], water: float, seed: int, threads: int = 1) -> Array:
    """Approximate joint diagonalization of all terms by estimated rate, from the better of the principal axes.

    A quasi-Newton step on the orthogonal group: the gradient in the angle of each pair of axes, divided by the
    curvature that the covariances' diagonals imply, then halved until the rate falls.
    """
    start, _ = _start(terms, water, threads)
    return _orthogonal(_followed(start, Stacked(terms, water, threads)).axes.detach())


AXES: dict[str, Axes] = {
    "identity": identity,
    "random": random_orthogonal,
    "hadamard": hadamard,
    "pca-weights": pca_weights,
    "pca-metric": pca_metric,
    "pca-joint": pca_joint,
    "joint": joint,
}


def best(terms: Sequence[Term], water: float, threads: int = 1) -> tuple[str, Array, float]:
    """Joint axes, or the own ones unless those save more than twice what they would on weights without any structure.

    In a wide space principal axes find most of what there is, 74 % and more in the models seen, and the search from
    there takes longer than the rest of alignment: it is left out where they save no more than chance would.

    Returns:
        Name of the axes, the axes, and the estimated bits per weight that they save against the checkpoint's own.
    """
    chance = chance_bits(terms)
    start, saved = _start(terms, water, threads)
    if saved > chance or len(start) < WIDE:
        stacked = Stacked(terms, water, threads)
        found = _followed(start, stacked)
        saved = own_bits(stacked) - found.bits
        if saved >= SIGNIFICANT * chance:
            return "joint", _orthogonal(found.axes.detach()), saved
    return "identity", np.eye(size_of(terms)), 0.0


def chance_bits(terms: Sequence[Term]) -> float:
    """What `joint` would save per weight at high rate on white weights, by chance alone.

    E ln det of the sample covariance of N white vectors in n coordinates is below that of the covariance by about
    n (n + 1) / 2N (Muirhead 1982, 3.2.15), in the own axes by n / N. Terms that are diagonalized together each have
    chances of their own: the best axes for T of them save √T times what those for all vectors as one do.
    """
    vectors = max(sum(term.count for term in terms), 1)
    return (size_of(terms) - 1) * math.sqrt(len(terms)) / (4 * math.log(2) * vectors)


def _total(terms: Sequence[Term]) -> Array:
    """Covariance of all vectors of the space."""
    return np.sum([term.count * term.covariance for term in terms], axis=0)


def _read(terms: Sequence[Term]) -> Array | None:
    """Moment of what is read, each reader weighed by size and sensitivity; None where nothing is."""
    found = [term.count * term.level * term.moment for term in terms if term.moment is not None]
    return np.sum(found, axis=0) if found else None


def _eigen(matrix: Array) -> Eigen:
    """Of a symmetric matrix; torch minds the number of threads."""
    import torch

    values, vectors = torch.linalg.eigh(torch.from_numpy((matrix + matrix.T) / 2))
    return values.numpy(), vectors.numpy()


def _principal(eigen: Eigen) -> Array:
    return np.ascontiguousarray(eigen[1][:, ::-1].T)


def _between(weights: Eigen, read: Array) -> Eigen:
    """Of Σ_W^½ H Σ_W^½."""
    values, vectors = weights
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return _eigen(root @ read @ root)


def _start(terms: Sequence[Term], water: float, threads: int) -> tuple[torch.Tensor, float]:
    """The best of own and principal axes, float32 [n, n], and the bits per weight that they save, by gathered terms:
    which is best is plain enough from these."""
    import torch

    stacked = Stacked(gathered(terms), water, threads)
    chosen, own = torch.eye(size_of(terms)), own_bits(stacked)
    weights, read = _eigen(_total(terms)), _read(terms)
    fewest = own
    for eigen in (weights,) if read is None else (weights, _eigen(read), _between(weights, read)):
        axes = torch.from_numpy(_principal(eigen).astype(np.float32, order="C"))
        bits = total_bits(levels_of(axes, stacked))
        if bits < fewest:
            chosen, fewest = axes, bits
    return chosen, own - fewest


def _followed(start: torch.Tensor, stacked: Stacked) -> _Point:
    """The search for joint axes, from a start."""
    point = _point(start, stacked)
    for _ in range(ITERATIONS):
        found = _searched(point, stacked)
        if found is None:
            break
        before, point = point.bits, found
        if before - point.bits < PATIENCE * before:
            break
    return point


def _orthogonal(axes: torch.Tensor) -> Array:
    """float64 axes from float32 ones, which are orthogonal to 10⁻⁴ or better: Newton's iteration squares that."""
    found = axes.double()
    for _ in range(NEWTON_STEPS):
        found = 1.5 * found - 0.5 * (found @ found.T) @ found
    return found.numpy()


class _Point(NamedTuple):
    """Axes that may be differentiated, the level of every group, and the sum of their bits."""

    axes: torch.Tensor
    levels: list[Level]
    bits: float


def _point(axes: torch.Tensor, stacked: Stacked) -> _Point:
    leaf = axes.clone().requires_grad_(True)
    levels = levels_of(leaf, stacked)
    return _Point(leaf, levels, total_bits(levels))


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


def _searched(point: _Point, stacked: Stacked) -> _Point | None:
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
