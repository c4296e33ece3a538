"""Gradients predict what small errors cost; a head's need no sampling; a model without a KL has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trueaxis.align.loss import fisher
from trueaxis.align.maps import Permute
from trueaxis.align.network import Change
from trueaxis.metric.calibrate import calibrate, load_tokens
from trueaxis.metric.gradient import Gradients, measure_gradients
from trueaxis.metric.metric import metric_for
from trueaxis.metric.running import load_model
from trueaxis.metric.sensitivity import measure_sensitivities
from trueaxis.metric.statistics import Statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.stages import Fisher
from trueaxis.types import Array, Weight

Measured = tuple[Checkpoint, Array, Gradients]


@pytest.fixture(scope="module")
def measured(tiny_llama: Path, tokens: Path) -> Measured:
    checkpoint, ids = Checkpoint.open(tiny_llama), load_tokens(tokens)
    return checkpoint, ids, measure_gradients(checkpoint, trace(checkpoint), ids, seed=0)


def _with(measured: Measured) -> Statistics:
    checkpoint, ids, found = measured
    statistics = calibrate(checkpoint, ids, seed=0)
    return replace(statistics, gradients=found.sums, gradient_tokens=found.tokens)


def test_half_the_mean_diagonal_is_the_sensitivity_that_noise_shows(measured: Measured) -> None:
    checkpoint, ids, found = measured
    statistics = _with(measured)
    weights = [weight for weight in trace(checkpoint) if weight.writes in ("residual", "logits", "query", "gate")]
    weights = [weight for weight in weights if weight.role in ("linear", "head")]
    noise = measure_sensitivities(checkpoint, weights, statistics, ids, seed=1)
    for weight in weights:
        sums = found.sums[weight.name]
        rows = (sums if sums.ndim == 1 else np.diag(sums)) / found.tokens
        assert rows.mean() / 2 == pytest.approx(noise[weight.name], rel=0.5), weight.name
        metric = fisher(Fisher(), weight, metric_for(weight, statistics), None, statistics)
        assert metric.row_weights == pytest.approx(0.95 * rows / rows.mean() + 0.05, rel=1e-3)


def test_the_heads_rows_weigh_as_their_probabilities_vary(measured: Measured) -> None:
    checkpoint, ids, found = measured
    with torch.inference_mode():
        shares = load_model(checkpoint)(torch.from_numpy(ids.astype(np.int64))).logits.double().softmax(-1)
    expected = (shares * (1 - shares)).sum((0, 1)).numpy()
    assert found.tokens == ids.size
    assert found.sums["lm_head.weight"] == pytest.approx(expected, rel=1e-4)


def test_an_embedding_is_judged_by_what_its_output_does(measured: Measured) -> None:
    checkpoint, _, found = measured
    statistics = _with(measured)
    weight = next(weight for weight in trace(checkpoint) if weight.role == "embedding")
    metric = fisher(Fisher(), weight, metric_for(weight, statistics), None, statistics)
    sums = found.sums[weight.name]
    assert metric.second_moment is not None
    expected = 0.95 * sums / np.diag(sums).mean() + 0.05 * np.eye(len(sums))
    assert np.allclose(metric.second_moment, expected)


def test_a_tied_matrix_has_both(tied_llama: Path, tokens: Path) -> None:
    checkpoint, ids = Checkpoint.open(tied_llama), load_tokens(tokens)
    weight = next(weight for weight in trace(checkpoint) if weight.role == "tied")
    statistics = _with((checkpoint, ids, measure_gradients(checkpoint, [weight], ids, seed=0)))
    metric = fisher(Fisher(), weight, metric_for(weight, statistics), None, statistics)
    assert metric.embedding_moment is not None
    assert metric.row_weights is not None
    assert np.diag(metric.embedding_moment).mean() == pytest.approx(1) == metric.row_weights.mean()


def test_outputs_take_their_metric_along() -> None:
    weight = Weight("w", (2, 2), "F32", "linear", "s")
    sums = np.array([[4.0, 1.0], [1.0, 2.0]])
    statistics = Statistics({"s": np.eye(2)}, {}, {"s": 1}, np.ones(1), "", (), np.zeros(0), {}, {"w": sums}, 2)
    change = Change("turned", writes=(Permute(np.array([1, 0])),))
    metric = fisher(Fisher(), weight, metric_for(weight, statistics), change, statistics)
    assert metric.row_weights == pytest.approx([0.95 * 2 / 3 + 0.05, 0.95 * 4 / 3 + 0.05])


def test_what_was_not_heard_stays_layerwise() -> None:
    weight = Weight("w", (2, 2), "F32", "linear", "s")
    statistics = Statistics({"s": np.eye(2)}, {}, {"s": 1}, np.ones(1), "", (), np.zeros(0))
    metric = metric_for(weight, statistics)
    assert fisher(Fisher(), weight, metric, None, statistics) is metric
