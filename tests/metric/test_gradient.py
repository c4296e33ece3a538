"""Gradients predict what small errors cost; a head's need no sampling; a model without a KL has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import families

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
from trueaxis.types import Array, CalibrationError, Metric, Weight

Measured = tuple[Checkpoint, Array, Statistics, Gradients]


@pytest.fixture(scope="module")
def measured(tiny_llama: Path, tokens: Path) -> Measured:
    checkpoint, ids = Checkpoint.open(tiny_llama), load_tokens(tokens)
    statistics = calibrate(checkpoint, ids, seed=0)
    return checkpoint, ids, statistics, measure_gradients(checkpoint, trace(checkpoint), statistics, ids, seed=0)


def _with(measured: Measured) -> Statistics:
    _, _, statistics, found = measured
    return replace(statistics, gradients=found.sums, gradient_tokens=found.tokens)


def small_noise(checkpoint: Checkpoint, statistics: Statistics, ids: Array) -> dict[str, float]:
    """Sensitivities that noise of a tenth of the usual energy shows, over three streams."""
    weights, seeds = trace(checkpoint), range(3)
    found = [measure_sensitivities(checkpoint, weights, statistics, ids, s, noise_share=1e-3) for s in seeds]
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}


def test_sensitivities_are_those_that_small_noise_shows(measured: Measured) -> None:
    checkpoint, ids, statistics, found = measured
    noise = small_noise(checkpoint, statistics, ids)
    assert noise.keys() - found.sensitivities.keys() == {"model.embed_tokens.weight"}
    for key, value in found.sensitivities.items():
        assert value == pytest.approx(noise[key], rel=0.15), key


def test_predictions_are_mean_shares_of_the_model(measured: Measured) -> None:
    checkpoint, ids, _, found = measured
    with torch.inference_mode():
        logits = load_model(checkpoint)(torch.from_numpy(ids.astype(np.int64))).logits
    shares = logits.double().softmax(-1).sum((0, 1))
    assert found.tokens == ids.size
    assert np.allclose(found.predictions, shares.numpy(), rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "bert with heads"])
def test_whatever_the_form_of_matrices(family: str, tmp_path: Path) -> None:
    families.build(families.CASES[family]).save_pretrained(tmp_path)
    checkpoint, ids = Checkpoint.open(tmp_path), np.random.default_rng(0).integers(1, 90, (32, 64))
    statistics = calibrate(checkpoint, ids, seed=0)
    found = measure_gradients(checkpoint, trace(checkpoint), statistics, ids, seed=0).sensitivities
    noise = small_noise(checkpoint, statistics, ids)
    assert len(found) >= len(noise) - 3
    for key, value in found.items():
        assert value == pytest.approx(noise[key], rel=0.4), key


def test_gradients_do_not_tell_where_a_router_chooses(tmp_path: Path) -> None:
    families.build(families.CASES["mixtral"]).save_pretrained(tmp_path)
    checkpoint, ids = Checkpoint.open(tmp_path), np.random.default_rng(0).integers(0, 90, (16, 64))
    found = measure_gradients(checkpoint, trace(checkpoint), calibrate(checkpoint, ids, seed=0), ids, seed=0)
    assert found.sums
    assert not found.sensitivities


def test_half_the_mean_diagonal_is_the_sensitivity_that_noise_shows(measured: Measured) -> None:
    checkpoint, ids, _, found = measured
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
    checkpoint, ids, _, found = measured
    with torch.inference_mode():
        shares = load_model(checkpoint)(torch.from_numpy(ids.astype(np.int64))).logits.double().softmax(-1)
    expected = (shares * (1 - shares)).sum((0, 1)).numpy()
    assert found.tokens == ids.size
    assert found.sums["lm_head.weight"] == pytest.approx(expected, rel=1e-4)


def test_an_embedding_is_judged_by_what_its_output_does(measured: Measured) -> None:
    checkpoint, _, _, found = measured
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
    statistics = calibrate(checkpoint, ids, seed=0)
    gradients = measure_gradients(checkpoint, [weight], statistics, ids, seed=0)
    assert gradients.sensitivities.keys() == {f"{weight.name}#head"}
    statistics = _with((checkpoint, ids, statistics, gradients))
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


def test_gradients_of_another_shape_are_refused() -> None:
    weight = Weight("w", (4, 3), "F32", "linear", "s")
    statistics = Statistics({}, {}, {}, np.zeros(1), "", (), np.zeros(0), gradients={"w": np.eye(3)}, gradient_tokens=1)
    with pytest.raises(CalibrationError, match=r"w: expected gradients \[4\] or \[4, 4\], found \[3, 3\]"):
        fisher(Fisher(), weight, Metric(np.eye(3)), None, statistics)
