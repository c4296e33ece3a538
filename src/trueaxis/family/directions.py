"""Directions: what the differences of several members have in common, coded once for all of them.

    Δ_1 … Δ_K of a tensor ─▶ principal directions in the metric ─▶ Δ_k = Σ θ_kj J_j + ε_k, J_j decoded
         └─▶ bits of every Δ_k          >          bits of J, of θ_k and of every ε_k, each by the coder: J is kept

An inner product of two differences is what the metric says: Σ g ρᵢ (aᵢ H bᵢᵀ), H and ρ the mean of the members'. J is
as coarse as the ε leave it: what is missing of it, they hold. A direction costs about what a member's tensor does, so
it pays where members are correlated, and unrelated ones choose none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from trueaxis.align.estimate import ERRORS, SLOPE, STEP_ENERGY
from trueaxis.family.measured import Measured
from trueaxis.passes import LEAST_BITS, MARGIN, Job, coded_alone, coded_bits
from trueaxis.quantize.plan import Plan, Planner
from trueaxis.runtime.tangent import Directions, pack_weights, read_weights
from trueaxis.stages import Quantizer
from trueaxis.types import Aligned, Array, Metric, Weight

MOST_TOGETHER = 3  # directions that one call may add
OCTAVES = np.arange(-1.0, 5.0, 0.5)  # of a direction's steps against the members'
SHARE_BITS = 10  # of θ below one: what it misses is below 2^-22 of a direction's energy
RECORD_BITS = 8.0 * 12  # of a record of shares, its frame included


def shared_directions(members: Sequence[Measured], room: int) -> list[list[Job]]:
    """Directions that take fewer bits than they save.

    Args:
        members: Measured; of one base.
        room: Directions that the family may still take.

    Returns:
        Of every direction its matrices, with plans whose steps are right at c = 1.
    """
    found: list[list[Job]] = []
    tensors = dict.fromkeys(weight.tensor for member in members for weight in member.weights)
    for tensor in tensors:
        holders = [member for member in members if member.moved(tensor)]
        if len(holders) < 2:
            continue
        weights = holders[0].moved(tensor)
        plans = [[member.plans[weight.name] for weight in weights] for member in holders]
        group = Group(weights, plans, [member.c for member in holders], holders[0].recipe.quantize)
        for number, jobs in enumerate(group.directions(min(len(holders) - 1, MOST_TOGETHER, room))):
            found += [[]] * (number == len(found))
            found[number] = found[number] + jobs
    return found


@dataclass(frozen=True, eq=False)
class Group:
    """The matrices of one tensor in several members.

    Attributes:
        weights: Of the tensor: one, or its slices.
        plans: Of every member, beside the base alone.
        levels: c of every member.
        stage: Plans directions.
    """

    weights: Sequence[Weight]
    plans: Sequence[Sequence[Plan]]
    levels: Sequence[float]
    stage: Quantizer

    def directions(self, most: int) -> list[list[Job]]:
        """As many directions as pay, each with the matrices of the tensor."""
        metrics = [mean_metric([row[at].metric for row in self.plans]) for at in range(len(self.weights))]
        vectors = _principal(self.plans, metrics)
        least, chosen = sum(map(_estimated, self.plans, self.levels)), None
        for count in range(1, most + 1):
            spans = self._spans(metrics, vectors[:, :count])
            for octaves in OCTAVES:
                c = float(2.0 ** (np.log2(self.levels).mean() + octaves))
                bits = self._estimated_with(spans, vectors, c)
                least, chosen = (bits, (spans, c)) if bits < least else (least, chosen)
        if chosen is None:
            return []
        own, saved = self.saved_bits(*chosen)
        return spans_as_jobs(self.weights, *chosen) if saved > LEAST_BITS + MARGIN * own else []

    def _spans(self, metrics: Sequence[Metric], vectors: Array) -> list[list[Plan]]:
        """Σ_k v_kj Δ_k of every direction j, planned."""
        found = []
        for vector in vectors.T:
            planner = Planner(self.stage)
            sums = [_sum(vector, [row[at].weight for row in self.plans]) for at in range(len(self.weights))]
            found.append([planner.plan(*one) for one in zip(self.weights, sums, metrics, strict=True)])
        return found

    def _estimated_with(self, spans: Sequence[Sequence[Plan]], vectors: Array, c: float) -> float:
        """Bits, and what distortion is worth, of all members with directions at c, bits of these included."""
        steps = [[_energies(plan) / c**2 for plan in span] for span in spans]
        total = sum(
            plan.weight.shape[0] * float((0.5 * np.log2(1 + STEP_ENERGY * found)).sum())
            for span, row in zip(spans, steps, strict=True)
            for plan, found in zip(span, row, strict=True)
        )
        for level, row, shares in zip(self.levels, self.plans, vectors, strict=True):
            for at, plan in enumerate(row):
                taken = _sum(shares[: len(spans)], [span[at].weight for span in spans])
                energies = _energies(replace(plan, weight=plan.weight - taken))
                for share, span, found in zip(shares, spans, steps, strict=False):
                    missing = _energies(replace(plan, weight=span[at].weight)) / (1 + ERRORS * found[at])
                    energies = energies + share**2 * missing
                total += _cost(energies, plan.weight.shape[0], level)
        return total

    def saved_bits(self, spans: Sequence[Sequence[Plan]], c: float) -> tuple[float, float]:
        """Bits of directions at c by the coder, and how many fewer all takes with them, their own counted."""
        coded = [[coded_alone(plan, c) for plan in span] for span in spans]
        decoded = [
            [plan.weight + errors for plan, (_, errors) in zip(*rows, strict=True)]
            for rows in zip(spans, coded, strict=True)
        ]
        own = sum(bits for row in coded for bits, _ in row)
        saved = -own
        for level, row in zip(self.levels, self.plans, strict=True):
            rest = _less(row, decoded, _shares(row, decoded))
            pairs = zip(row, rest, strict=True)
            saved += sum(coded_bits(one, level) - coded_bits(other, level) for one, other in pairs) - RECORD_BITS
        return own, saved


def shares_of(member: Measured, directions: Directions) -> dict[str, bytes]:
    """Payloads of the records of the tensors that take fewer bits with shares of directions.

    Args:
        member: Measured.
        directions: Of the family, decoded as they stand.
    """
    found: dict[str, bytes] = {}
    for tensor in dict.fromkeys(weight.tensor for weight in member.weights):
        weights, held = member.moved(tensor), directions.holders(tensor, tuple(member.delta.entries[tensor].shape))
        if not weights or not any(held):
            continue
        decoded = [
            [_matrix(value, weight) for weight in weights]
            for value in (directions.decoders[at].tensor(tensor) for at in np.flatnonzero(held).tolist())
        ]
        plans = [member.plans[weight.name] for weight in weights]
        shares = np.zeros(len(held))
        shares[held] = _shares(plans, decoded)
        payload = pack_weights(shares.tolist(), SHARE_BITS)
        rest = _less(plans, decoded, read_weights(tensor, payload, len(held))[held])
        pairs = zip(plans, rest, strict=True)
        if sum(coded_bits(one, member.c) - coded_bits(other, member.c) for one, other in pairs) > RECORD_BITS:
            found[tensor] = payload
    return found


def spans_as_jobs(weights: Sequence[Weight], spans: Sequence[Sequence[Plan]], c: float) -> list[list[Job]]:
    """Directions as what `Passes` codes at c = 1."""
    return [
        [
            Job(weight, plan.metric, Aligned("a direction", plan.weight, plan.metric), plan.scaled(c), weight)
            for weight, plan in zip(weights, span, strict=True)
        ]
        for span in spans
    ]


def mean_metric(metrics: Sequence[Metric]) -> Metric:
    """The mean of several metrics of one matrix, by how sensitive each is; H and ρ apart.

    Example:
        >>> mean_metric([Metric(np.eye(2), None, 1.0), Metric(3 * np.eye(2), None, 3.0)]).second_moment.tolist()
        [[2.5, 0.0], [0.0, 2.5]]
    """
    weights = [metric.sensitivity for metric in metrics]
    sensitivity = float(np.mean(weights))

    def mean(arrays: Sequence[Array | None]) -> Array | None:
        known = [one for one in arrays if one is not None]
        if len(known) < len(arrays):
            return None
        return np.average(np.stack(known), axis=0, weights=weights) if sensitivity > 0 else known[0]

    return Metric(
        mean([one.second_moment for one in metrics]), mean([one.row_weights for one in metrics]), sensitivity,
        mean([one.embedding_weights for one in metrics]), mean([one.embedding_moment for one in metrics]),
    )  # fmt: skip


def weighed(matrix: Array, metric: Metric) -> Array:
    """g (ρ ∘ E H + ε ∘ E K), float64 [m, n], whose product with E, summed, is g · D."""
    found = matrix.astype(np.float64)
    total = found if metric.second_moment is None else found @ metric.second_moment
    if metric.row_weights is not None:
        total = total * metric.row_weights[:, None]
    if metric.embedding_weights is not None:
        looked_up = found if metric.embedding_moment is None else found @ metric.embedding_moment
        total = total + looked_up * metric.embedding_weights[:, None]
    return metric.sensitivity * total


def _principal(plans: Sequence[Sequence[Plan]], metrics: Sequence[Metric]) -> Array:
    """Directions [members, members] of most energy in the metric, the first first."""
    gram = np.zeros((len(plans), len(plans)))
    for at, metric in enumerate(metrics):
        for k, row in enumerate(plans):
            moved = weighed(row[at].weight, metric)
            gram[k] += [float((moved * other[at].weight).sum()) for other in plans]
    return np.linalg.eigh((gram + gram.T) / 2)[1][:, ::-1]


def _shares(plans: Sequence[Plan], decoded: Sequence[Sequence[Array]]) -> Array:
    """θ [directions] of a member's matrices, least squares in its metric."""
    count = len(decoded)
    gram, target = np.zeros((count, count)), np.zeros(count)
    for at, plan in enumerate(plans):
        for j, row in enumerate(decoded):
            moved = weighed(row[at], plan.metric)
            target[j] += float((moved * plan.weight).sum())
            gram[j] += [float((moved * other[at]).sum()) for other in decoded]
    return np.linalg.lstsq(gram, target, rcond=None)[0]


def _less(plans: Sequence[Plan], decoded: Sequence[Sequence[Array]], shares: Array) -> list[Plan]:
    """Plans of what is left of a member's matrices without its shares."""
    return [
        replace(plan, weight=plan.weight - _sum(shares, [row[at] for row in decoded])) for at, plan in enumerate(plans)
    ]


def _sum(weights: Array, matrices: Sequence[Array]) -> Array:
    taken = (float(weight) * matrix for weight, matrix in zip(weights, matrices, strict=True))
    return np.ascontiguousarray(reduce(np.add, taken), np.float32)


def _energies(plan: Plan) -> Array:
    """σ² of every column in steps at c = 1, as `first_c` has them."""
    scaled = plan.in_steps()
    return np.einsum("ij,ij->j", scaled, scaled, dtype=np.float64) / (4 * scaled.shape[0])


def _estimated(plans: Sequence[Plan], c: float) -> float:
    """Bits of a member, and what its distortion is worth."""
    return sum(_cost(_energies(plan), plan.weight.shape[0], c) for plan in plans)


def _cost(energies: Array, rows: int, c: float) -> float:
    """Bits of Gaussian columns, and what their distortion is worth."""
    steps = energies / c**2
    return rows * float((0.5 * np.log2(1 + STEP_ENERGY * steps) + SLOPE * steps / (1 + ERRORS * steps)).sum())


def _matrix(value: object, weight: Weight) -> Array:
    """One matrix of a decoded tensor, as [m, n]."""
    import torch

    assert isinstance(value, torch.Tensor)
    found = value if weight.slice is None else value[weight.slice]
    return np.ascontiguousarray((found.T if weight.transposed else found).numpy())
