"""Learned axes: exact like every gauge, better where axes were spoilt, and dropped where held-out statistics say so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import trueaxis
from trueaxis.align import learned as learning
from trueaxis.align.gauge import LARGEST_KL_NATS, exact_parts, joined, moved_nats
from trueaxis.align.held_out import coded_cost, divided
from trueaxis.align.learned import learned
from trueaxis.align.network import Alignment, Change, Network
from trueaxis.align.proxy import relaxed, visit
from trueaxis.align.trial import pieces_of, tried
from trueaxis.cli import main
from trueaxis.metric.calibrate import calibrate
from trueaxis.metric.metric import distance
from trueaxis.metric.statistics import without
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import Planner
from trueaxis.quantize.start import settled_tables
from trueaxis.recipe import recipe
from trueaxis.stages import Feedback, Learned
from trueaxis.types import CalibrationError, Metric, Weight

SPOILT = Learned("hadamard", "hadamard", "best", "off")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """A Llama whose stream and heads have axes of very different energy, and text for it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("learned")
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.08, tie_word_embeddings=False,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    scale = torch.from_numpy(2.0 ** rng.normal(0, 1.2, 32)).float()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(4)
        model = LlamaForCausalLM(config)
        for name, value in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                value.mul_(scale[:, None])
            elif "norm" not in name:
                value.mul_(scale)
    model.save_pretrained(place)
    np.save(place / "tokens.npy", rng.integers(0, 128, (64, 64)).astype(np.uint16))
    checkpoint = Checkpoint.open(place)
    weights = trace(checkpoint)
    statistics = calibrate(checkpoint, np.load(place / "tokens.npy"), seed=0)
    bits = 3.0 * sum(weight.size for weight in weights)
    return Network(checkpoint, weights, statistics, bits, text=[place / "tokens.npy"])


@pytest.fixture(scope="module")
def found(network: Network) -> Alignment:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "LEARNING_RATE", 0.02)
        return learned(replace(SPOILT, steps=40), network)


def test_spoilt_axes_get_better(found: Alignment) -> None:
    told = found.learning
    assert told is not None and told.kept == "learned"
    assert told.held_out["learned"] < told.held_out["start"] - 0.02
    assert told.curve[-1]["noise"] < told.curve[0]["noise"]
    assert {"step", "noise", "sparsity", "distortion"} == told.curve[0].keys() and len(told.curve) == 40
    assert any(note.startswith("learned: ") and note.endswith("learned kept") for note in found.gauges)
    assert found.spaces[-1].estimated_saved_bits > 0.02


def test_what_is_learned_is_exact_and_keeps_d(network: Network, found: Alignment) -> None:
    assert moved_nats(network, found.changes) < LARGEST_KL_NATS
    rng, turned = np.random.default_rng(0), 0
    for weight in network.weights:
        if weight.role == "exact":
            continue
        metric, error = network.metric(weight), rng.normal(size=weight.shape)
        change = found.changes.get(weight.name, Change("identity"))
        moved = found.aligned(weight, error.astype(np.float32), metric, {})
        assert distance(change.tensor(error), moved.metric) == pytest.approx(distance(error, metric), rel=1e-6)
        turned += "learned" in change.coordinates
    assert turned > 10


def test_axes_that_do_not_win_held_out_are_dropped(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = iter([2.0, 2.0])
    monkeypatch.setattr(learning, "coded_cost", lambda *_: next(costs))
    kept = learned(replace(SPOILT, steps=2), network)
    assert kept.learning is not None and kept.learning.kept == "start"
    assert not any("learned" in change.coordinates for change in kept.changes.values())


def test_without_steps_it_is_the_gauge(network: Network) -> None:
    parts, notes = exact_parts(SPOILT, network)
    start = learned(replace(SPOILT, steps=0), network)
    assert start.gauges == notes and start.learning is None
    assert start.changes.keys() == joined(parts).keys()


@pytest.mark.parametrize("choice", [{"proxy": "sparsity"}, {"distortion": "kl"}])
def test_other_objectives_lower_the_cost_too(
    network: Network, choice: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "LEARNING_RATE", 0.02)
    other = learned(replace(SPOILT, steps=25, **choice), network)  # type: ignore[arg-type]
    assert other.learning is not None and other.learning.kept == "learned"
    assert other.learning.held_out["learned"] < other.learning.held_out["start"] - 0.01


def test_straight_through_kl_is_that_of_the_rounded_model(network: Network) -> None:
    """At the start the rotations are the identity: the loss is the KL of the model with these very errors."""
    from trueaxis.align.estimate import SLOPE
    from trueaxis.align.straight import StraightThrough

    parts, _ = exact_parts(SPOILT, network)
    start = Alignment(joined(parts))
    turns = [turn for part in parts for turn in part.turns]
    pieces, moments = pieces_of(network, start, turns)
    rotations = [torch.eye(turn.side).repeat(turn.count, 1, 1).requires_grad_(True) for turn in turns]
    tokens = np.load(network.text[0]).astype(np.int64)
    trial = tried(pieces, moments, rotations, 10**6)
    loss = StraightThrough(network, start, tokens)(trial, rotations)
    kl = float(loss.detach()) * network.water / SLOPE
    predicted = sum(float(one.relaxation.distortion_bits.detach()) for one in trial) * network.water / SLOPE
    assert 0.2 * predicted < kl < 5 * predicted  # both are nats per token, sensitivities are 1
    (gradient,) = torch.autograd.grad(loss, rotations[:1])
    assert bool(torch.isfinite(gradient).all()) and float(gradient.abs().max()) > 0


def test_the_proxy_knows_what_the_quantizer_takes() -> None:
    """Gaussian columns of one energy each: bits by noise within 6 % of those really coded, distortion within 15 %."""
    from trueaxis import _core
    from trueaxis.align.estimate import SLOPE
    from trueaxis.entropy.model import CLASSES, MAGNITUDES, fit_tables
    from trueaxis.entropy.stream import segment

    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(48, 48)) * 2.0 ** rng.normal(0, 1, 48)
    moment = mixing @ mixing.T
    weight = rng.normal(size=(4000, 48)).astype(np.float32)
    stage, c = Feedback(effort="scalar"), 2.0
    plan = Planner(stage).plan(Weight("w", weight.shape, "F32", "linear", "s"), weight, Metric(moment))
    outcome = quantize(plan, c, settled_tables(0, stage.rate_weight))
    coded = segment(outcome.quantized)
    tables = fit_tables(_core.count_symbols(CLASSES, MAGNITUDES[-1], [coded]), settled_tables(0, 0.03).offsets)
    bits, lost = _core.stream_bits(tables.coder, [coded]), distance(outcome.errors, Metric(moment))
    ones, noise = torch.ones(len(weight)), torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) - 0.5
    found = relaxed(torch.from_numpy(weight), visit(torch.from_numpy(moment).float()), 1 / c, ones, ones, noise)
    assert 1.0 < bits / weight.size < 4.0
    assert float(found.noise_bits) == pytest.approx(bits, rel=0.06)
    assert float(found.distortion_bits) == pytest.approx(SLOPE * lost / c**2, rel=0.15)


def test_held_out_statistics_are_apart(network: Network) -> None:
    seen, held, tokens = divided(network)
    assert len(tokens) == 48
    for space, whole in network.statistics.sums.items():
        np.testing.assert_allclose(seen.statistics.sums[space] + held.statistics.sums[space], whole, rtol=1e-9)
        assert seen.statistics.tokens[space] + held.statistics.tokens[space] == network.statistics.tokens[space]
    with pytest.raises(CalibrationError, match="not measured together"):
        without(held.statistics, network.statistics)


def test_text_is_sampled_where_none_can_be_held_out(network: Network) -> None:
    seen, held, tokens = divided(replace(network, text=()))
    assert seen.statistics is network.statistics
    assert held.statistics.chunks[0].text != network.statistics.chunks[0].text and tokens.size
    assert np.isfinite(coded_cost(seen, held, Alignment()))


def test_scaled_channels_have_the_same_indices() -> None:
    """Steps follow a positive scaling of the inputs, so there is nothing to learn about it."""
    rng = np.random.default_rng(1)
    weight, mixing = rng.normal(size=(64, 24)).astype(np.float32), rng.normal(size=(24, 24))
    moment, scale = mixing @ mixing.T, 2.0 ** rng.integers(-2, 3, 24).astype(np.float64)
    order = np.argsort(-np.diag(moment))
    scale[order] = np.sort(scale)[::-1]  # energies keep their order
    tables, planner, name = settled_tables(0, 0.03), Planner(Feedback(effort="scalar", damping=0.0)), "linear"
    indices = []
    for space, factor in (("plain", np.ones(24)), ("scaled", scale)):
        matrix = (weight / factor).astype(np.float32)
        metric = Metric(moment * np.outer(factor, factor))
        plan = planner.plan(Weight(space, weight.shape, "F32", name, space), matrix, metric)  # type: ignore[arg-type]
        indices.append(quantize(plan, 0.7, tables).quantized.indices)
    assert np.mean(indices[0] == indices[1]) > 0.99  # but for rounding


def test_report_and_inspect_tell_the_axes_of_every_space(
    network: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = replace(recipe("learned"), align=replace(SPOILT, steps=3))
    report = trueaxis.compress(
        network.checkpoint.path, tmp_path / "out", bits=4, calibration=network.text, recipe=chosen
    )
    assert report.learning is not None and len(report.learning.curve) == 3
    left = json.loads((tmp_path / "out" / "trueaxis.json").read_text())
    assert left["learning"]["curve"] == list(report.learning.curve)
    names = [space["name"] for space in left["spaces"]]
    assert names[0] == "residual" and sum("value heads" in name for name in names) == 2
    assert main(["inspect", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "learned (noise, metric): bits + λ·D per weight on statistics held out" in told
    assert any(line.split()[:2] == ["residual", "hadamard"] for line in told.splitlines())
    damaged = left | {"spaces": [{"name": "residual"}]}
    (tmp_path / "out" / "trueaxis.json").write_text(json.dumps(damaged))
    assert trueaxis.inspect(tmp_path / "out")["report"] is None


def test_the_recipe_is_gauge_with_one_stage_changed() -> None:
    assert replace(recipe("learned"), align=recipe("gauge").align) == recipe("gauge")
    assert type(recipe("learned")).from_json(recipe("learned").to_json()) == recipe("learned")
