"""Noise feedback against its slow twin: the recursion of docs/theory one column at a time, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from trueaxis.assemble import count_symbols
from trueaxis.entropy.model import CODES_PER_OCTAVE, ZERO_CLASS, Tables, first_tables, fit_tables
from trueaxis.entropy.stream import decode_indices, dequantize, pack_residual, unpack_residual
from trueaxis.metric.metric import distance
from trueaxis.quantize.budget import first_c
from trueaxis.quantize.feedback import BLOCK, grid_at, quantize
from trueaxis.quantize.grid import column_groups, steps
from trueaxis.quantize.plan import Plan, Planner, row_scale_codes, shift_for
from trueaxis.stages import Feedback, Gptq, GptqUniform, RoundToNearest
from trueaxis.types import Array, Metric, Weight
from twins import quantizers, viterbi

DAMPING = {Feedback: 1e-3, Gptq: 0.01, GptqUniform: 0.01}
STAGES = [
    Feedback(),
    Feedback(rate_weight=0.0),
    Feedback(effort="fast", rate_weight=0.1),
    Feedback(effort="scalar"),
    RoundToNearest(),
    Gptq(group=16),
    GptqUniform(),
]


def make_matrix(rows: int, columns: int, seed: int, scale: float = 1.0) -> tuple[Array, Metric]:
    rng = np.random.default_rng(seed)
    weight = (scale * rng.laplace(size=(rows, columns)) * np.exp(rng.normal(size=(1, columns)))).astype(np.float32)
    inputs = rng.normal(size=(3 * columns, columns)) @ rng.normal(size=(columns, columns))
    return weight, Metric(inputs.T @ inputs / len(inputs))


def plan_of(stage: object, weight: Array, metric: Metric) -> Plan:
    return Planner(stage).plan(Weight("w", weight.shape, "F32", "linear", "s"), weight, metric)  # type: ignore[arg-type]


def damped(metric: Metric, damping: float) -> Array:
    assert metric.second_moment is not None
    moment = metric.second_moment
    return moment + damping * np.diag(moment).mean() * np.eye(len(moment))


def learned_tables(plan: Plan, c: float) -> Tables:
    """Tables as a second pass meets them: counted, and with offsets."""
    counts = count_symbols([quantize(plan, c, first_tables()).quantized])
    rng = np.random.default_rng(0)
    return fit_tables(counts, rng.integers(-30, 10, (2, 48, 2)).astype(np.int8))


def twin(plan: Plan, c: float, tables: Tables, factor: Array | None) -> tuple[Array, Array]:
    """(k, E) [m, n]: visits the columns from the last to the first in order, a path down each."""
    rows, columns = plan.weight.shape
    grid, shift, row_codes = grid_at(plan, c), shift_for(rows), row_scale_codes(plan)
    step = steps(grid.column_codes, grid.resolution).astype(np.float64) * steps(grid.row_codes, grid.resolution)[
        :, column_groups(grid)
    ].astype(np.float64)
    weight = plan.weight.astype(np.float64)
    indices, errors = np.zeros((rows, columns), np.int64), np.zeros((rows, columns))
    resolution = CODES_PER_OCTAVE << shift
    row_scales = 2.0 ** (-row_codes / resolution)
    for position in reversed(range(columns)):
        j, later = plan.order[position], plan.order[position + 1 :]
        target = weight[:, j]
        if factor is not None:
            target = target - errors[:, later] @ factor[position + 1 :, position] / factor[position, position]
        x = target / step[:, j]
        mean = np.mean(np.abs(x) * row_scales) / 2
        zero_code = (ZERO_CLASS << shift) + (1 << shift) // 2
        code = max(0, round(float(np.log2(mean)) * resolution + zero_code)) if mean > 1e-9 else 0
        classes = np.clip((row_codes.astype(np.int64) + code) >> shift, 0, 47)
        k = viterbi(
            x.astype(np.float32), classes, tables.code_bits(), tables.escape_orders, 4 * plan.rate_weight, plan.trellis
        )
        q = quantizers(k[None], plan.trellis)[0]
        offsets = tables.offsets[q, classes, np.clip(np.abs(k), 1, 2) - 1] / 64 if plan.centroids else 0.0
        indices[:, j] = k
        points = np.where(k == 0, 0.0, 2 * np.abs(k) - q + offsets)
        errors[:, j] = np.sign(k) * points * step[:, j] - weight[:, j]
    return indices, errors


@pytest.mark.parametrize(
    "stage", STAGES, ids=lambda stage: "-".join(map(str, [type(stage).__name__, *vars(stage).values()]))
)
@pytest.mark.parametrize("bits", [1.5, 4.0])
def test_blocked_recursion_equals_the_twin(stage: Feedback, bits: float) -> None:
    """More columns than two blocks, in shuffled energies; tables as a later pass has them."""
    weight, metric = make_matrix(24, 2 * BLOCK + 5, seed=3)
    plan = plan_of(stage, weight, metric)
    c = first_c([plan], bits * weight.size)
    tables = learned_tables(plan, c)
    factor = None
    if type(stage) in DAMPING:
        moment = damped(metric, DAMPING[type(stage)])
        factor = np.linalg.cholesky(moment[np.ix_(plan.order, plan.order)])
    indices, errors = twin(plan, c, tables, factor)
    outcome = quantize(plan, c, tables)
    np.testing.assert_array_equal(outcome.quantized.indices.T, indices)
    np.testing.assert_allclose(outcome.errors, errors, atol=2e-4 * np.abs(errors).max())
    assert np.abs(indices).max() >= 2**bits / 2


def test_long_columns_and_escapes_equal_the_twin() -> None:
    """Finer scale codes, row scales of their own, and indices beyond the alphabet."""
    weight, metric = make_matrix(1030, 6, seed=5)
    weight[::3] *= 50
    plan = plan_of(Feedback(effort="fast", rate_weight=0.05), weight, metric)
    assert shift_for(1030) == 1 and row_scale_codes(plan).any()
    tables = learned_tables(plan, 0.2)
    factor = np.linalg.cholesky(damped(metric, 1e-3)[np.ix_(plan.order, plan.order)])
    indices, _ = twin(plan, 0.2, tables, factor)
    assert np.abs(indices).max() > tables.largest_magnitude
    np.testing.assert_array_equal(quantize(plan, 0.2, tables).quantized.indices.T, indices)


def test_order_is_lowest_energy_first_and_gptq_the_reverse() -> None:
    weight, metric = make_matrix(8, 20, seed=1)
    assert metric.second_moment is not None
    energy = np.diag(metric.second_moment)
    assert (np.diff(energy[plan_of(Feedback(), weight, metric).order]) <= 0).all()  # visited from the last entry
    assert (np.diff(energy[plan_of(Gptq(), weight, metric).order]) >= 0).all()


def test_distortion_is_the_squared_norm_of_e_c() -> None:
    weight, metric = make_matrix(40, 90, seed=2)
    plan = plan_of(Feedback(), weight, metric)
    moment = damped(metric, 1e-3)
    factor = np.linalg.cholesky(moment[np.ix_(plan.order, plan.order)])
    errors = quantize(plan, 1.0, first_tables()).errors.astype(np.float64)
    assert np.sum((errors[:, plan.order] @ factor) ** 2) == pytest.approx(distance(errors, Metric(moment)), rel=1e-9)


def test_every_column_of_e_c_stays_within_one_step() -> None:
    """Steps c / C_jj: nearest rounding leaves |(E C)_ij| ≤ c / 2 everywhere, the same level for all columns."""
    weight, metric = make_matrix(40, 90, seed=2)
    plan = plan_of(Feedback(effort="scalar", rate_weight=0.0), weight, metric)
    factor = np.linalg.cholesky(damped(metric, 1e-3)[np.ix_(plan.order, plan.order)])
    shaped = np.abs(quantize(plan, 0.7, first_tables()).errors[:, plan.order] @ factor)
    assert 0.7 / 2 * 0.9 < shaped.max() <= 0.7 / 2 * 2 ** (1 / 8) * 1.001  # a step code is up to 1/8 octave off
    levels = np.sqrt((shaped**2).mean(axis=0))
    assert levels == pytest.approx(np.full(90, 0.7 / np.sqrt(12)), rel=0.35)


def test_feedback_beats_plain_rounding() -> None:
    weight, metric = make_matrix(64, 48, seed=4)
    plan = plan_of(Feedback(rate_weight=0.0), weight, metric)
    with_feedback, without = (quantize(p, 1.0, first_tables()).errors for p in (plan, replace(plan, feedback=None)))
    assert distance(with_feedback, metric) < 0.7 * distance(without, metric)


def test_rate_weight_buys_bits_with_distortion() -> None:
    weight, metric = make_matrix(64, 48, seed=4)
    found = []
    for rate_weight in (0.0, 0.05, 0.2):
        plan = plan_of(Feedback(effort="scalar", rate_weight=rate_weight), weight, metric)
        tables = fit_tables(count_symbols([quantize(plan, 1.0, first_tables()).quantized]), first_tables().offsets)
        outcome = quantize(plan, 1.0, tables)
        found.append((np.abs(outcome.quantized.indices).sum(), distance(outcome.errors, metric)))
    assert found[0][0] > found[1][0] > found[2][0]
    assert found[0][1] < found[2][1]


def test_thresholds_ignore_the_offsets() -> None:
    """Otherwise thresholds and centroids chase each other from pass to pass."""
    weight = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    plan = plan_of(Feedback(), weight, Metric(None))
    tables = first_tables()
    shifted = Tables(tables.frequencies, tables.escape_orders, np.full_like(tables.offsets, -40))
    plain, moved = quantize(plan, 0.5, tables), quantize(plan, 0.5, shifted)
    np.testing.assert_array_equal(plain.quantized.indices, moved.quantized.indices)
    np.testing.assert_array_equal(plain.residual_sums, moved.residual_sums)
    assert (plain.errors != moved.errors).any()


@pytest.mark.parametrize("stage", STAGES[:1] + STAGES[3:], ids=lambda stage: type(stage).__name__)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (13, 11), (5, 70), (70, 5)])
@pytest.mark.parametrize("kind", ["laplace", "zeros", "constant rows", "one large column"])
def test_errors_are_those_of_the_decoder(stage: Feedback, shape: tuple[int, int], kind: str) -> None:
    """Ŵ − W of the quantizer is what a reader of the bytes gets, whatever the matrix."""
    weight, metric = make_matrix(*shape, seed=6)
    if kind == "zeros":
        weight[:] = 0
    elif kind == "constant rows":
        weight[:] = weight[:, :1]
    elif kind == "one large column":
        weight[:, 0] *= 1000
    plan = plan_of(stage, weight, metric)
    first = quantize(plan, 1.0, first_tables())
    rng = np.random.default_rng(1)
    offsets = rng.integers(-40, 10, (2, 48, 2)).astype(np.int8)
    outcome = quantize(plan, 1.0, fit_tables(count_symbols([first.quantized]), offsets))
    tables = fit_tables(count_symbols([outcome.quantized]), offsets)
    header = unpack_residual(pack_residual(outcome.quantized, tables, 32, 1 << 20), *shape)
    decoded = dequantize(header, decode_indices(header, tables), tables)
    np.testing.assert_allclose(decoded - weight, outcome.errors, rtol=1e-5, atol=1e-6 * np.abs(weight).max())


def test_c_goes_to_the_steps_that_differ() -> None:
    weight, metric = make_matrix(16, 20, seed=7)
    by_column = plan_of(Feedback(), weight, metric)
    by_row = plan_of(RoundToNearest(), weight, metric)
    assert (grid_at(by_column, 2.0).row_codes == grid_at(by_column, 1.0).row_codes).all()
    assert (grid_at(by_row, 2.0).column_codes == grid_at(by_row, 1.0).column_codes).all()
    for plan in (by_column, by_row):
        octave, one, two = grid_at(plan, 1.0).resolution, grid_at(plan, 1.0), grid_at(plan, 2.0)
        moved = (two.column_codes - one.column_codes).max() + (two.row_codes - one.row_codes).max()
        assert moved == octave
