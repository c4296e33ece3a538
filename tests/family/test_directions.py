"""Directions: planted ones are found and pay for themselves, unrelated members choose none."""

from __future__ import annotations

import numpy as np
import pytest

from trueaxis.family.directions import Group, mean_metric
from trueaxis.quantize.budget import first_c
from trueaxis.quantize.plan import Plan, Planner
from trueaxis.stages import Feedback
from trueaxis.types import Array, Metric, Weight

ROWS, COLUMNS, MEMBERS, BITS = 96, 64, 4, 2.0
WEIGHT = Weight("w", (ROWS, COLUMNS), "F32", "linear", "space")


def normal(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def metric_of(seed: int) -> Metric:
    inputs = np.random.default_rng(seed).normal(size=(400, COLUMNS)) * 2.0 ** np.linspace(-1, 1, COLUMNS)
    return Metric(inputs.T @ inputs / 400, None, 0.3)


def planned(matrix: Array, metric: Metric) -> Plan:
    return Planner(Feedback()).plan(WEIGHT, np.ascontiguousarray(matrix, np.float32), metric)


def group_of(matrices: list[Array]) -> Group:
    plans = [[planned(matrix, metric_of(number))] for number, matrix in enumerate(matrices)]
    levels = [first_c(row, BITS * ROWS * COLUMNS) for row in plans]
    return Group([WEIGHT], plans, levels, Feedback())


@pytest.mark.parametrize("count", [1, 2])
def test_at_least_nine_tenths_of_the_planted_bits_are_found(count: int) -> None:
    rng = np.random.default_rng(5)
    planted = [normal(100 + j) for j in range(count)]
    shares = rng.normal(size=(MEMBERS, count)) + 2 * np.eye(MEMBERS, count)
    own = [0.05 * normal(k) for k in range(MEMBERS)]
    group = group_of([sum(share * one for share, one in zip(row, planted, strict=True)) + own[k]
                      for k, row in enumerate(shares)])  # fmt: skip
    chosen = group.directions(3)
    assert len(chosen) == count
    found = group.saved_bits([[replaced.plan] for (replaced,) in chosen], 1.0)[1]
    metric = mean_metric([metric_of(number) for number in range(MEMBERS)])
    scale = np.sqrt(np.square(shares).sum(axis=0))  # the truth in the size that directions have: Σ θ² = 1
    truth = [[planned(size * one, metric)] for size, one in zip(scale, planted, strict=True)]
    octaves = np.log2(group.levels).mean() + np.arange(-1, 5, 0.5)
    best = max(group.saved_bits(truth, float(2.0**at))[1] for at in octaves)
    assert best > 0.5 * ROWS * COLUMNS  # there is something to find
    assert found > 0.9 * best


def test_unrelated_members_choose_nothing() -> None:
    assert group_of([normal(k) for k in range(MEMBERS)]).directions(3) == []
    assert group_of([(1 + k) * normal(k) for k in range(MEMBERS)]).directions(3) == []


def test_two_members_that_share_little_choose_nothing() -> None:
    common = normal(9)
    assert group_of([normal(k) + 0.3 * common for k in range(2)]).directions(1) == []


def test_mean_metric_goes_by_sensitivity() -> None:
    found = mean_metric([Metric(None, np.ones(3), 1.0), Metric(None, 5 * np.ones(3), 3.0)])
    assert found.second_moment is None and found.row_weights is not None
    assert np.allclose(found.row_weights, 4) and found.sensitivity == 2
