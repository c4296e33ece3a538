"""Every family in its gauge: which symmetries it has, each exact, and what comes out is an ordinary model of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import special_ortho_group

import trueaxis
from families import CASES, build, output_of, save_tokens
from trueaxis.align import gauge as gauging
from trueaxis.align.gauge import LARGEST_KL_NATS
from trueaxis.align.network import Network
from trueaxis.align.part import join
from trueaxis.align.symmetry import SYMMETRIES
from trueaxis.metric.calibrate import calibrate
from trueaxis.metric.metric import distance
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.families import FAMILIES
from trueaxis.model.graph import trace
from trueaxis.recipe import Recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.stages import Gauge
from trueaxis.types import Metric

NORMED, UNKNOWN = "queries and keys are normalized", "no attention whose heads are known"
ALL = {"residual": "", "heads": "", "planes": "", "order": "", "channels": ""}
NONE = {
    "residual": "family is not known by name",
    "heads": UNKNOWN,
    "planes": UNKNOWN,
    "order": UNKNOWN,
    "channels": "no hidden channels are known",
}
# What a symmetry is left out for; empty where it is used. The same table stands in docs/theory.md.
TABLE = {
    "llama": ALL,
    "mistral": ALL,
    "qwen2": ALL,
    "qwen3": ALL | {"planes": NORMED},
    "mixtral": ALL,
    "qwen2_moe": ALL,
    "qwen3_moe": ALL | {"planes": NORMED},
    "gemma2": ALL | {"residual": "sandwich norms"},
    "gemma3_text": ALL | {"residual": "sandwich norms", "planes": NORMED},
    "phi": ALL,
    "phi3": ALL,
    "gpt2": ALL,
    "gpt_neox": ALL,
    "opt": ALL,
    "bert": ALL | {"residual": "post norms"},
    "opt, post-norm": ALL | {"residual": "post norms"},
    "bert with heads": ALL | {"residual": "post norms"},
    "gpt2 without a head": ALL | {"residual": "no head"},
    "olmo2": NONE,
    "gpt_oss": NONE,
    "mamba": NONE,
    "t5": NONE,
    # Variants of which the table of families has no row of its own.
    "opt, untied": ALL,
    "gpt2, untied": ALL,
    "phi, normalized": ALL | {"planes": NORMED},
}
TURNED = Gauge("random", "random", "random", "best", "best")


def test_every_family_has_a_row() -> None:
    assert FAMILIES.keys() | CASES.keys() <= TABLE.keys()


def network_of(path: Path, tokens: Path) -> Network:
    checkpoint = Checkpoint.open(path)
    weights = trace(checkpoint)
    statistics = calibrate(checkpoint, np.load(tokens), seed=0)
    return Network(checkpoint, weights, statistics, 3.0 * sum(weight.size for weight in weights))


@pytest.mark.parametrize("name", TABLE)
def test_symmetries_are_exact(name: str, tmp_path: Path) -> None:
    model = build(CASES[name])
    model.save_pretrained(tmp_path / "original")
    network = network_of(tmp_path / "original", save_tokens(tmp_path))
    parts = {key: SYMMETRIES[key](network, getattr(TURNED, key)) for key in SYMMETRIES}
    for key, part in parts.items():
        reason = TABLE[name][key]
        assert bool(part.changes) == (not reason), part.choice
        assert reason in part.choice
        if part.changes:
            assert gauging.moved_nats(network, part.changes, part.products) < LARGEST_KL_NATS / 1000
    used = [part for part in parts.values() if part.changes]
    for turn in (turn for part in used for turn in part.turns):
        turned = dict(gauging.joined(used))
        rotations = special_ortho_group(turn.side, seed=0).rvs(turn.count).reshape(turn.count, turn.side, turn.side)
        for tensor, change in turn.changes(rotations).items():
            join(turned, tensor, change)
        assert gauging.moved_nats(network, turned, gauging.products(used)) < LARGEST_KL_NATS / 1000, turn.name
    if used:
        assert gauging.moved_nats(network, gauging.joined(used), gauging.products(used)) < LARGEST_KL_NATS / 1000


@pytest.mark.parametrize("name", TABLE)
def test_gauged_files_are_ordinary_models(name: str, tmp_path: Path) -> None:
    model = build(CASES[name])
    model.save_pretrained(tmp_path / "original")
    report = trueaxis.compress(
        tmp_path / "original",
        tmp_path / "out",
        bits=10,  # a router of random weights that flips on one token is worth 5 %
        calibration=[save_tokens(tmp_path)],
        recipe=Recipe(align=TURNED),
    )
    notes = Decoder(tmp_path / "out").container.header["gauge"]
    assert len(notes) == len(SYMMETRIES)
    for note, (key, reason) in zip(notes, TABLE[name].items(), strict=True):
        assert note.startswith(f"{key}: ")
        assert reason in note
        assert "left out" not in note
    turned = {part for row in report.tensors for part in row.coordinates.split("+")}
    assert ("residual:random" in turned) == (not TABLE[name]["residual"])
    loaded = trueaxis.load(tmp_path / "out")
    assert type(loaded) is type(model)
    trueaxis.unpack(tmp_path / "out", tmp_path / "plain")
    found, expected = output_of(loaded), output_of(model)
    assert torch.equal(found, output_of(type(model).from_pretrained(tmp_path / "plain")))
    assert 0 < torch.linalg.vector_norm(found - expected) < 0.05 * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "opt"])
def test_tied_heads_are_products(name: str, tmp_path: Path) -> None:
    """The head of the file is the embedding times a small matrix; its error costs what the embedding's metric says."""
    build(CASES[name]).save_pretrained(tmp_path / "original")
    network = network_of(tmp_path / "original", save_tokens(tmp_path))
    alignment = gauging.gauge(TURNED, network)
    (product,) = alignment.products
    tied = next(weight for weight in network.weights if weight.role == "tied")
    table, metric = network.checkpoint.matrix(tied).double().numpy(), network.metric(tied)
    error = np.random.default_rng(0).normal(size=table.shape)
    moved = alignment.changes[tied.name].tensor(error) @ product.map
    assert distance(moved, Metric(product.metric.second_moment)) == pytest.approx(
        distance(error, Metric(metric.second_moment)), rel=1e-6
    )
    slight = np.random.default_rng(1).normal(size=product.map.shape)
    stored = alignment.changes[tied.name].tensor(table)
    squares = np.diag(np.square(stored).sum(axis=0)) ** 0.5
    assert distance(squares @ slight, Metric(product.metric.second_moment)) == pytest.approx(
        distance(slight, product.metric), rel=1e-6
    )


@pytest.mark.parametrize("name", ["phi", "gpt_neox", "gpt2, untied"])
def test_distortion_without_the_mean(name: str, tmp_path: Path) -> None:
    """D in the gauge is what an error does to x − β where β has moved into the biases, and to x elsewhere."""
    build(CASES[name]).save_pretrained(tmp_path / "original")
    network = network_of(tmp_path / "original", save_tokens(tmp_path))
    alignment, rng = gauging.gauge(TURNED, network), np.random.default_rng(0)
    shifted = 0
    for weight in network.weights:
        if weight.role == "exact":
            continue
        metric, change = network.metric(weight), alignment.changes[weight.name]
        error = rng.normal(size=weight.shape)
        if weight.role == "embedding":
            error -= error.mean(axis=1, keepdims=True)
        expected = distance(error, metric)
        if change.shift is not None:
            offset, mean = change.shift
            moved = error @ offset
            expected += float(moved @ moved - 2 * moved @ (error @ mean))
            shifted += 1
        aligned = alignment.aligned(weight, error.astype(np.float32), metric, {})
        found = distance(change.tensor(error), aligned.metric)
        if weight.writes == "residual" and weight.role == "linear":
            expected = distance(error - error.mean(axis=0), metric)
        assert found == pytest.approx(expected, rel=1e-5), weight.name
    assert shifted >= 4


def test_the_mean_takes_no_bits(tmp_path: Path) -> None:
    """Readers of the stream have a column of zeros in the file, writers a row, and the model has neither."""
    build(CASES["phi"]).save_pretrained(tmp_path / "original")
    network = network_of(tmp_path / "original", save_tokens(tmp_path))
    alignment = gauging.gauge(TURNED, network)
    checked = 0
    for weight in network.weights:
        if weight.role == "exact":
            continue
        change, matrix = alignment.changes[weight.name], network.checkpoint.matrix(weight).double().numpy()
        stored = change.tensor(matrix)
        loaded = change.loaded(stored)
        if change.reflected:
            sides = [stored[:, -1]] if change.reflected == 1 else [stored[-1]]
            means = loaded.sum(axis=1 if change.reflected == 1 else 0)
            assert all(not side.any() for side in sides)
            assert np.abs(means).max() < 1e-9
            assert np.linalg.norm(loaded) == pytest.approx(np.linalg.norm(stored))
            checked += 1
    assert checked == len([w for w in network.weights if w.role != "exact"])
