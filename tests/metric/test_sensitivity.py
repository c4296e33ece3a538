"""Sensitivities are positive, hardly depend on the noise, predict larger noise, and leave the model as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trueaxis.metric.calibrate import calibrate, load_tokens
from trueaxis.metric.sensitivity import _disturbed, _floored, measure_sensitivities
from trueaxis.metric.statistics import Statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.types import Array, CalibrationError


@pytest.fixture(scope="module")
def untied(tiny_llama: Path, tokens: Path) -> tuple[Checkpoint, Statistics, Array]:
    checkpoint, ids = Checkpoint.open(tiny_llama), load_tokens(tokens)
    return checkpoint, calibrate(checkpoint, ids, seed=0), ids[:16]


def test_positive_and_nearly_the_same_for_other_noise(untied: tuple[Checkpoint, Statistics, Array]) -> None:
    checkpoint, statistics, ids = untied
    weights = trace(checkpoint)
    one = measure_sensitivities(checkpoint, weights, statistics, ids, seed=1)
    other = measure_sensitivities(checkpoint, weights, statistics, ids, seed=2)
    assert one.keys() == {weight.name for weight in weights if weight.role != "exact"}
    for name, value in one.items():
        assert np.isfinite(value)
        assert value > 0
        assert 1 / 3 < value / other[name] < 3
    # Streams are per weight: measuring one alone gives the same number, and nothing was left disturbed.
    last = [weight for weight in weights if weight.name == "lm_head.weight"]
    assert measure_sensitivities(checkpoint, last, statistics, ids, seed=1)["lm_head.weight"] == one["lm_head.weight"]


def test_what_is_known_is_not_measured(untied: tuple[Checkpoint, Statistics, Array]) -> None:
    checkpoint, statistics, ids = untied
    weights = [weight for weight in trace(checkpoint) if weight.role in ("head", "embedding")]
    steps: list[str] = []
    found = measure_sensitivities(
        checkpoint, weights, statistics, ids, seed=1, known={"lm_head.weight": 3.0},
        progress=lambda _done, _all, name: steps.append(name),
    )  # fmt: skip
    assert steps == ["model.embed_tokens.weight"]
    assert found["lm_head.weight"] == 3.0
    alone = measure_sensitivities(checkpoint, weights, statistics, ids, seed=1)
    assert found["model.embed_tokens.weight"] == alone["model.embed_tokens.weight"]


def test_linear_in_the_distortion(untied: tuple[Checkpoint, Statistics, Array]) -> None:
    checkpoint, statistics, ids = untied
    weights = [weight for weight in trace(checkpoint) if "layers.1" in weight.name]
    small = measure_sensitivities(checkpoint, weights, statistics, ids, seed=1, noise_share=0.001)
    large = measure_sensitivities(checkpoint, weights, statistics, ids, seed=1, noise_share=0.01)
    for name, value in small.items():
        assert value == pytest.approx(large[name], rel=0.1)


def test_a_tied_matrix_has_one_number_per_use(tied_llama: Path, tokens: Path) -> None:
    checkpoint, ids = Checkpoint.open(tied_llama), load_tokens(tokens)
    statistics = calibrate(checkpoint, ids, seed=0)
    weights = [weight for weight in trace(checkpoint) if weight.role == "tied"]
    steps: list[str] = []
    found = measure_sensitivities(
        checkpoint, weights, statistics, ids[:16], seed=1, progress=lambda _done, _all, name: steps.append(name)
    )
    assert set(found) == {"model.embed_tokens.weight#embedding", "model.embed_tokens.weight#head"} == set(steps)
    assert all(value > 0 for value in found.values())


def test_refuses_other_checkpoints_and_tokens(untied: tuple[Checkpoint, Statistics, Array], tied_llama: Path) -> None:
    checkpoint, statistics, ids = untied
    with pytest.raises(CalibrationError, match=r"of another checkpoint"):
        measure_sensitivities(Checkpoint.open(tied_llama), (), statistics, ids, seed=1)
    with pytest.raises(CalibrationError, match=r"but the vocabulary"):
        measure_sensitivities(checkpoint, (), statistics, ids.astype(int) + 1000, seed=1)


def test_the_weight_is_restored_to_the_last_bit() -> None:
    parameter = torch.randn(50, 40)
    before = parameter.clone()
    with _disturbed(parameter, 1e3 * torch.randn(50, 40)):
        assert not torch.equal(parameter, before)
    assert torch.equal(parameter, before)


def test_no_matrix_is_free() -> None:
    assert _floored({"a": 2.0, "b": 0.0, "c": -1e-9}) == {"a": 2.0, "b": 2e-6, "c": 2e-6}
    assert _floored({"a": 0.0}) == {"a": 1.0}
