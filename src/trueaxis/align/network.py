"""The network as alignment sees it, and what alignment says of it.

Network ─▶ align ─▶ Alignment: per stored tensor, the maps of the space it reads and the space it writes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trueaxis.align.estimate import STEP_ENERGY, Term, damped_factor, in_float32
from trueaxis.align.maps import Map, moment, on_columns, on_rows, permutation
from trueaxis.journal import NO_JOURNAL, NoJournal
from trueaxis.metric.metric import metric_for
from trueaxis.metric.statistics import Statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.families import Family, family_of
from trueaxis.model.graph import route
from trueaxis.parallel import ordered_map
from trueaxis.quantize.plan import DAMPING, Factor, factorize
from trueaxis.runtime.transforms import COLUMNS, ROWS, Diagonal, Reflection
from trueaxis.types import Aligned, Array, Learning, Metric, Space, Weight

if TYPE_CHECKING:
    import torch

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
        added: What a bias takes up first, or None.
        shift: (β, E[x]) where the matrix no longer reads x but x − β, or None.
        reflected: Sides of the matrix (see runtime/transforms.py) that the model has reflected against these
            coordinates.
    """

    coordinates: str
    reads: Map = ()
    writes: Map = ()
    constant: float | None = None
    added: Array | None = None
    shift: tuple[Array, Array] | None = None
    reflected: int = 0

    def joined(self, other: Change) -> Change:
        """Both changes; where they meet on one side they act on coordinates of their own."""
        names = dict.fromkeys(self.coordinates.split("+") + other.coordinates.split("+"))
        constant = self.constant if other.constant is None else other.constant
        return Change(
            "+".join(names),
            (*self.reads, *other.reads),
            (*self.writes, *other.writes),
            constant,
            other.added if self.added is None else self.added,
            other.shift if self.shift is None else self.shift,
            self.reflected | other.reflected,
        )

    def tensor(self, values: Array) -> Array:
        """The tensor in new coordinates, of the same dtype: a matrix [m, n], a bias [m], or a norm [n]."""
        if self.constant is not None:
            return np.full(values.shape, self.constant, values.dtype)
        moved = values if self.added is None else values + self.added.astype(values.dtype)
        moved = on_rows(self.writes, moved)
        return moved if moved.ndim == 1 else on_columns(self.reads, moved)

    def loaded(self, moved: Array) -> Array:
        """What `tensor` made, as the model has it once it is loaded: reflected."""
        reflection = Reflection(self.reflected)
        return reflection.decoded(moved[:, None])[:, 0] if moved.ndim == 1 else reflection.decoded(moved)

    def moment(self, second_moment: Array) -> Array:
        """H of what is read in new coordinates."""
        if self.shift is not None:
            second_moment = shifted(second_moment, *self.shift)
        return moment(self.reads, second_moment)


@dataclass(frozen=True, eq=False)
class Product:
    """A tensor that the loaded model has beside the original's: another one times a square matrix.

    Attributes:
        name: Of the tensor.
        source: Name of the weight that is multiplied.
        coordinates: For reports.
        map: S [n, n] float64, in the coordinates of the file.
        metric: What an error of S costs.
        reflected: Whether the model has both sides of S reflected against these coordinates.
    """

    name: str
    source: str
    coordinates: str
    map: Array
    metric: Metric
    reflected: bool = False

    def aligned(self) -> Aligned:
        """S without the multiple of the identity that is nearest to it: what is coded."""
        value = float(np.float32(np.diag(self.map).mean()))
        transforms = (Reflection(COLUMNS | ROWS),) * self.reflected + (Diagonal(value),)
        coded = (self.map - value * np.eye(len(self.map))).astype(np.float32)
        return Aligned(self.coordinates, coded, self.metric, transforms)

    def loaded(self, source: Array) -> Array:
        """The tensor [m, n] from its source [m, n] as the model has that."""
        return source @ Reflection((COLUMNS | ROWS) * self.reflected).decoded(self.map)


@dataclass(frozen=True, eq=False)
class Alignment:
    """Coordinates of a whole network.

    Attributes:
        changes: Name of a weight, bias or norm → its change; tensors left out stay as they are.
        gauges: For the header and the report: (what was chosen, or left out and why).
        products: Tensors that the loaded model has beside the original's.
        spaces: The axes that each space got, for the report.
        learning: How they were learned, or None.
        checked: Name of a matrix → what its change made of it for the check, held in scratch.
    """

    changes: Mapping[str, Change] = field(default_factory=dict)
    gauges: tuple[str, ...] = ()
    products: tuple[Product, ...] = ()
    spaces: tuple[Space, ...] = ()
    learning: Learning | None = None
    checked: Mapping[str, Array] = field(default_factory=dict)

    def aligned(
        self, weight: Weight, matrix: Array, metric: Metric, moments: dict[str, Array], known: Array | None = None
    ) -> Aligned:
        """A matrix and its metric in new coordinates.

        Args:
            weight: Which one.
            matrix: W [m, n] float32.
            metric: In the original coordinates.
            moments: Transformed moments by space, filled and used by calls for one space after another.
            known: What the change makes of W, where that is known.
        """
        change = self.changes.get(weight.name)
        if change is None:
            return Aligned("identity", matrix, metric)
        moved = metric
        if change.reads and metric.second_moment is not None and weight.space is not None:
            if weight.space not in moments:
                moments.clear()
                moments[weight.space] = change.moment(metric.second_moment)
            moved = Metric(
                moments[weight.space], metric.row_weights, metric.sensitivity, metric.embedding_weights
            )  # fmt: skip
        transforms = (Reflection(change.reflected),) if change.reflected else ()
        tensor = change.tensor(matrix) if known is None else known
        return Aligned(change.coordinates, tensor, moved, transforms)

    def permutation(self, weight: Weight) -> Array | None:
        """Order of a matrix's columns against the original's; None where its coordinates are not just permuted."""
        change = self.changes.get(weight.name, Change("identity"))
        return permutation(change.reads, weight.shape[1]) if change.shift is None else None

    def exact(self, checkpoint: Checkpoint, weight: Weight) -> torch.Tensor:
        """A norm or bias in new coordinates, in its own dtype."""
        import torch

        tensor, change = checkpoint.tensor(weight.name), self.changes.get(weight.name)
        if change is None:
            return tensor
        return torch.from_numpy(change.loaded(change.tensor(tensor.double().numpy()))).to(tensor.dtype)


@dataclass(frozen=True, eq=False)
class Network:
    """A checkpoint with its statistics, and the rate that is aimed at.

    Attributes:
        checkpoint: The original.
        weights: From `trace`.
        statistics: Of the same checkpoint.
        target_bits: Of all quantized weights together; sets the water level by which axes are judged.
        seed: Of random axes.
        threads: Blocks or spaces side by side; nothing depends on it.
        text: Files of calibration text, for axes that are learned; may be empty.
        journal: Knows axes that an earlier run found.
    """

    checkpoint: Checkpoint
    weights: tuple[Weight, ...]
    statistics: Statistics
    target_bits: float
    seed: int = 0
    threads: int = 1
    text: Sequence[str | Path] = ()
    journal: NoJournal = NO_JOURNAL
    _factors: dict[str, Factor] = field(default_factory=dict, init=False, repr=False)

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
        """W [m, n] float32, the norm it reads folded in."""
        matrix = self.checkpoint.matrix(weight).float().numpy()
        return matrix if weight.norm is None or weight.role == "tied" else matrix * self.norm(weight).astype(np.float32)

    def norm(self, weight: Weight) -> Array:
        """γ [n] of the norm that a matrix reads, the family's offset added."""
        assert weight.norm is not None
        return self.checkpoint.tensor(weight.norm).double().numpy() + weight.norm_offset

    def metric(self, weight: Weight) -> Metric:
        """The metric of a matrix in the original coordinates."""
        return metric_for(weight, self.statistics)

    def factor(self, weight: Weight) -> Factor | None:
        """Factor of the metric of a linear layer or head in the original coordinates, kept for whoever asks next."""
        found = self.metric(weight).second_moment
        if found is None or weight.space is None or weight.role not in ("linear", "head"):
            return None
        if weight.space not in self._factors:
            self._factors[weight.space] = factorize(found, DAMPING).held(self.checkpoint.scratch)
        return self._factors[weight.space]

    def moment(self, weight: Weight) -> Array | None:
        """H [n, n] of what a matrix reads, the norm's factor taken out; None for a table."""
        found = self.metric(weight).second_moment
        if found is None or weight.norm is None or weight.role == "tied":
            return found
        return self.unscaled(weight, found)

    def unscaled(self, weight: Weight, found: Array) -> Array:
        """A moment of what a matrix reads, divided by its norm's factor on both sides."""
        gamma = self.norm(weight)
        inverse = np.divide(1.0, gamma, out=np.zeros_like(gamma), where=gamma != 0)
        return found * np.outer(inverse, inverse)

    def norm_bias(self, weight: Weight) -> tuple[str, Array] | None:
        """(name, β [n] float64) of the norm that a matrix reads; None where it has no bias."""
        name = str(weight.norm).removesuffix("weight").removesuffix("gamma")
        name = f"{name}{'bias' if str(weight.norm).endswith('weight') else 'beta'}"
        if weight.norm is None or name not in self.checkpoint.entries:
            return None
        return name, self.checkpoint.tensor(name).double().numpy()

    def mean(self, weight: Weight) -> Array | None:
        """E[x] [n] of what a matrix reads; None where calibration did not hear it."""
        heard = weight.space is not None and weight.space not in self.statistics.unheard
        return self.statistics.mean(weight.space or "") if heard else None

    @cached_property
    def water(self) -> float:
        """Step² per unit of worth at which all quantized weights take `target_bits` in their own axes."""
        columns = [self._columns[weight.name] for weight in self.weights if weight.role != "exact"]
        energy = np.concatenate([found.worth for found in columns])
        count = np.concatenate([np.full(found.worth.size, found.rows) for found in columns])
        if not energy.any():
            return 1.0
        high = float(np.log2(energy.max())) + 10
        low = high - LARGEST_OCTAVES
        for _ in range(80):
            middle = (low + high) / 2
            bits = float((count * 0.5 * np.log2(1 + STEP_ENERGY * energy / 2.0**middle)).sum())
            low, high = (middle, high) if bits > self.target_bits else (low, middle)
        return 2.0**high

    def estimated_bits(self, weights: Sequence[Weight], water: float) -> float:
        """What quantized matrices would take in their own axes at a water level."""
        columns = [self._columns[weight.name] for weight in weights]
        return sum(float((one.rows * 0.5 * np.log2(1 + STEP_ENERGY * one.worth / water)).sum()) for one in columns)

    @cached_property
    def _columns(self) -> dict[str, _Columns]:
        """Of every quantized matrix; those that share a space share a factorization."""
        readers = {weight.space: weight for weight in self.weights if weight.role not in ("exact", "embedding")}

        def energies(weight: Weight) -> Array:
            if (weight.space or "").endswith(".hidden") and (factor := self.factor(weight)) is not None:
                return np.square(factor.diagonal)[np.argsort(factor.order)]  # channels keep it: they are only permuted
            return _conditional_energies(self.metric(weight))

        squares = dict(zip(readers, ordered_map(energies, readers.values(), self.threads), strict=True))

        def columns(weight: Weight) -> _Columns:
            metric = self.metric(weight)
            energy = np.square(self.checkpoint.matrix(weight).float().numpy()).mean(axis=0, dtype=np.float64)
            worth = metric.sensitivity * energy
            if metric.row_weights is not None:
                worth = worth * float(metric.row_weights.mean())
            elif metric.second_moment is not None:
                worth = worth * squares[weight.space]
            return _Columns(float(weight.shape[0]), float(energy.mean()), worth)

        quantized = {weight.name: weight for weight in self.weights if weight.role != "exact"}
        return dict(zip(quantized, ordered_map(columns, quantized.values(), self.threads), strict=True))

    def reader_term(self, weight: Weight, matrix: Array, second_moment: Array | None) -> Term:
        """A matrix (or some columns of one) as a reader of the space of its columns."""
        metric = self.metric(weight)
        level = metric.sensitivity * (1.0 if metric.row_weights is None else float(metric.row_weights.mean()))
        return Term(self._held(_covariance(matrix)), matrix.shape[0], second_moment, level)

    def writer_term(self, weight: Weight, matrix: Array) -> Term:
        """A matrix (or some rows of one) as a writer of the space of its rows; its own input enters as one number."""
        columns = self._columns[weight.name]
        ratio = np.maximum(columns.worth, TINY) / max(columns.energy, TINY)
        covariance = self._held(_covariance(matrix.T))
        return Term(covariance, matrix.shape[1], None, float(np.exp(np.log(ratio).mean())))

    def _held(self, array: Array) -> Array:
        return self.checkpoint.scratch.hold(array)


def _covariance(vectors: Array) -> Array:
    """Mean of w wᵀ [n, n] float64 over rows w of a float32 matrix [k, n]."""
    squares = vectors.T @ vectors  # NumPy works out one half, and mirrors it
    return squares.astype(np.float64) / vectors.shape[0]


def shifted(second_moment: Array, offset: Array, mean: Array) -> Array:
    """E[(x − β)(x − β)ᵀ] from E[x xᵀ], β and E[x]."""
    cross = np.outer(offset, mean)
    return second_moment - cross - cross.T + np.outer(offset, offset)


class _Columns(NamedTuple):
    """Of one matrix: rows, mean w², and [n] mean w² of each column times g·C_jj², its weight against the water."""

    rows: float
    energy: float
    worth: Array


def _conditional_energies(metric: Metric) -> Array:
    """C_jj² [n], columns visited in ascending order of energy; nothing without a moment."""
    second_moment = metric.second_moment
    if second_moment is None:
        return np.empty(0)
    import torch

    moment, octaves = in_float32(second_moment)
    order = torch.argsort(moment.diagonal(), descending=True, stable=True)
    factor = damped_factor(moment[order][:, order])
    return np.ldexp(factor.diagonal().double().square()[torch.argsort(order)].numpy(), octaves)


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
