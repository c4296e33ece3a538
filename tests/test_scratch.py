"""Scratch: held arrays are what they were, in files without a name too; the same bytes with no memory at all."""

from __future__ import annotations

import gc
import hashlib
import os
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from tests import families

import trueaxis
from trueaxis import scratch as place
from trueaxis.metric.running import load_model
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.scratch import SHARE, SMALLEST, Scratch, scratch_beside
from trueaxis.types import TrueaxisError

ARRAY = np.arange(SMALLEST, dtype=np.float64).reshape(4, -1)


@pytest.mark.parametrize("array", [ARRAY, ARRAY.T, ARRAY[:, ::2], ARRAY.astype(np.int8)], ids=str)
def test_values_and_layout_stay(array: np.ndarray, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, 0)
    found = scratch.hold(array)
    assert found is not array
    assert scratch.spilled_bytes == array.nbytes
    assert np.array_equal(found, array)
    assert found.dtype == array.dtype
    assert found.flags.f_contiguous == array.flags.f_contiguous
    assert not os.listdir(tmp_path)


def test_what_is_held_is_itself(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, 0)
    found = scratch.hold(ARRAY)
    assert scratch.hold(ARRAY) is found
    assert scratch.hold(found) is found
    found += 1  # the file's pages, not the array's
    assert np.array_equal(found, ARRAY + 1)


def test_memory_comes_back_with_arrays_that_are_dropped(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, int(1.5 * ARRAY.nbytes / SHARE))
    first = scratch.hold(ARRAY.copy())
    assert scratch.spilled_bytes == 0
    second = scratch.hold(ARRAY.copy())
    assert scratch.spilled_bytes == second.nbytes
    del first
    gc.collect()
    assert scratch.has_room(ARRAY.nbytes)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrueaxisError, match=r"gone: no room for .* bytes of scratch"):
        Scratch(tmp_path / "gone", 0).hold(ARRAY)


def test_scratch_lies_in_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    scratch_beside(tmp_path / "not" / "yet" / "out", 0).hold(ARRAY)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mixtral", "gpt2"])
def test_a_model_in_scratch_computes_the_same(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "SMALLEST", 1)
    families.build(families.CASES[family]).save_pretrained(tmp_path)
    scratch = Scratch(tmp_path, 0)
    found, expected = load_model(Checkpoint.open(tmp_path, scratch)), load_model(Checkpoint.open(tmp_path))
    assert scratch.spilled_bytes > 0
    assert np.array_equal(families.output_of(found), families.output_of(expected))


@pytest.mark.parametrize("recipe", ["default", "lowrank", "watersic"])
def test_the_same_bytes_with_no_memory(
    recipe: str, tied_llama: Path, tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "SMALLEST", 1)
    made: list[Scratch] = []

    def beside(out: Path, memory: int | None) -> Scratch:
        made.append(scratch_beside(out, memory))
        return made[-1]

    monkeypatch.setattr(import_module("trueaxis.compress"), "scratch_beside", beside)
    digests = set()
    for memory in (None, 0):
        out = tmp_path / str(memory)
        report = trueaxis.compress(tied_llama, out, bits=4, calibration=[tokens], recipe=recipe, memory=memory)
        assert any("least to ask for is 500,000,000 bytes" in note for note in report.notes) == (memory == 0)
        digests.add(hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
    assert made[0].spilled_bytes == 0
    assert made[1].spilled_bytes > 10 * tied_llama.joinpath("model.safetensors").stat().st_size
    assert len(digests) == 1
    assert sorted(os.listdir(tmp_path)) == ["0", "None"]
