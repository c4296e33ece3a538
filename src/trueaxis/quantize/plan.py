"""Plans: what a quantizer type of the recipe decides about one matrix before any bits are spent.

A plan holds the visiting order, the feedback factor, and the steps for c = 1. One function, `feedback.quantize`, then
carries out every plan; quantizer types differ in nothing but the plan they make. All steps are fine-grid steps: a
scalar quantizer's step is two of them.

References: GPTQ (arXiv:2210.17323); steps c / C_jj and the order, WaterSIC (arXiv:2603.04956) and docs/theory.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from trueaxis.entropy.model import CODES_PER_OCTAVE
from trueaxis.metric.metric import damped_cholesky
from trueaxis.quantize.grid import OCTAVE
from trueaxis.scratch import NO_SCRATCH, NoScratch
from trueaxis.stages import EFFORTS, Feedback, Gptq, GptqUniform, Quantizer, RoundToNearest, WaterSic, WaterSicCore
from trueaxis.types import Array, Metric, Weight

TINY = 1e-30
DAMPING = Feedback().damping
NO_ENERGY = 1e-12  # of an input, relative to the mean: what rounding in float32 leaves of none
DEAD = 1e-9  # of the finest step's factor; the range of indices is smaller, so that all of such a column are zero
ROWS_FOR_COLUMN_STEPS = 16  # shorter columns share one step: a step of their own would cost more than it saves


@dataclass(frozen=True, eq=False)
class Factor:
    """Cholesky factor C of a damped metric in visiting order; one for all matrices that read the same space.

    Attributes:
        order: int [n], the columns as visited from last to first.
        diagonal: C_jj, float64 [n].
        feedback: C_ij / C_jj, float32 [n, n].
    """

    order: Array
    diagonal: Array
    feedback: Array

    def held(self, scratch: NoScratch) -> Factor:
        """The same, its feedback held in scratch."""
        return replace(self, feedback=scratch.hold(self.feedback))

    def permuted(self, order: Array) -> Factor:
        """Of the same metric in coordinates x′ᵢ = x at order[i]."""
        return replace(self, order=np.argsort(order)[self.order])


@dataclass(frozen=True, eq=False)
class Plan:
    """How one matrix is to be quantized.

    Attributes:
        weight: W [m, n] float32.
        metric: What its errors cost.
        order: int [n]; columns are visited from the last entry to the first.
        feedback: float32 [n, n] in visiting order, C_ij / C_jj; None for no feedback.
        column_steps, row_steps: float64 [n] and [m, groups], the fine steps at c = 1.
        group: Columns per group of `row_steps`.
        rate_weight: λ of rounding in scalar steps squared per bit.
        centroids: Whether values are reconstructed at the coded centroids or at the grid points themselves.
        trellis: Identifier of the trellis down each column; 0 is the scalar quantizer.
        resolution: Codes per octave of the steps; None for what the weights behind a step pay for.
        rounding: "plain", or "gains" for a least-squares gain on every finished column.
        refit: "none", or "rescalers" for row and column steps fitted again to the finished matrix.
        whole, stride: The plan that this is every so manieth row of; None where it has all rows.
    """

    weight: Array
    metric: Metric
    order: Array
    feedback: Array | None
    column_steps: Array
    row_steps: Array
    group: int
    rate_weight: float
    centroids: bool
    trellis: int = 0
    resolution: int | None = None
    rounding: Literal["plain", "gains"] = "plain"
    refit: Literal["none", "rescalers"] = "none"
    whole: Plan | None = None
    stride: int = 1

    @property
    def all_rows(self) -> int:
        """Rows of the whole matrix: what steps and scales are paid for by."""
        return self.weight.shape[0] if self.whole is None else self.whole.all_rows

    def sampled(self, stride: int) -> Plan:
        """The plan of every so many rows."""
        weight, row_steps = self.weight[::stride], self.row_steps[::stride]
        return replace(self, weight=weight, row_steps=row_steps, whole=self, stride=stride)

    def scaled(self, factor: float) -> Plan:
        """The same plan with every step times `factor`."""
        return replace(self, row_steps=self.row_steps * factor)

    def in_steps(self) -> Array:
        """W over its steps at c = 1, float32 [m, n]."""
        groups = self.row_steps.shape[1]
        rows = self.row_steps if groups == 1 else self.row_steps[:, np.arange(self.weight.shape[1]) // self.group]
        found = self.weight / self.column_steps.astype(np.float32)
        found /= rows.astype(np.float32)
        return found

    @cached_property
    def row_scale_codes(self) -> Array:
        """See `row_scale_codes`; the same at every c, so found once."""
        return row_scale_codes(self) if self.whole is None else self.whole.row_scale_codes[:: self.stride]

    @property
    def mean_log_step(self) -> float:
        """Mean of log₂ step over the weights."""
        return float(np.log2(self.column_steps).mean() + np.log2(self.row_steps).mean())


Order = Literal["descending", "ascending", "natural"]


def factorize(matrix: Array, damping: float, by: Order = "descending") -> Factor:
    """Orders columns by energy H_jj and factorizes; descending means that the lowest energy is visited first.

    "natural" is the checkpoint's own order, its last column visited first.
    """
    energy = np.diag(matrix)
    keys = {"descending": -energy, "ascending": energy, "natural": np.zeros(energy.size)}
    order = np.argsort(keys[by], kind="stable")
    lower, _ = damped_cholesky(matrix[np.ix_(order, order)], damping)
    diagonal = np.maximum(np.diag(lower), TINY)
    return Factor(order, diagonal, (lower / diagonal).astype(np.float32))


def effective_moment(metric: Metric, columns: int) -> Array | None:
    """The one input metric that the feedback uses: H, and the mean embedding weight times K if the matrix is tied."""
    if metric.second_moment is None or metric.embedding_weights is None:
        return metric.second_moment
    looked_up = np.eye(columns) if metric.embedding_moment is None else metric.embedding_moment
    return metric.second_moment + float(metric.embedding_weights.mean()) * looked_up


def plan_feedback(stage: Feedback, weight: Array, metric: Metric, factor: Callable[..., Factor]) -> Plan:
    """Steps c / (√g C_jj), per row 1 / √(row weight)."""
    rows, columns = weight.shape
    unit = 0.5 / np.sqrt(metric.sensitivity)
    order, feedback, column_steps = np.arange(columns), None, np.full(columns, unit)
    if metric.second_moment is not None:
        found = factor(stage.damping)
        order, feedback = found.order, found.feedback
        diagonal = found.diagonal
        if rows < ROWS_FOR_COLUMN_STEPS:
            diagonal = np.full(columns, np.exp(np.log(diagonal).mean()))
        column_steps[order] = unit / np.where(_dead(metric, columns)[order], DEAD * diagonal.max(), diagonal)
    row_steps = 1.0 / np.sqrt(np.maximum(tempered(row_importance(metric, rows), _exponent(stage, metric)), TINY))
    return Plan(
        weight, metric, order, feedback, column_steps, row_steps.reshape(rows, 1), columns, stage.rate_weight, True,
        EFFORTS[stage.effort].trellis,
    )  # fmt: skip


def _dead(metric: Metric, columns: int) -> Array:
    """Which inputs have no energy: bool [n]. Damping lends them some, and their weights would take bits."""
    moment = effective_moment(metric, columns)
    assert moment is not None  # as metric.second_moment
    energy = np.diag(moment)
    return energy < NO_ENERGY * energy.mean()


def row_importance(metric: Metric, rows: int) -> Array:
    """Weight of each row's error relative to the mean metric [m]."""
    weights = np.ones(rows) if metric.row_weights is None else metric.row_weights
    if metric.embedding_weights is None or metric.second_moment is None:
        return weights
    head = float(np.diag(metric.second_moment).mean())
    looked_up = 1.0 if metric.embedding_moment is None else float(np.diag(metric.embedding_moment).mean())
    total = head * float(weights.mean()) + looked_up * float(metric.embedding_weights.mean())
    if total == 0:
        return weights
    return (head * weights + looked_up * metric.embedding_weights) / total


def _exponent(stage: Feedback, metric: Metric) -> float:
    """Of the row weights: rows that are tokens are tempered, others weigh what they weigh."""
    tokens = metric.second_moment is None or metric.embedding_weights is not None
    return stage.row_exponent if tokens else 1.0


def tempered(importance: Array, exponent: float) -> Array:
    """Row weights ρ^a, scaled so that Σ ρᵢ / ρᵢ′ is the number of rows.

    D is linear in a row's error, KL is not: a rare token whose row is rounded away costs far more than D says. Less
    unequal steps keep such rows; the scale is the one at which rate against D is still traded at the slope of the
    other tensors.
    """
    softened, alive = importance**exponent, importance > 0
    return softened * float(np.mean(importance[alive] / np.maximum(softened[alive], TINY)) if alive.any() else 0.0)


def plan_rtn(stage: RoundToNearest, weight: Array, metric: Metric, factor: Callable[..., Factor]) -> Plan:
    """One step per row from its largest magnitude; no feedback."""
    columns = weight.shape[1]
    largest = _positive(np.abs(weight).max(axis=1, keepdims=True))
    return Plan(weight, metric, np.arange(columns), None, np.ones(columns), 0.5 * largest, columns, 0.0, False)


def plan_gptq(stage: Gptq, weight: Array, metric: Metric, factor: Callable[..., Factor]) -> Plan:
    """Min-max steps, zero included, per row and static group; the highest energy is visited first."""
    columns = weight.shape[1]
    starts = np.arange(0, columns, stage.group)
    highest = np.maximum(np.maximum.reduceat(weight, starts, axis=1), 0)
    span = highest - np.minimum(np.minimum.reduceat(weight, starts, axis=1), 0)
    found = factor(stage.damping, "ascending")
    return Plan(
        weight, metric, found.order, found.feedback, np.ones(columns), 0.5 * _positive(span),
        min(stage.group, columns), 0.0, False,
    )  # fmt: skip


def plan_gptq_uniform(stage: GptqUniform, weight: Array, metric: Metric, factor: Callable[..., Factor]) -> Plan:
    """One step per matrix; the highest energy is visited first."""
    rows, columns = weight.shape
    root_mean_square = float(np.sqrt(np.mean(np.square(weight, dtype=np.float64)))) or TINY
    found = factor(stage.damping, "ascending")
    return Plan(
        weight, metric, found.order, found.feedback, np.full(columns, 0.5 * root_mean_square),
        np.ones((rows, 1)), columns, 0.0, False,
    )  # fmt: skip


def plan_watersic_core(stage: WaterSicCore, weight: Array, metric: Metric, factor: Callable[..., Factor]) -> Plan:
    """Steps c / C_jj in the checkpoint's column order, scaled so that every matrix gets the same rate at the same c."""
    rows, columns = weight.shape
    found = factor(stage.damping, "natural")
    diagonal = found.diagonal
    spread = np.sqrt(np.mean(np.square(weight, dtype=np.float64), axis=0))
    level = np.exp(np.log(np.maximum(spread * diagonal, TINY)).mean())
    return Plan(
        weight, metric, found.order, found.feedback, 0.5 * level / diagonal, np.ones((rows, 1)), columns,
        0.0, False,
    )  # fmt: skip


def plan_watersic(stage: WaterSic, weight: Array, metric: Metric, factor: Callable[..., Factor]) -> Plan:
    """The core with gains and rescalers: what they change are steps, stored as finely as the format can."""
    core = plan_watersic_core(WaterSicCore(stage.damping), weight, metric, factor)
    return replace(core, resolution=OCTAVE, rounding="gains", refit="rescalers")


PLANNERS: dict[type, Callable[[Any, Array, Metric, Callable[..., Factor]], Plan]] = {
    Feedback: plan_feedback,
    RoundToNearest: plan_rtn,
    Gptq: plan_gptq,
    GptqUniform: plan_gptq_uniform,
    WaterSic: plan_watersic,
    WaterSicCore: plan_watersic_core,
}


def reference_for(stage: Quantizer) -> Feedback:
    """How embeddings and heads are quantized, and at which effort: under every baseline as by default."""
    return stage if isinstance(stage, Feedback) else Feedback()


class Planner:
    """Makes the plans of one model with one quantizer type; factors of shared metrics are computed once.

    Embeddings and heads are planned by feedback under every type, so that recipes differ in the linear layers only.

    Args:
        stage: The recipe's quantizer.
        scratch: Where factors are held.
    """

    def __init__(self, stage: Quantizer, scratch: NoScratch = NO_SCRATCH) -> None:
        self._stage, self._scratch = stage, scratch
        self._latest = threading.local()  # the space that a thread planned for last, and its factors
        self._references: dict[Plan, Plan] = {}

    def plan(self, weight: Weight, residual: Array, metric: Metric, known: Factor | None = None) -> Plan:
        """Plan of one matrix; matrices of the same input space should follow each other in one thread.

        Args:
            weight: Its name, space and role.
            residual: W [m, n] float32.
            metric: In the same coordinates.
            known: What `factorize` makes of the metric with `DAMPING`, where that is known.
        """

        def factor(damping: float, by: Order = "descending") -> Factor:
            if known is not None and (damping, by) == (DAMPING, "descending"):
                return known
            space = f"{weight.space or weight.name}/{weight.role}"
            if getattr(self._latest, "space", None) != space:
                self._latest.space, self._latest.factors = space, {}
            found: dict[tuple[float, Order], Factor] = self._latest.factors
            if (damping, by) not in found:
                moment = effective_moment(metric, residual.shape[1])
                moment = np.eye(residual.shape[1]) if moment is None else moment
                found[damping, by] = factorize(moment, damping, by).held(self._scratch)
            return found[damping, by]

        stage = self._stage
        reference = plan_feedback(reference_for(stage), residual, metric, factor)
        if stage == reference_for(stage) or weight.role != "linear":
            return reference
        plan = PLANNERS[type(stage)](stage, residual, metric, factor)
        self._references[plan] = reference
        return plan

    def balanced(self, plans: list[Plan]) -> list[Plan]:
        """Brings baselines to the scale of the reference: the same mean log step over all linear weights.

        A baseline's own steps say nothing about embeddings and heads; this splits the bits between them and the
        linear layers as the reference does.
        """
        pairs = [(plan, self._references[plan]) for plan in plans if plan in self._references]
        if not pairs:
            return plans
        sizes = np.array([plan.weight.size for plan, _ in pairs], np.float64)
        octaves = np.array([other.mean_log_step - plan.mean_log_step for plan, other in pairs])
        factor = 2.0 ** float((sizes * octaves).sum() / sizes.sum())
        return [plan.scaled(factor) if plan in self._references else plan for plan in plans]


def shift_for(rows: int) -> int:
    """Extra resolution of scale codes that a column of this length pays for; see `Contexts`."""
    return 0 if rows < 1024 else 1


def row_scale_codes(plan: Plan) -> Array:
    """int32 [m]: how much larger or smaller a row's indices are than its columns suggest; zeros unless that pays.

    A scale known δ octaves wrong costs about 0.69 δ² bits per weight; a code costs about 2.5 bits per row.
    """
    rows, columns = plan.weight.shape
    scaled = np.abs(plan.in_steps())
    scaled /= np.maximum(scaled.mean(axis=0, keepdims=True), TINY)
    octaves = np.log2(np.maximum(scaled.mean(axis=1, dtype=np.float64), 2.0**-8))
    octaves -= octaves.mean()
    if 0.69 * float(octaves.var()) * columns < 2.5:
        return np.zeros(rows, np.int32)
    return np.rint(octaves * (CODES_PER_OCTAVE << shift_for(rows))).astype(np.int32)


def _positive(values: Array) -> Array:
    """Zeros become a small share of the largest value, so that every step is a positive number."""
    largest = float(values.max()) or 1.0
    return np.maximum(values.astype(np.float64), 1e-6 * largest)
