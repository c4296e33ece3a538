"""Exports: from compressed directories and checkpoints, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import trueaxis
from trueaxis.cli import main
from trueaxis.export.journey import WRITERS, Wanted
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.types import CheckpointError, TrueaxisError


def test_safetensors_are_what_unpack_writes(compressed_llama: Path, tmp_path: Path) -> None:
    trueaxis.export(compressed_llama, tmp_path / "one", "safetensors", type="float32")
    trueaxis.unpack(compressed_llama, tmp_path / "other", "float32")
    for file in (tmp_path / "other").iterdir():
        assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes(), file.name


def test_a_compressed_directory_is_exported_as_what_it_decodes_to(
    compressed_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf = pytest.importorskip("gguf", reason="GGUF files need gguf (trueaxis[export])")
    command = ["export", str(compressed_llama), str(tmp_path / "out"), "--format", "gguf", "--type", "f32", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["file_bytes"] == (tmp_path / "out" / "model.gguf").stat().st_size
    assert report["notes"] == [
        "the file has no vocabulary: the checkpoint has no tokenizer.json; give llama.cpp token ids"
    ]
    found = {one.name: np.array(one.data) for one in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    state = trueaxis.load(compressed_llama).state_dict()
    expected = state["model.layers.1.mlp.down_proj.weight"].float().numpy()
    assert np.array_equal(found["blk.1.ffn_down.weight"], expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # what was decoded for it is gone


@pytest.mark.parametrize(("type", "told"), [("BF16", False), ("Q8_0", True)])
def test_aligned_coordinates_on_a_grid_are_told(
    compressed_llama: Path, tiny_llama: Path, tmp_path: Path, type: str, told: bool
) -> None:
    pytest.importorskip("gguf", reason="GGUF files need gguf (trueaxis[export])")
    found = trueaxis.export(compressed_llama, tmp_path / "out", "gguf", type=type).notes
    assert any("is in aligned coordinates" in note for note in found) == told
    found = trueaxis.export(tiny_llama, tmp_path / "original", "gguf", type=type).notes
    assert not any("is in aligned coordinates" in note for note in found)


def test_wrong_wishes_are_refused(tiny_llama: Path, compressed_llama: Path, tokens: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("mine")
    for source, settings, message in (
        (tiny_llama, {"format": "onnx"}, "'onnx' is no format of exports; known: safetensors, gguf"),
        (tiny_llama, {"format": "gguf", "group": 32}, "format gguf rounds by itself"),
        (tiny_llama, {"format": "gguf", "type": "q9"}, r"^'q9' is no type that GGUF files are written in; known: F32"),
        (tiny_llama, {"format": "safetensors"}, "not compressed by trueaxis"),
        (compressed_llama, {"format": "gguf", "overwrite": False}, "output is not empty"),
    ):
        with pytest.raises(TrueaxisError, match=message):
            trueaxis.export(source, tmp_path / "out", **{"overwrite": True, **settings})
        assert (tmp_path / "out" / "file").read_text() == "mine"


def test_an_export_inside_the_compressed_directory_is_refused(compressed_llama: Path) -> None:
    before = sorted(compressed_llama.iterdir())
    for format in ("gguf", "safetensors", "compressed-tensors"):
        with pytest.raises(TrueaxisError, match="which holds the model alone"):
            trueaxis.export(compressed_llama, compressed_llama / "model", format, overwrite=True)
    assert sorted(compressed_llama.iterdir()) == before


def test_errors_name_the_directory_that_was_given(
    compressed_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(checkpoint: Checkpoint, directory: Path, wanted: Wanted) -> tuple[str, ...]:
        raise CheckpointError(f"{checkpoint.path}: is not what I like, nor is {checkpoint.path / 'config.json'}")

    monkeypatch.setitem(WRITERS, "gguf", refuse)
    with pytest.raises(CheckpointError) as found:
        trueaxis.export(compressed_llama, tmp_path / "out", "gguf")
    config = compressed_llama / "config.json"
    assert str(found.value) == f"{compressed_llama}: is not what I like, nor is {config}"
    assert not list(tmp_path.iterdir())
