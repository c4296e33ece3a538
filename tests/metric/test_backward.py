"""Gradients block by block are those of one pass through the whole model; what is held does not grow with depth."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import families

from checkpoints import save_small_llama
from trueaxis.metric import gradient
from trueaxis.metric.calibrate import calibrate
from trueaxis.metric.gradient import Gradients, measure_gradients
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import route, trace


def measured(path: Path, threads: int = 1) -> Gradients:
    checkpoint = Checkpoint.open(path)
    ids = np.random.default_rng(0).integers(0, checkpoint.config["vocab_size"], (40, 64))
    statistics = calibrate(checkpoint, ids, seed=0, threads=1)
    return measure_gradients(checkpoint, trace(checkpoint), statistics, ids, seed=0, threads=threads)


@pytest.mark.parametrize("family", ["llama", "mixtral", "gemma2", "gpt2", "gpt_neox", "opt, post-norm"])
def test_the_sums_of_one_pass_through_the_whole(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families.build(families.CASES[family]).save_pretrained(tmp_path)
    assert route(Checkpoint.open(tmp_path)).blocks
    by_blocks, side_by_side = measured(tmp_path), measured(tmp_path, threads=3)
    monkeypatch.setattr(gradient, "separable", lambda text, blocks: False)
    whole = measured(tmp_path)
    assert whole.sums
    for found in (by_blocks, side_by_side):
        assert found.sums.keys() == whole.sums.keys()
        assert all(np.array_equal(found.sums[key], whole.sums[key]) for key in whole.sums)
        assert found.sensitivities == whole.sensitivities


def _most_saved(path: Path) -> int:
    """Most bytes that backward passes have held for themselves at one time."""
    now = most = 0

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    def pack(tensor: torch.Tensor) -> Any:
        nonlocal now, most
        saved, size = Saved(tensor), tensor.nbytes
        now += size
        most = max(most, now)

        def forget() -> None:
            nonlocal now
            now -= size

        weakref.finalize(saved, forget)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        measured(path)
    return most


def test_what_is_held_does_not_grow_with_depth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for layers in (2, 8):
        save_small_llama(tmp_path / str(layers), num_hidden_layers=layers)
    shallow, deep = _most_saved(tmp_path / "2"), _most_saved(tmp_path / "8")
    assert 0 < deep <= shallow
    monkeypatch.setattr(gradient, "separable", lambda text, blocks: False)
    assert _most_saved(tmp_path / "8") > 2 * shallow
