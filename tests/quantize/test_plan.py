"""Plans: what each quantizer of a recipe decides about order, feedback and steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trueaxis.quantize import plan as plan_module
from trueaxis.quantize.plan import Plan, Planner, effective_moment, row_scale_codes, tempered
from trueaxis.stages import Feedback, Gptq, GptqUniform, RoundToNearest
from trueaxis.types import Array, Metric, Weight

BASELINES = [RoundToNearest(), Gptq(group=8), GptqUniform()]


def source(rows: int = 40, columns: int = 20) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, columns)) * np.exp(rng.normal(size=columns))
    return rng.normal(size=(rows, columns)).astype(np.float32), inputs.T @ inputs / 200


def make(stage: Any, weight: Array, metric: Metric, role: Any = "linear") -> Plan:
    return Planner(stage).plan(Weight("w", weight.shape, "F32", role, "s"), weight, metric)


def cholesky(plan: Plan, moment: Array, damping: float) -> Array:
    damped = moment + damping * np.diag(moment).mean() * np.eye(len(moment))
    return np.linalg.cholesky(damped[np.ix_(plan.order, plan.order)])


def test_feedback_steps_are_inverse_to_the_factor() -> None:
    weight, moment = source()
    plan = make(Feedback(damping=1e-3), weight, Metric(moment, sensitivity=4.0))
    lower = cholesky(plan, moment, 1e-3)
    np.testing.assert_allclose(2 * plan.column_steps[plan.order] * np.diag(lower), 1 / np.sqrt(4.0))
    assert plan.feedback is not None
    np.testing.assert_allclose(plan.feedback, lower / np.diag(lower), atol=1e-6)
    assert plan.row_steps.shape == (40, 1) and (plan.row_steps == 1).all()
    assert plan.centroids and plan.group == 20


def test_short_columns_share_one_step_at_the_same_mean() -> None:
    weight, moment = source(rows=4)
    plan = make(Feedback(), weight, Metric(moment))
    assert np.ptp(plan.column_steps) == 0
    diagonal = np.diag(cholesky(plan, moment, 1e-3))
    assert np.log(2 * plan.column_steps[0]) == pytest.approx(-np.log(diagonal).mean())


def test_embedding_rows_follow_their_weights() -> None:
    weight, _ = source()
    importance = np.geomspace(1e-4, 1, 40)
    importance /= importance.sum()
    for exponent in (0.0, 0.5, 1.0):
        plan = make(Feedback(row_exponent=exponent), weight, Metric(None, importance, 2.0), "embedding")
        assert plan.feedback is None and np.ptp(plan.column_steps) == 0
        ratio = plan.row_steps[:, 0] / plan.row_steps[-1, 0]
        np.testing.assert_allclose(ratio, (importance / importance[-1]) ** (-exponent / 2))


@pytest.mark.parametrize("exponent", [0.0, 0.3, 1.0])
def test_tempered_weights_keep_the_slope(exponent: float) -> None:
    importance = np.geomspace(1e-6, 1, 1000)
    softened = tempered(importance, exponent)
    assert (importance / softened).sum() == pytest.approx(1000)
    assert np.log(softened[-1] / softened[0]) == pytest.approx(exponent * np.log(1e6))


def test_tied_matrix_feeds_back_through_the_mean_of_both_uses() -> None:
    weight, moment = source()
    embedding = np.linspace(0.1, 2, 40)
    metric = Metric(moment, None, 1.0, embedding)
    combined = moment + embedding.mean() * np.eye(20)
    np.testing.assert_allclose(effective_moment(metric, 20), combined)
    plan = make(Feedback(), weight, metric, "tied")
    np.testing.assert_allclose(
        2 * plan.column_steps[plan.order], 1 / np.diag(cholesky(plan, combined, 1e-3)), rtol=1e-6
    )
    assert (np.diff(plan.row_steps[:, 0]) < 0).all()


def test_rtn_has_one_step_per_row_from_its_largest_magnitude() -> None:
    weight, moment = source()
    plan = make(RoundToNearest(), weight, Metric(moment))
    assert plan.feedback is None and plan.rate_weight == 0 and not plan.centroids
    np.testing.assert_allclose(plan.row_steps[:, 0] / plan.row_steps[0, 0],
                               np.abs(weight).max(1) / np.abs(weight[0]).max())  # fmt: skip
    assert np.ptp(plan.column_steps) == 0


def test_gptq_has_min_max_steps_per_row_and_group_and_act_order() -> None:
    weight, moment = source()
    plan = make(Gptq(damping=0.01, group=8), weight, Metric(moment))
    groups = [np.pad(weight[:, a:b], ((0, 0), (0, 1))) for a, b in ((0, 8), (8, 16), (16, 20))]  # zero is in every span
    spans = np.stack([np.ptp(group, axis=1) for group in groups], axis=1)
    np.testing.assert_allclose(plan.row_steps / plan.row_steps[0, 0], spans / spans[0, 0], rtol=1e-6)
    assert (np.diff(np.diag(moment)[plan.order[::-1]]) <= 0).all()  # visited highest first
    lower = cholesky(plan, moment, 0.01)
    assert plan.feedback is not None
    np.testing.assert_allclose(plan.feedback, lower / np.diag(lower), atol=1e-6)
    assert make(Gptq(group=128), weight, Metric(moment)).group == 20


def test_gptq_uniform_has_one_step_per_matrix() -> None:
    weight, moment = source()
    plan = make(GptqUniform(), weight, Metric(moment))
    assert np.ptp(plan.column_steps) == np.ptp(plan.row_steps) == 0
    tripled = make(GptqUniform(), 3 * weight, Metric(moment))
    assert tripled.column_steps[0] == pytest.approx(3 * plan.column_steps[0])


@pytest.mark.parametrize("stage", BASELINES, ids=lambda stage: type(stage).__name__)
@pytest.mark.parametrize("role", ["embedding", "head", "tied"])
def test_baselines_differ_in_linear_layers_only(stage: Any, role: str) -> None:
    weight, moment = source()
    metric = Metric(moment, None, 1.0, np.ones(40)) if role == "tied" else Metric(moment)
    mine, reference = make(stage, weight, metric, role), make(Feedback(), weight, metric, role)
    np.testing.assert_array_equal(mine.column_steps, reference.column_steps)
    assert mine.rate_weight == reference.rate_weight and mine.centroids


@pytest.mark.parametrize("stage", BASELINES, ids=lambda stage: type(stage).__name__)
def test_balanced_baselines_have_the_mean_step_of_the_reference(stage: Any) -> None:
    weight, moment = source()
    sizes, metrics = (40, 24), (Metric(moment, sensitivity=1.0), Metric(moment, sensitivity=30.0))
    planners = Planner(stage), Planner(Feedback())
    means = []
    for planner in planners:
        linear = [
            planner.plan(Weight(str(n), (n, 20), "F32", "linear", str(n)), weight[:n], metric)
            for n, metric in zip(sizes, metrics, strict=True)
        ]
        head = planner.plan(Weight("head", weight.shape, "F32", "head", "h"), weight, Metric(moment))
        *linear_balanced, head_balanced = planner.balanced([*linear, head])
        assert head_balanced is head
        means.append(np.average([plan.mean_log_step for plan in linear_balanced], weights=sizes))
    assert means[0] == pytest.approx(means[1])


def test_matrices_of_one_space_share_a_factorization(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moment = source()
    calls = []
    genuine = plan_module.factorize
    monkeypatch.setattr(plan_module, "factorize", lambda *args: calls.append(args) or genuine(*args))
    planner = Planner(Feedback())
    for name, space in (("q", "in"), ("k", "in"), ("o", "out")):
        planner.plan(Weight(name, weight.shape, "F32", "linear", space), weight, Metric(moment))
    assert len(calls) == 2


@pytest.mark.parametrize("stage", [Feedback(), *BASELINES], ids=lambda stage: type(stage).__name__)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 20)])
def test_zero_matrices_and_zero_metrics_get_positive_finite_steps(stage: Any, shape: tuple[int, int]) -> None:
    columns = shape[1]
    for moment in (np.zeros((columns, columns)), np.ones((columns, columns))):
        plan = make(stage, np.zeros(shape, np.float32), Metric(moment))
        for found in (plan.column_steps, plan.row_steps):
            assert np.isfinite(found).all() and (found > 0).all()


def test_row_scales_are_told_only_where_that_pays() -> None:
    weight, moment = source()
    assert not row_scale_codes(make(Feedback(), weight, Metric(moment))).any()
    weight[::2] *= 16
    codes = row_scale_codes(make(Feedback(), weight, Metric(moment)))
    assert codes[::2].mean() - codes[1::2].mean() == pytest.approx(4 * 4, abs=1)  # 4 octaves of 4 codes
