"""The network as alignment sees it, and what alignment says of it.

Network ─▶ align ─▶ Alignment: per stored tensor, the maps of the space it reads and the space it writes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.align.basis import STEP_ENERGY, Term
from trueaxis.align.maps import Map, moment, on_columns, on_rows
from trueaxis.metric.metric import damped_cholesky, metric_for
from trueaxis.metric.statistics import Statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.families import Family, family_of
from trueaxis.model.graph import route
from trueaxis.types import Aligned, Array, Metric, Weight

if TYPE_CHECKING:
    import torch

DAMPING = 1e-3
TINY = 1e-30
LARGEST_OCTAVES = 50.0  # of the water level: far more bits than any weight has


@dataclass(frozen=True, eq=False)
class Change:
    """What alignment does to one tensor: W′ = T_out W T_in⁻¹, or a norm whose factor has moved into its readers.

    Attributes:
        coordinates: Name of the coordinates, for reports.
        reads, writes: Maps of the input and of the output space; a table of rows that are looked up reads the space
            its rows lie in.
        constant: What every entry of a moved norm becomes, or None.
    """

    coordinates: str
    reads: Map = ()
    writes: Map = ()
    constant: float | None = None

    def joined(self, other: Change) -> Change:
        """Both changes; where they meet on one side they act on coordinates of their own."""
        names = dict.fromkeys(self.coordinates.split("+") + other.coordinates.split("+"))
        constant = self.constant if other.constant is None else other.constant
        return Change("+".join(names), (*self.reads, *other.reads), (*self.writes, *other.writes), constant)

    def tensor(self, values: Array) -> Array:
        """The tensor in new coordinates, float64: a matrix [m, n], a bias [m], or a norm [n]."""
        if self.constant is not None:
            return np.full(values.shape, self.constant)
        moved = on_rows(self.writes, values.astype(np.float64))
        return moved if moved.ndim == 1 else on_columns(self.reads, moved)


@dataclass(frozen=True, eq=False)
class Alignment:
    """Coordinates of a whole network.

    Attributes:
        changes: Name of a weight, bias or norm → its change; tensors left out stay as they are.
        gauges: For the header and the report: (what was chosen, or left out and why).
    """

    changes: Mapping[str, Change] = field(default_factory=dict)
    gauges: tuple[str, ...] = ()

    def aligned(self, weight: Weight, matrix: Array, metric: Metric, moments: dict[str, Array]) -> Aligned:
        """A matrix and its metric in new coordinates.

        Args:
            weight: Which one.
            matrix: W [m, n].
            metric: In the original coordinates.
            moments: Transformed moments by space, filled and used by calls for one space after another.
        """
        change = self.changes.get(weight.name)
        if change is None:
            return Aligned("identity", matrix, metric)
        moved = metric
        if change.reads and metric.second_moment is not None and weight.space is not None:
            if weight.space not in moments:
                moments.clear()
                moments[weight.space] = moment(change.reads, metric.second_moment)
            moved = Metric(
                moments[weight.space], metric.row_weights, metric.sensitivity, metric.embedding_weights
            )  # fmt: skip
        return Aligned(change.coordinates, change.tensor(matrix).astype(np.float32), moved)

    def exact(self, checkpoint: Checkpoint, weight: Weight) -> torch.Tensor:
        """A norm or bias in new coordinates, in its own dtype."""
        import torch

        tensor, change = checkpoint.tensor(weight.name), self.changes.get(weight.name)
        return tensor if change is None else torch.from_numpy(change.tensor(tensor.double().numpy())).to(tensor.dtype)


@dataclass(frozen=True, eq=False)
class Network:
    """A checkpoint with its statistics, and the rate that is aimed at.

    Attributes:
        checkpoint: The original.
        weights: From `trace`.
        statistics: Of the same checkpoint.
        target_bits: Of all quantized weights together; sets the water level by which axes are judged.
        seed: Of random axes.
    """

    checkpoint: Checkpoint
    weights: tuple[Weight, ...]
    statistics: Statistics
    target_bits: float
    seed: int = 0

    @cached_property
    def family(self) -> Family | None:
        """Facts of the family, or None for one that is not known by name."""
        return family_of(self.checkpoint.config)

    @cached_property
    def blocks(self) -> tuple[tuple[Weight, ...], ...]:
        """Matrices of each block."""
        names = route(self.checkpoint).blocks
        found: dict[str, list[Weight]] = {name: [] for name in names}
        for weight in self.weights:
            owner = next((name for name in names if (weight.space or "").startswith(f"{name}.")), None)
            if owner is not None:
                found[owner].append(weight)
        return tuple(map(tuple, found.values()))

    def matrix(self, weight: Weight) -> Array:
        """W [m, n] float64, the norm it reads folded in."""
        matrix = self.checkpoint.matrix(weight).double().numpy()
        return matrix if weight.norm is None or weight.role == "tied" else matrix * self.norm(weight)

    def norm(self, weight: Weight) -> Array:
        """γ [n] of the norm that a matrix reads, the family's offset added."""
        assert weight.norm is not None
        return self.checkpoint.tensor(weight.norm).double().numpy() + weight.norm_offset

    def metric(self, weight: Weight) -> Metric:
        """The metric of a matrix in the original coordinates."""
        return metric_for(weight, self.statistics)

    def moment(self, weight: Weight) -> Array | None:
        """H [n, n] of what a matrix reads, the norm's factor taken out; None for a table."""
        found = self.metric(weight).second_moment
        if found is None or weight.norm is None or weight.role == "tied":
            return found
        gamma = self.norm(weight)
        inverse = np.divide(1.0, gamma, out=np.zeros_like(gamma), where=gamma != 0)
        return found * np.outer(inverse, inverse)

    @cached_property
    def water(self) -> float:
        """Step² per unit of worth at which all quantized weights take `target_bits` in their own axes."""
        energies, counts = [], []
        for weight in self.weights:
            if weight.role != "exact":
                energies.append(self._column_worth(weight))
                counts.append(np.full(weight.shape[1], float(weight.shape[0])))
        energy, count = np.concatenate(energies), np.concatenate(counts)
        if not energy.any():
            return 1.0
        high = float(np.log2(energy.max())) + 10
        low = high - LARGEST_OCTAVES
        for _ in range(80):
            middle = (low + high) / 2
            bits = float((count * 0.5 * np.log2(1 + STEP_ENERGY * energy / 2.0**middle)).sum())
            low, high = (middle, high) if bits > self.target_bits else (low, middle)
        return 2.0**high

    def _column_worth(self, weight: Weight) -> Array:
        """[n]: mean w² of each column times g·C_jj², what its energy weighs against the water level."""
        metric = self.metric(weight)
        energy = np.square(self.checkpoint.matrix(weight).double().numpy()).mean(axis=0)
        worth = metric.sensitivity * energy
        if metric.row_weights is not None:
            return worth * float(metric.row_weights.mean())
        if metric.second_moment is None:
            return worth
        order = np.argsort(-np.diag(metric.second_moment), kind="stable")
        factor, _ = damped_cholesky(metric.second_moment[np.ix_(order, order)], DAMPING)
        worth[order] *= np.square(np.diag(factor))
        return worth

    def reader_term(self, weight: Weight, matrix: Array, second_moment: Array | None) -> Term:
        """A matrix (or some columns of one) as a reader of the space of its columns."""
        metric = self.metric(weight)
        level = metric.sensitivity * (1.0 if metric.row_weights is None else float(metric.row_weights.mean()))
        return Term(matrix.T @ matrix / matrix.shape[0], matrix.shape[0], second_moment, level)

    def writer_term(self, weight: Weight, matrix: Array) -> Term:
        """A matrix (or some rows of one) as a writer of the space of its rows; its own input enters as one number."""
        energy = np.square(self.checkpoint.matrix(weight).double().numpy()).mean(axis=0)
        ratio = np.maximum(self._column_worth(weight), TINY) / max(float(energy.mean()), TINY)
        return Term(matrix @ matrix.T / matrix.shape[1], matrix.shape[1], None, float(np.exp(np.log(ratio).mean())))


def merged(terms: Sequence[Sequence[Term]]) -> list[Term]:
    """Terms of several blocks as those of one: the i-th of each are averaged, worth by worth."""
    found = []
    moments: dict[tuple[int, ...], Array] = {}
    for alike in zip(*terms, strict=True):
        counts = np.array([term.count for term in alike], np.float64)
        levels = np.array([term.level for term in alike])
        level = float(counts @ levels / counts.sum())
        shares = counts * levels / max(float(counts @ levels), TINY)
        covariance = sum(share * term.covariance for share, term in zip(shares, alike, strict=True))
        key = tuple(id(term.moment) for term in alike)
        if alike[0].moment is not None and key not in moments:
            moments[key] = np.mean([term.moment for term in alike if term.moment is not None], axis=0)
        found.append(Term(np.asarray(covariance), int(counts.sum()), moments.get(key), level))
    return found
