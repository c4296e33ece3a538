"""Gauges leave the network's function and D as they are, and say what they leave out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import trueaxis
from trueaxis.align import gauge as gauging
from trueaxis.align.gauge import LARGEST_KL_NATS, gauge
from trueaxis.align.network import Change, Network
from trueaxis.align.symmetry import SYMMETRIES, Part
from trueaxis.metric.calibrate import calibrate
from trueaxis.metric.metric import distance
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.recipe import Recipe, recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.stages import Gauge


@pytest.fixture(scope="module")
def network(tiny_llama: Path, tokens: Path) -> Network:
    checkpoint = Checkpoint.open(tiny_llama)
    weights = trace(checkpoint)
    statistics = calibrate(checkpoint, np.load(tokens), seed=0)
    bits = 3.0 * sum(weight.size for weight in weights)
    return Network(checkpoint, weights, statistics, bits)


@pytest.mark.parametrize("name", SYMMETRIES)
def test_every_symmetry_is_exact(network: Network, name: str) -> None:
    part = SYMMETRIES[name](network, "hadamard")
    assert part.changes, part.choice
    assert gauging.moved_nats(network, part.changes, part.products) < LARGEST_KL_NATS


def test_distortion_is_the_same_number(network: Network) -> None:
    alignment = gauge(Gauge("random", "random"), network)
    rng = np.random.default_rng(0)
    checked = 0
    for weight in network.weights:
        if weight.role == "exact":
            continue
        metric, error = network.metric(weight), rng.normal(size=weight.shape)
        change = alignment.changes.get(weight.name, Change("identity"))
        moved = alignment.aligned(weight, error.astype(np.float32), metric, {})
        assert distance(change.tensor(error), moved.metric) == pytest.approx(distance(error, metric), rel=1e-6)
        checked += weight.name in alignment.changes
    assert checked == len([weight for weight in network.weights if weight.role != "exact"])


def test_what_was_checked_is_what_is_quantized(network: Network) -> None:
    alignment = gauge(Gauge("random", "random"), network)
    assert alignment.checked.keys() == {weight.name for weight in network.weights if weight.role != "exact"}
    for weight in network.weights:
        if weight.role != "exact":
            matrix = network.checkpoint.matrix(weight).float().contiguous().numpy()
            np.testing.assert_array_equal(
                alignment.checked[weight.name], alignment.aligned(weight, matrix, network.metric(weight), {}).weight
            )


def test_a_wrong_symmetry_is_named_and_left_out(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(network: Network, axes: str) -> Part:
        part = SYMMETRIES["residual"](network, "random")
        last = next(name for name in part.changes if name.endswith("down_proj.weight"))
        return replace(part, changes={name: change for name, change in part.changes.items() if name != last})

    monkeypatch.setattr(gauging, "SYMMETRIES", {**SYMMETRIES, "residual": wrong})
    alignment = gauge(Gauge(heads="hadamard"), network)
    assert any(note.startswith("residual: left out, it moves the output by") for note in alignment.gauges)
    assert not any("residual" in change.coordinates for change in alignment.changes.values())
    assert any("heads" in change.coordinates for change in alignment.changes.values())


@pytest.mark.parametrize("name", ["gauge", "rotation", "pca"])
def test_compressed_model_is_an_ordinary_one(tiny_llama: Path, tokens: Path, tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForCausalLM

    report = trueaxis.compress(tiny_llama, tmp_path / "out", bits=8, calibration=[tokens], recipe=name)
    assert 8 * 0.99 <= report.bits_per_param <= 8
    assert all(row.relative_distortion < 1e-2 for row in report.tensors)
    assert {row.coordinates for row in report.tensors} - {"exact", "identity"}
    trueaxis.unpack(tmp_path / "out", tmp_path / "plain")
    plain, original = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
                       for path in (tmp_path / "plain", tiny_llama))  # fmt: skip
    ids = torch.arange(64)[None]
    with torch.inference_mode():
        loaded = trueaxis.load(tmp_path / "out", torch.float32)(ids).logits
        expected = original(ids).logits
        assert torch.allclose(plain(ids).logits, loaded, atol=0.1)
    assert torch.linalg.vector_norm(loaded - expected) < 0.1 * torch.linalg.vector_norm(expected)
    norm = plain.state_dict()["model.layers.0.input_layernorm.weight"]
    told = Decoder(tmp_path / "out").container.header["gauge"]
    if name == "gauge":  # i.i.d. weights: no axes save more than chance
        assert told[0] == "residual: own axes: others save no more than chance"
    else:
        assert bool((norm == 1).all()) and len(told) >= 1


def test_a_tied_head_becomes_the_embedding_times_a_matrix(tied_llama: Path, tokens: Path, tmp_path: Path) -> None:
    original = Checkpoint.open(tied_llama)
    report = trueaxis.compress(
        tied_llama, tmp_path / "out", bits=8, calibration=[tokens], recipe=Recipe(align=Gauge("random"))
    )
    decoder, name = Decoder(tmp_path / "out"), "model.embed_tokens.weight"
    assert decoder.source("lm_head.weight") == name
    assert decoder.alias("lm_head.weight") is None
    row = next(row for row in report.tensors if row.name == "lm_head.weight")
    assert row.coordinates == "residual:random:head"
    assert 0 < row.relative_distortion < 1e-3
    assert report.parameters == original.parameters
    model = trueaxis.load(tmp_path / "out", torch.float32)
    assert not model.config.tie_word_embeddings
    embedding, gamma = original.tensor(name), original.tensor("model.norm.weight")
    with torch.no_grad():
        turned = torch.linalg.lstsq(model.model.embed_tokens.weight, embedding).solution
        as_head = torch.linalg.lstsq(model.lm_head.weight, embedding * gamma).solution
    assert torch.allclose(turned @ turned.T, torch.eye(64), atol=0.1)
    assert torch.allclose(as_head, turned, atol=0.05)
    found = trueaxis.inspect(tmp_path / "out")
    storage = {row["name"]: row["storage"] for row in found["tensors"]}
    assert storage["lm_head.weight"] == f"{name} times a matrix"


def test_a_tied_head_that_does_not_pay_stays_tied(tied_llama: Path, tokens: Path, tmp_path: Path) -> None:
    """Random weights have no axes to find that are worth the bytes of a matrix."""
    trueaxis.compress(tied_llama, tmp_path / "out", bits=8, calibration=[tokens], recipe="gauge")
    told = Decoder(tmp_path / "out").container.header["gauge"]
    assert any(note.startswith("residual: own axes") for note in told)
    model = trueaxis.load(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings


def test_recipes_are_one_journey_with_one_stage_changed() -> None:
    for name in ("rotation", "pca", "gauge"):
        changed = recipe(name)
        assert replace(changed, align=recipe("identity").align) == recipe("identity")
        assert type(changed).from_json(changed.to_json()) == changed
    with pytest.raises(trueaxis.TrueaxisError, match="'diagonal' is not one of: off, best"):
        document = recipe("gauge").to_json()
        document["stages"]["align"]["heads"] = "diagonal"
        type(recipe("gauge")).from_json(document)
