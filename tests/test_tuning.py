"""Tuning changes nothing but steps, keeps to the target, and brings the model closer to its original."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import trueaxis
from trueaxis.metric.calibrate import load_tokens
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.preparation import Prepared, prepare
from trueaxis.progress import silent
from trueaxis.recipe import Recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.stages import Feedback, Gains, NoDrift, NoTuning
from trueaxis.tuning import finely
from trueaxis.types import CalibrationError

TUNED = Recipe(drift=NoDrift(), tune=Gains(tokens=32_768), quantize=Feedback(effort="scalar"))


def _prepared(
    model: Path, tokens: Path, target: int, chosen: Recipe = TUNED, statistics: Path | None = None
) -> Prepared:
    return prepare(
        Checkpoint.open(model), chosen, target, [tokens], statistics, seed=0, threads=1, device="cpu", progress=silent
    )


def test_only_steps_change_and_the_model_comes_closer(tiny_llama: Path, tokens: Path, tmp_path: Path) -> None:
    target = Checkpoint.open(tiny_llama).parameters // 4  # where steps are coarse, tuning pays
    tuned = _prepared(tiny_llama, tokens, target, statistics=tmp_path / "s")
    tuned = replace(tuned, jobs=[replace(job, plan=finely(job.plan)) for job in tuned.jobs])
    plain = replace(tuned, recipe=replace(TUNED, tune=NoTuning()))
    found = {}
    for name, prepared in (("tuned", tuned), ("plain", plain)):
        files = prepared.fit(target)
        assert files.file_bytes <= target
        prepared.save(files, tmp_path / name, overwrite=False, begun=0.0)
        evaluation = trueaxis.evaluate(
            tmp_path / name, tokens=load_tokens(tokens), reference=tiny_llama, allow_overlap=True
        )
        found[name] = evaluation.kl_nats
    assert found["tuned"] is not None
    assert found["tuned"] < 0.98 * found["plain"]
    one, other = Decoder(tmp_path / "tuned"), Decoder(tmp_path / "plain")
    moved = [0, 0]
    for name in one.names():
        for left, right in zip(one.residuals(name), other.residuals(name), strict=True):
            assert np.array_equal(left.contexts.column_codes, right.contexts.column_codes)
            moved[0] += int((left.grid.column_codes != right.grid.column_codes).sum())
            moved[1] += int((left.grid.row_codes != right.grid.row_codes).sum())
    assert min(moved) > 0


def test_where_fine_steps_cost_more_than_they_gain_the_files_stay(
    tiny_llama: Path, tokens: Path, tmp_path: Path
) -> None:
    target = Checkpoint.open(tiny_llama).parameters * 6 // 8
    tuned = _prepared(tiny_llama, tokens, target, statistics=tmp_path / "s")
    plain = replace(tuned, recipe=replace(TUNED, tune=NoTuning()))
    assert tuned.fit(target).tensor_bytes == plain.fit(target).tensor_bytes


def test_needs_the_text_of_the_statistics(tiny_llama: Path, tokens: Path, tmp_path: Path) -> None:
    target = Checkpoint.open(tiny_llama).parameters * 3 // 8
    _prepared(tiny_llama, tokens, target, statistics=tmp_path / "s")
    prepared = _prepared(tiny_llama, tokens, target, statistics=tmp_path / "s")
    np.save(tmp_path / "other.npy", load_tokens(tokens)[::-1])
    for files in ([tmp_path / "other.npy"], []):
        with pytest.raises(CalibrationError, match=r"give the text that the statistics were made from"):
            replace(prepared, calibration=files).fit(target)
