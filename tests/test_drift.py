"""Drift: matrices that are rounded in turn make up for the errors of those before them, at the size asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import trueaxis
from checkpoints import save_tokens
from families import CASES, build
from trueaxis import _core, drift
from trueaxis.assemble import count_symbols
from trueaxis.entropy.model import first_tables
from trueaxis.entropy.pooling import pooled
from trueaxis.entropy.stream import segment
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.preparation import Prepared, prepare
from trueaxis.progress import silent
from trueaxis.quantize.budget import OCTAVE_BITS
from trueaxis.recipe import NAMED, Recipe
from trueaxis.stages import Feedback, InTurn, NoDrift, RansPooled
from trueaxis.turns import MEASURES, Allowance, Turns
from trueaxis.types import Contexts, Grid, Quantized, Weight

TURNS = Recipe(drift=InTurn(tokens=4096), quantize=Feedback(effort="scalar"))


def _prepared(model: Path, tokens: Path, target: int, chosen: Recipe) -> Prepared:
    return prepare(
        Checkpoint.open(model), chosen, target, [tokens], None, seed=0, threads=1, device="cpu", progress=silent
    )


def test_the_model_comes_closer_on_other_text(tiny_llama: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    np.save(tmp_path / "tokens.npy", rng.integers(0, 128, (80, 64)))
    target = Checkpoint.open(tiny_llama).parameters * 3 // 8
    prepared = _prepared(tiny_llama, tmp_path / "tokens.npy", target, TURNS)
    found, unseen = {}, rng.integers(0, 128, (64, 64))
    for name, stage in (("stream", TURNS.drift), ("inputs", InTurn(4096, stream=0.0)), ("none", NoDrift())):
        one = replace(prepared, recipe=replace(TURNS, drift=stage))
        files = one.fit(target)
        assert 0.99 * target < files.file_bytes <= target
        one.save(files, tmp_path / name, overwrite=False, begun=0.0)
        found[name] = trueaxis.evaluate(tmp_path / name, tokens=unseen, reference=tiny_llama).kl_nats
    assert found["inputs"] < 0.9 * found["none"]
    assert found["stream"] < 0.9 * found["none"]


def test_the_stream_of_norms_after_the_addition(tmp_path: Path) -> None:
    """There it is what a sublayer reads itself."""
    build(CASES["opt, post-norm"]).save_pretrained(tmp_path / "model")
    tokens = save_tokens(tmp_path / "tokens.npy", 96, sequences=128)
    target = Checkpoint.open(tmp_path / "model").bytes_at(6.0)
    prepared, found = _prepared(tmp_path / "model", tokens, target, TURNS), {}
    unseen = np.random.default_rng(4).integers(0, 96, (96, 32))
    for stream in (0.0, 0.5):
        one = replace(prepared, recipe=replace(TURNS, drift=InTurn(4096, stream=stream)))
        one.save(one.fit(target), tmp_path / f"{stream}", overwrite=False, begun=0.0)
        scores = trueaxis.evaluate(tmp_path / f"{stream}", tokens=unseen, reference=tmp_path / "model")
        found[stream] = scores.kl_nats
    assert found[0.5] < found[0.0]


def test_one_sequence_of_text_is_enough(tiny_llama: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.random.default_rng(3).integers(0, 128, (1, 1025)))
    model = Path(shutil.copytree(tiny_llama, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1025}))
    target = Checkpoint.open(model).parameters * 5 // 8
    found = _prepared(model, tmp_path / "one.npy", target, TURNS).fit(target)
    assert 0.99 * target < found.file_bytes <= target


def test_short_text_is_made_longer_and_judged_by_itself(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = np.random.default_rng(3).integers(0, 128, (32, 32))
    np.save(tmp_path / "text.npy", text)
    read: list[np.ndarray] = []
    judged: list[np.ndarray] = []
    turns, divergence = drift.Turns, drift._divergence

    def told(*given: Any) -> Any:
        read.append(torch.cat(given[-1]).numpy())
        return turns(*given)

    def heard(model: Any, tokens: np.ndarray) -> float | None:
        judged.append(tokens)
        return divergence(model, tokens)

    monkeypatch.setattr(drift, "Turns", told)
    monkeypatch.setattr(drift, "_divergence", heard)
    target = Checkpoint.open(tiny_llama).parameters // 2
    _prepared(tiny_llama, tmp_path / "text.npy", target, TURNS).fit(target)
    assert np.array_equal(read[0][:28], text[:28])
    assert read[0].shape == (56, 32)
    assert np.array_equal(read[0][28:, :8], text[:28, :8])
    assert all(np.array_equal(one, text[28:]) for one in judged)


def test_targets_are_the_least_squares_ones() -> None:
    """Of y + η (r − r̃) on what the module reads, for two batches."""
    rng = np.random.default_rng(9)

    def batch(spread: float) -> list[dict[str, torch.Tensor]]:
        shapes = {"o": (200, 6), "norm": (200, 4)}
        return [
            {name: torch.from_numpy(spread * rng.standard_normal(shape)) for name, shape in shapes.items()}
            for _ in range(2)
        ]

    heard, errors = batch(1.0), batch(0.1)
    drifted = [{name: one[name] + other[name] for name in one} for one, other in zip(heard, errors, strict=True)]
    turns: Any = object.__new__(Turns)
    turns._stage, turns._batches = InTurn(damping=1e-12, stream=0.5), [0, 1]
    turns._course = SimpleNamespace(threads=1)
    turns._walks = [None, SimpleNamespace(until=lambda number, _module: drifted[number])]
    weight = rng.standard_normal((4, 6))
    shift = turns._shift("o", "norm", heard)
    original, compressed = (
        {name: np.concatenate([one[name].numpy() for one in batches]) for name in ("o", "norm")}
        for batches in (heard, drifted)
    )
    wanted = original["o"] @ weight.T + 0.5 * (original["norm"] - compressed["norm"])
    expected = np.linalg.lstsq(compressed["o"], wanted, rcond=None)[0].T
    assert np.allclose(weight + weight @ shift.inputs + shift.stream, expected, atol=1e-6)
    assert turns._shift("o", None, heard).stream is None


def test_without_the_text_the_report_says_so(tiny_llama: Path, tokens: Path, tmp_path: Path) -> None:
    trueaxis.compress(tiny_llama, tmp_path / "first", bits=4, calibration=[tokens], statistics=tmp_path / "s")
    report = trueaxis.compress(tiny_llama, tmp_path / "other", bits=4, statistics=tmp_path / "s", recipe=TURNS)
    assert any("calibration text behind the statistics is not at hand" in note for note in report.notes)
    plain = replace(TURNS, drift=NoDrift())
    quiet = trueaxis.compress(tiny_llama, tmp_path / "plain", bits=4, statistics=tmp_path / "s", recipe=plain)
    assert quiet.notes == ()


def test_the_baseline_meets_the_size_and_comes_closer(tiny_llama: Path, tmp_path: Path) -> None:
    """Its tables are pooled: matrices that drift may pool into one that the search has not seen."""
    rng = np.random.default_rng(8)
    np.save(tmp_path / "tokens.npy", rng.integers(0, 128, (80, 64)))
    found, unseen = {}, rng.integers(0, 128, (64, 64))
    for name in ("watersic", "watersic-at-once"):
        report = trueaxis.compress(
            tiny_llama, tmp_path / name, bits=3, calibration=[tmp_path / "tokens.npy"], recipe=name
        )
        assert 2.98 < report.bits_per_param <= 3
        found[name] = trueaxis.evaluate(tmp_path / name, tokens=unseen, reference=tiny_llama).kl_nats
    assert found["watersic"] < 0.9 * found["watersic-at-once"]


def test_a_matrix_that_pools_into_a_new_table_is_counted_as_it_will_be_stored() -> None:
    rng = np.random.default_rng(4)
    grid = Grid(np.zeros(64, np.int32), np.zeros((256, 1), np.int32), 32, 64)
    plain = Contexts(np.zeros(256, np.int32), np.zeros(64, np.int32), 0)
    weight = Weight("w", (256, 64), "F32", "linear")
    small, large = (
        pooled(RansPooled(), weight, Quantized(np.rint(rng.normal(0, one, (64, 256))).astype(np.int32), grid, plain))
        for one in (1.0, 4.0)
    )
    measure = MEASURES[RansPooled](count_symbols([small]) + np.uint64(1), first_tables().offsets)
    counted = _core.stream_bits(measure(large).coder, [segment(large)])
    assert np.isclose(counted, large.indices.size * np.log2(4 * np.sqrt(2 * np.pi * np.e)), rtol=0.02)


def test_factors_stay_as_they_were_found(tiny_llama: Path, tokens: Path) -> None:
    target = Checkpoint.open(tiny_llama).parameters * 4 // 8
    prepared = _prepared(tiny_llama, tokens, target, replace(NAMED["lowrank"], quantize=Feedback(effort="scalar")))
    plain = replace(prepared, recipe=replace(prepared.recipe, drift=NoDrift()))
    assert plain.fit(target).tensor_bytes == prepared.fit(target).tensor_bytes


def test_what_matrices_take_is_known_ahead() -> None:
    """Blocks that all take more than expected: the first tells, and the steps of the others make up for it."""
    weights = {f"block.{index}.down": 1000 for index in range(4)}
    allowance = Allowance(1.0, 0.0, dict.fromkeys(weights, 2000.0), weights, more=0.0)
    steps, spent = [], 0.0
    for name in weights:
        steps.append(allowance.c)
        bits = 2000.0 + 40 - 1000 * OCTAVE_BITS * np.log2(allowance.c)
        allowance.spend(name, allowance.c, bits)
        spent += bits
    assert steps[0] == 1.0
    assert steps[1] > 1.02 and np.allclose(steps[1:], steps[1])
    assert np.isclose(spent, 8000)
    assert np.allclose(list(allowance.bits.values()), 2040)
