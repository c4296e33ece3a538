"""Every coordinate system of align/basis.py on every half: fitted on one half of rows and text, measured on the other.

    space ─▶ terms of the fitted rows, H of the fitted text ─▶ axes R ─▶ W Rᵀ of other rows, R H Rᵀ of other text
                                                                         ─▶ figures ─▶ Table [halves, systems, matrices]

Axes fitted and measured on the same rows would find structure in noise: rows of i.i.d. weights have principal axes too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.align.basis import AXES
from trueaxis.align.estimate import STEP_ENERGY, Term
from trueaxis.analyze.halves import interval
from trueaxis.analyze.quantizers import uniform_losses
from trueaxis.metric.metric import damped_cholesky, water_level
from trueaxis.parallel import ordered_map
from trueaxis.types import Array, Weight

if TYPE_CHECKING:
    from trueaxis.analyze.halves import Half
    from trueaxis.analyze.subject import Subject

SYSTEMS = tuple(AXES)
RATE = 3.0  # bits per weight of the checkpoint's own axes, which fixes the D that systems are compared at
DEAD_RATES = (1, 2, 3)
TANGENT_SHARE = 8  # one in so many directions counts as tangent
SPECTRUM_POINTS = 33
DAMPING = 1e-3
TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Table:
    """Figures of all coordinate systems.

    Attributes:
        figures: Name of a figure → float64 [halves, systems, matrices], systems in the order of `SYSTEMS`.
        spectra: float64 [systems, 33]: log₂ of column energy over its mean, at evenly spaced ranks, largest first;
            medians over matrices and halves.
        aligned: The system of the fewest estimated bits; the checkpoint's own unless another surely saves some.
    """

    figures: dict[str, Array]
    spectra: Array
    aligned: str

    def halves(self, figure: str, system: str) -> Array:
        """Medians [8] over matrices."""
        return np.median(self.figures[figure][:, SYSTEMS.index(system)], axis=1)

    def summary(self) -> list[dict[str, object]]:
        """A row per system: means over halves of medians over matrices, and the spectrum."""
        return [
            {
                "coordinates": system,
                **{figure: float(self.halves(figure, system).mean()) for figure in self.figures},
                "spectrum": self.spectra[number].tolist(),
            }
            for number, system in enumerate(SYSTEMS)
        ]


def measure_axes(subject: Subject) -> Table:
    """Measures every system on every half of the sampled spaces."""
    moments = {
        (space, half.number): (subject.moment(space, half.fitted), subject.moment(space, ~half.fitted))
        for space in subject.spaces
        for half in subject.halves
    }
    done = iter(range(1, len(moments) + 1))

    def measured(unit: tuple[str, Half]) -> dict[str, Array]:
        space, half = unit
        found = _measure_space(subject, subject.spaces[space], half, *moments[space, half.number])
        subject.progress("coordinates", next(done), len(moments))
        return found

    units = [(space, half) for space in subject.spaces for half in subject.halves]
    parts = ordered_map(measured, units, subject.threads)
    count, joined = len(subject.halves), {}
    for name in parts[0]:
        spaces = [np.stack([part[name] for part in parts[i : i + count]]) for i in range(0, len(parts), count)]
        joined[name] = np.concatenate(spaces, axis=2)  # [halves, systems, matrices, ...]
    spectra = np.median(joined.pop("spectrum"), axis=(0, 2))
    return Table(joined, spectra, _aligned(np.median(joined["estimated_bits"], axis=2)))


def _aligned(bits: Array) -> str:
    """The system of the fewest bits [halves, systems], if it surely saves any."""
    best = int(np.argmin(bits.mean(axis=0)))
    own = SYSTEMS.index("identity")
    return SYSTEMS[best if interval(bits[:, own] - bits[:, best])[0] > 0 else own]


def _measure_space(
    subject: Subject, readers: tuple[Weight, ...], half: Half, fitted_moment: Array, other_moment: Array
) -> dict[str, Array]:
    """Figure → [systems, readers, ...]."""
    terms, others = [], []
    for weight in readers:
        matrix, moment = subject.folded(weight, fitted_moment)
        rows = half.rows(matrix.shape[0])
        fitted = matrix[rows]
        terms.append(Term(fitted.T @ fitted / fitted.shape[0], fitted.shape[0], moment, 1.0))
        others.append((matrix[~rows], subject.folded(weight, other_moment)[1]))
    shared = [Term(term.covariance, term.count, terms[0].moment, 1.0) for term in terms]  # H once: they read one space
    water = _water(shared)
    axes = [AXES[system](shared, water, half.number, 1) for system in SYSTEMS]
    distortions = [_fixed_distortion(matrix, moment) for matrix, moment in others]
    low = np.linalg.eigh(others[0][1])[1][:, : _rank(axes[0].shape[0])].T
    tangents = [tangent_directions(matrix) for matrix, _ in others]
    rows = [
        [
            {
                **_figures(matrix @ turned.T, turned @ moment @ turned.T, distortion),
                "follows_tangent": inside(turned, tangent),
                "follows_low_curvature": inside(turned, low),
                "tangent_degrees": degrees(turned, tangent),
                "low_curvature_degrees": degrees(turned, low),
            }
            for (matrix, moment), distortion, tangent in zip(others, distortions, tangents, strict=True)
        ]
        for turned in axes
    ]
    return {name: np.array([[cell[name] for cell in row] for row in rows]) for name in rows[0][0]}


def _water(terms: list[Term]) -> float:
    """Steps² at which the readers take `RATE` bits in their own axes, none of their columns being dead."""
    logs = []
    for term in terms:
        assert term.moment is not None
        energies = np.diag(term.covariance)
        worth = energies * conditional_energies(term.moment)
        logs.append(np.log2(np.maximum(worth, TINY * max(worth.mean(), TINY))).mean())
    return float(STEP_ENERGY * 2.0 ** (np.mean(logs) - 2 * RATE))


def conditional_energies(moment: Array) -> Array:
    """C_jj² [n]: energy of each input that those of more energy do not explain."""
    order = np.argsort(-np.diag(moment), kind="stable")
    found = np.empty(order.size)
    found[order] = np.square(np.diag(damped_cholesky(moment[np.ix_(order, order)], DAMPING)[0]))
    return found


def _column_worth(matrix: Array, moment: Array) -> tuple[Array, Array]:
    """Mean squares [n] of the columns, and the same times C_jj²."""
    energies = np.square(matrix).mean(axis=0)
    return energies, np.maximum(energies * conditional_energies(moment), TINY)


def _fixed_distortion(matrix: Array, moment: Array) -> dict[float, float]:
    """Rate → D that the matrix's own axes have at it, all columns above the water."""
    _, worth = _column_worth(matrix, moment)
    found = {}
    for rate in (RATE, *DEAD_RATES):
        level = 2.0 ** (np.log2(worth).mean() - 2 * rate)
        found[float(rate)] = float(np.minimum(worth, level).sum())
    return found


def _figures(matrix: Array, moment: Array, distortion: dict[float, float]) -> dict[str, float | Array]:
    """All figures of one matrix [rows, n] in one system."""
    energies, worth = _column_worth(matrix, moment)
    scaled = matrix / np.sqrt(np.maximum(energies, TINY))
    bits = _rate(scaled, energies, worth, distortion[RATE])
    found: dict[str, float | Array] = {**bits, **_outliers(matrix, scaled), **uniform_losses(scaled)}
    found["curvature_outliers"] = _rank_correlation(np.diag(moment), _kurtoses(matrix))
    for rate in DEAD_RATES:
        level = water_level(worth, distortion[float(rate)])
        found[f"dead_columns_{rate}"] = float(np.mean(worth <= level))
        found[f"zeros_{rate}"] = float(np.mean(np.square(scaled) * worth < 3 * level))  # |w| < Δ/2, Δ² = 12 θ
    ranked = np.sort(energies)[::-1]
    points = np.linspace(0, ranked.size - 1, SPECTRUM_POINTS).round().astype(int)
    found["spectrum"] = np.log2(np.maximum(ranked[points], TINY) / max(ranked.mean(), TINY))
    return found


def _rate(scaled: Array, energies: Array, worth: Array, distortion: float) -> dict[str, float]:
    """Estimated bits per weight at a fixed D, and what they are made of.

    Gaussian columns of known scale take ½ log₂(worth / θ). Entries that are not Gaussian given their column take less
    (shape), and less again given the scale of their row, which costs ½ log₂ n bits a row (predictability).
    """
    level = water_level(worth, distortion)
    gaussian = float(np.maximum(0, 0.5 * np.log2(worth / level)).mean())
    row_scales = np.sqrt(np.maximum(np.square(scaled).mean(axis=1), TINY))
    own = _differential_bits(scaled)
    given = _differential_bits(scaled / row_scales[:, None]) + float(np.log2(row_scales).mean())
    side = 0.5 * np.log2(scaled.shape[1]) / scaled.shape[1]
    predictability = own - given - side
    shape = 0.5 * np.log2(2 * np.pi * np.e) - own
    positive = np.maximum(energies, TINY * max(float(energies.max()), TINY))
    return {
        "estimated_bits": gaussian - shape - max(predictability, 0.0),
        "concentration_bits": float(0.5 * (np.log2(positive.mean()) - np.log2(positive).mean())),
        "predictability_bits": predictability,
        "shape_bits": shape,
    }


def _differential_bits(values: Array) -> float:
    """Differential entropy of all entries as one sample."""
    from scipy.stats import differential_entropy

    flat = np.sort(values, axis=None)
    if flat[0] == flat[-1]:
        return float(np.log2(TINY))
    jitter = np.linspace(-0.5, 0.5, flat.size) * TINY * (flat[-1] - flat[0])  # repeated values have no finite entropy
    return float(differential_entropy(flat + jitter, base=2))


def _outliers(matrix: Array, scaled: Array) -> dict[str, float]:
    """Heaviness of the entries of a matrix, and of the same at unit column scale."""
    squares = np.sort(np.square(matrix), axis=None)
    total, count = max(float(squares.sum()), TINY), squares.size
    sigma2 = total / count
    ranks = np.arange(1, count + 1)
    return {
        "kurtosis": float(np.square(squares).mean() / sigma2**2),
        "scaled_kurtosis": float(np.square(np.square(scaled)).mean()),
        "max_over_sigma": float(np.sqrt(squares[-1] / sigma2)),
        "beyond_6_sigma": float(np.mean(squares > 36 * sigma2)),
        "top_percent_energy": float(squares[-max(1, count // 100) :].sum() / total),
        "gini": float((2 * ranks - count - 1) @ squares / (count * total)),
    }


def _kurtoses(matrix: Array) -> Array:
    """Kurtosis [n] of every column."""
    squares = np.square(matrix)
    return np.square(squares).mean(axis=0) / np.maximum(np.square(squares.mean(axis=0)), TINY**2)


def _rank_correlation(one: Array, other: Array) -> float:
    """Spearman's; 0 where either is constant."""
    from scipy.stats import spearmanr

    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.asarray(spearmanr(one, other))[0])


def tangent_directions(matrix: Array) -> Array:
    """Tangent space [r, n] of the rows: their r = n / 8 strongest right singular vectors, orthonormal."""
    return np.linalg.eigh(matrix.T @ matrix)[1][:, -_rank(matrix.shape[1]) :].T


def _rank(columns: int) -> int:
    return max(1, columns // TANGENT_SHARE)


def inside(axes: Array, space: Array) -> float:
    """How far the r axes [k, n] nearest to a space [r, n] lie in it: 1 inside, 0 as random directions do.

    It is (mean cos² − r/n) / (1 − r/n).

    Example:
        >>> inside(np.eye(4), np.eye(4)[:1])
        1.0
    """
    rank, size = space.shape
    chance = rank / size
    return float((_nearest(axes, space).mean() - chance) / (1 - chance)) if size > rank else 1.0


def degrees(axes: Array, space: Array) -> float:
    """Median angle between the r axes [k, n] nearest to a space [r, n] and that space.

    Example:
        >>> round(degrees(np.eye(4), np.array([[1.0, 1.0, 0.0, 0.0]]) / np.sqrt(2)), 6)
        45.0
    """
    return float(np.degrees(np.arccos(np.sqrt(np.median(_nearest(axes, space))))))


def _nearest(axes: Array, space: Array) -> Array:
    """cos² [r] of the r axes nearest to a space [r, n]."""
    return np.clip(np.sort(np.square(axes @ space.T).sum(axis=1))[-space.shape[0] :], 0.0, 1.0)
