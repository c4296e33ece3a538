"""Drift: matrices that are rounded in turn make up for the errors of those before them, at the size asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import trueaxis
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.preparation import Prepared, prepare
from trueaxis.progress import silent
from trueaxis.recipe import NAMED, Recipe
from trueaxis.stages import Feedback, InTurn, NoDrift

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
    for drift in (InTurn(tokens=4096), NoDrift()):
        name = type(drift).__name__
        one = replace(prepared, recipe=replace(TURNS, drift=drift))
        files = one.fit(target)
        assert 0.99 * target < files.file_bytes <= target
        one.save(files, tmp_path / name, overwrite=False, begun=0.0)
        found[name] = trueaxis.evaluate(tmp_path / name, tokens=unseen, reference=tiny_llama).kl_nats
    assert found["InTurn"] < 0.98 * found["NoDrift"]


def test_factors_stay_as_they_were_found(tiny_llama: Path, tokens: Path) -> None:
    target = Checkpoint.open(tiny_llama).parameters * 4 // 8
    prepared = _prepared(tiny_llama, tokens, target, replace(NAMED["lowrank"], quantize=Feedback(effort="scalar")))
    turned = replace(prepared, recipe=replace(prepared.recipe, drift=InTurn()))
    assert turned.fit(target).tensor_bytes == prepared.fit(target).tensor_bytes
