"""Identities of D under a change of axes, limits against brute force, factors of difficult metrics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from trueaxis.metric.metric import (
    damped_cholesky,
    distance,
    fold_norm,
    limit_bits,
    metric_for,
    row_probabilities,
    structured_limit_bits,
    transform,
    transform_output,
)
from trueaxis.metric.statistics import Chunk, Statistics
from trueaxis.types import Array, CalibrationError, Metric, TrueaxisError, Weight


def _spd(rng: np.random.Generator, width: int) -> Array:
    factor = rng.standard_normal((width, 2 * width))
    return factor @ factor.T / width


def test_distance_is_the_same_in_every_gauge() -> None:
    rng = np.random.default_rng(0)
    error, matrix, moment = rng.standard_normal((5, 7)), rng.standard_normal((7, 7)), _spd(rng, 7)
    rows = rng.uniform(0.1, 2, 5)
    moved = error @ np.linalg.inv(matrix)
    expected = distance(error, Metric(moment, rows))
    assert distance(moved, Metric(transform(moment, matrix), rows)) == pytest.approx(expected, rel=1e-10)


def test_output_metric_is_the_same_in_every_gauge() -> None:
    rng = np.random.default_rng(1)
    error, matrix = rng.standard_normal((5, 7)), rng.standard_normal((5, 5))
    output, moment = _spd(rng, 5), _spd(rng, 7)
    moved_error, moved_output = matrix @ error, transform_output(output, matrix)
    expected = np.trace(output @ error @ moment @ error.T)
    assert np.trace(moved_output @ moved_error @ moment @ moved_error.T) == pytest.approx(expected, rel=1e-10)


def test_distance_by_its_formula() -> None:
    rng = np.random.default_rng(2)
    error, moment = rng.standard_normal((5, 7)), _spd(rng, 7)
    rows, embedding = rng.uniform(size=5), rng.uniform(size=5)
    expected = sum(rows[i] * error[i] @ moment @ error[i] + embedding[i] * error[i] @ error[i] for i in range(5))
    assert distance(error, Metric(moment, rows, 9.0, embedding)) == pytest.approx(expected)
    assert distance(error, Metric(None)) == pytest.approx((error**2).sum())


def test_folding_a_norm_keeps_the_distance() -> None:
    rng = np.random.default_rng(3)
    normalized = rng.standard_normal((50, 6))
    gamma = np.array([1.0, -2.0, 0.0, 1e-3, 0.5, 3.0])
    read = normalized * gamma
    weight, error, moment = rng.standard_normal((4, 6)), rng.standard_normal((4, 6)), read.T @ read / 50
    folded, folded_moment = fold_norm(weight, moment, gamma)
    alive = gamma != 0
    assert np.allclose(folded_moment[np.ix_(alive, alive)], (normalized.T @ normalized / 50)[np.ix_(alive, alive)])
    assert not folded_moment[~alive].any()
    assert not folded[:, ~alive].any()
    assert distance(error * gamma, Metric(folded_moment)) == pytest.approx(distance(error, Metric(moment)))


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_cholesky_escalates_until_it_succeeds(rank: int) -> None:
    rng = np.random.default_rng(rank)
    factor = rng.standard_normal((8, rank))
    moment = factor @ factor.T - 1e-3 * np.eye(8) * (rank == 3)  # rank 3: not even semidefinite
    lower, damping = damped_cholesky(moment)
    assert np.allclose(lower @ lower.T, moment + damping * np.eye(8))
    assert (np.diag(lower) > 0).all()
    assert not np.triu(lower, 1).any()
    start = 1e-6 * np.trace(moment) / 8
    assert damping == pytest.approx(start) if rank != 3 else damping > start


def test_cholesky_of_nothing_and_of_nonsense() -> None:
    lower, damping = damped_cholesky(np.zeros((3, 3)))
    assert damping > 0
    assert np.allclose(lower @ lower.T, damping * np.eye(3), rtol=1e-12, atol=0)
    off_diagonal = np.array([[0.0, 1.0], [1.0, 0.0]])
    lower, damping = damped_cholesky(off_diagonal)
    assert np.allclose(lower @ lower.T, off_diagonal + damping * np.eye(2))
    with pytest.raises(CalibrationError, match=r"metric \[2, 2\] holds NaN or Inf"):
        damped_cholesky(np.array([[1.0, np.nan], [np.nan, 1.0]]))


def _brute_force_bits(variances: Array, distortion: float) -> float:
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(level, variances).sum() < distortion else (low, level)
    return float(np.maximum(0, 0.5 * np.log2(np.maximum(variances, 1e-300) / low)).mean())


@pytest.mark.parametrize("share", [1e-6, 0.01, 0.3, 0.9, 0.999])
def test_limit_against_bisection(share: float) -> None:
    rng = np.random.default_rng(4)
    weight, eigenvalues = rng.standard_normal((6, 5)), np.array([0.0, 1e-3, 0.5, 0.5, 40.0])
    rows, embedding = np.array([1.0, 1, 2, 2, 5, 0.1]), np.array([0, 0, 1.0, 1.0, 3.0, 0.2])
    basis = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    moment = (basis * eigenvalues) @ basis.T
    variances = (weight**2).mean() * (rows[:, None] * eigenvalues + embedding[:, None])
    distortion = share * variances.sum()
    found = limit_bits(moment, weight, distortion, row_weights=rows, embedding_weights=embedding)
    assert found == pytest.approx(_brute_force_bits(variances, distortion), rel=1e-6, abs=1e-9)


def test_limit_of_a_diagonal_metric_at_high_rate() -> None:
    rng = np.random.default_rng(5)
    weight, diagonal = rng.standard_normal((30, 4)), np.array([1.0, 2.0, 4.0, 8.0])
    variance, level = (weight**2).mean(), 1e-4
    expected = np.mean(0.5 * np.log2(variance * diagonal / level))
    assert limit_bits(np.diag(diagonal), weight, level * 30 * 4) == pytest.approx(expected)


def test_limit_at_the_ends() -> None:
    weight = np.ones((3, 4))
    assert limit_bits(np.eye(4), weight, 12.0) == 0
    assert limit_bits(np.eye(4), weight, 1e9) == 0
    assert limit_bits(None, weight, 0.0) == math.inf
    assert limit_bits(None, 0 * weight, 0.0) == 0


def test_structure_lowers_the_limit_and_its_absence_does_not() -> None:
    rng = np.random.default_rng(6)
    moment = _spd(rng, 16)
    independent = rng.standard_normal((4000, 16))
    planted = independent * np.linspace(0.05, 2, 16)
    for weight, lowest, highest in ((independent, -0.02, 0.02), (planted, 0.2, 2.0)):
        distortion = 1e-3 * distance(weight, Metric(moment))
        saved = limit_bits(moment, weight, distortion) - structured_limit_bits(moment, weight, distortion)
        assert lowest < saved < highest
    assert structured_limit_bits(None, independent, 64.0) == pytest.approx(
        limit_bits(None, independent, 64.0), abs=0.01
    )


def _statistics() -> Statistics:
    return Statistics(
        {"head": 20 * np.eye(3)}, {"head": np.zeros(3)}, {"head": 10}, np.array([4, 0, 6, 0]), "f",
        (Chunk("t", 0, 0, 10),), np.empty(0, np.uint64),
        {"tied#head": 2.0, "tied#embedding": 6.0, "linear": 5.0},
    )  # fmt: skip


def test_rows_count_by_what_was_read_and_what_the_model_predicts() -> None:
    counted = replace(_statistics(), predictions=np.array([0.0, 1.0, 3.0, 1.0]))
    assert np.allclose(row_probabilities(counted), np.array([2.5, 1.5, 6.5, 1.5]) / 12)
    other = replace(_statistics(), predictions=np.ones(3))  # of a head with fewer rows
    assert np.array_equal(row_probabilities(other), row_probabilities(_statistics()))


def test_metrics_of_each_role() -> None:
    statistics = _statistics()
    rows = np.array([4.5, 0.5, 6.5, 0.5]) / 12
    assert np.allclose(row_probabilities(statistics), rows)

    linear = metric_for(Weight("linear", (4, 3), "F32", "linear", "head"), statistics)
    assert linear.sensitivity == 5
    assert linear.second_moment is not None
    assert np.array_equal(linear.second_moment, 2 * np.eye(3))

    embedding = metric_for(Weight("embedding", (4, 3), "F32", "embedding"), statistics)
    assert (embedding.second_moment, embedding.sensitivity) == (None, 1.0)
    assert embedding.row_weights is not None
    assert np.allclose(embedding.row_weights, rows)

    tied = metric_for(Weight("tied", (4, 3), "F32", "tied", "head"), statistics)
    assert tied.sensitivity == 2
    assert tied.row_weights is None
    assert tied.embedding_weights is not None
    assert np.allclose(tied.embedding_weights, 3 * rows)

    loose = metric_for(Weight("loose", (4, 3), "F32", "linear"), replace(statistics, sensitivities={}))
    assert (loose.second_moment, loose.row_weights, loose.sensitivity) == (None, None, 1.0)


def test_metrics_that_do_not_exist() -> None:
    statistics = _statistics()
    with pytest.raises(CalibrationError, match=r"^nowhere: the statistics hold no such input space"):
        metric_for(Weight("w", (4, 3), "F32", "linear", "nowhere"), statistics)
    with pytest.raises(CalibrationError, match=r"^w: metric is \[3, 3\] but the weight has 5 inputs"):
        metric_for(Weight("w", (4, 5), "F32", "linear", "head"), statistics)
    with pytest.raises(CalibrationError, match=r"^w: statistics count 4 tokens but the weight has 7 rows"):
        metric_for(Weight("w", (7, 3), "F32", "embedding"), statistics)
    with pytest.raises(TrueaxisError, match=r"^w: is kept exactly"):
        metric_for(Weight("w", (7,), "F32", "exact"), statistics)
