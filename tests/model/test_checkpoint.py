"""Opening checkpoints, good and bad; the text of every error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trueaxis.model.architecture import architecture
from trueaxis.model.checkpoint import Checkpoint, check_finite
from trueaxis.types import CheckpointError


@pytest.fixture
def copied(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


def _shard(directory: Path) -> dict[str, str]:
    """Split model.safetensors into two shards with an index; returns the weight map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in halves.items():
        save_file({name: tensors[name] for name in members}, directory / file)
    weight_map = {name: file for file, members in halves.items() for name in members}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


def test_reads_names_shapes_and_tensors(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    name = "model.layers.1.mlp.down_proj.weight"
    assert checkpoint.entries[name] == ((64, 96), "BF16", "model.safetensors")
    assert checkpoint.tensor(name).dtype == torch.bfloat16
    assert checkpoint.config["model_type"] == "llama"
    blocks = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96 + 2 * 64)
    assert checkpoint.parameters == blocks + 2 * 128 * 64 + 64


def test_shards_hold_the_same_tensors(tiny_llama: Path, copied: Path) -> None:
    _shard(copied)
    whole, split = Checkpoint.open(tiny_llama), Checkpoint.open(copied)
    assert split.parameters == whole.parameters
    assert len(split.shards) == 2
    for name in whole.entries:
        assert torch.equal(whole.tensor(name), split.tensor(name))


def test_fingerprint_changes_with_any_byte(tiny_llama: Path, copied: Path) -> None:
    original = Checkpoint.open(tiny_llama).fingerprint
    assert len(original) == 32
    assert Checkpoint.open(copied).fingerprint == original
    file = copied / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Checkpoint.open(copied).fingerprint != original


def test_stored_head_of_a_tied_model_is_an_alias(tied_llama: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tied_llama, tmp_path / "copy"))
    tensors = load_file(copied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, copied / "model.safetensors")
    checkpoint = Checkpoint.open(copied)
    assert checkpoint.aliases == {"lm_head.weight": "model.embed_tokens.weight"}
    assert checkpoint.parameters == Checkpoint.open(tied_llama).parameters

    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, copied / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"^lm_head\.weight: .* set tie_word_embeddings to false"):
        Checkpoint.open(copied)


def test_copies_tokenizer_and_licence_but_no_code_or_weights(copied: Path) -> None:
    kept = ["LICENSE", "LICENSE.txt", "README.md", "chat_template.jinja", "generation_config.json", "tokenizer.model"]
    left = [
        "modeling.py",
        "pytorch_model.bin",
        "x.pt",
        "x.pkl",
        "LICENSE.py",
        "pytorch_model.bin.index.json",
        ".x.json",
    ]
    for name in kept + left:
        (copied / name).write_text("{}")
    (copied / "folder.json").mkdir()
    assert [file.name for file in Checkpoint.open(copied).files_to_copy()] == kept


def test_missing_directory_and_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: expected a checkpoint directory, found none"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config\.json: expected this file in the checkpoint, found none"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is not readable JSON"):
        Checkpoint.open(tmp_path)


def test_no_weights_or_pickled_ones(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or .* found neither"):
        Checkpoint.open(copied)
    (copied / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*convert to safetensors"):
        Checkpoint.open(copied)


def test_quantized_checkpoint(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    with pytest.raises(CheckpointError, match=r"expected an unquantized checkpoint"):
        Checkpoint.open(copied)


def test_missing_shard(copied: Path) -> None:
    _shard(copied)
    (copied / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: the index names this shard"):
        Checkpoint.open(copied)


def test_index_and_shard_disagree(copied: Path) -> None:
    weight_map = _shard(copied)
    index = copied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {**weight_map, "extra": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"^extra: the index places it in model-00001.*, which lacks it"):
        Checkpoint.open(copied)
    fewer = {name: file for name, file in weight_map.items() if name != "model.norm.weight"}
    index.write_text(json.dumps({"weight_map": fewer}))
    with pytest.raises(CheckpointError, match=r"^model\.norm\.weight: .* but the index does not place it there"):
        Checkpoint.open(copied)
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"is not a shard beside the index"):
        Checkpoint.open(copied)
    index.write_text(json.dumps({"weight_map": []}))
    with pytest.raises(CheckpointError, match=r"expected a weight_map"):
        Checkpoint.open(copied)


@pytest.mark.parametrize("kept_bytes", [4, 200, -1])
def test_truncated_shard(copied: Path, kept_bytes: int) -> None:
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept_bytes])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is truncated or damaged"):
        Checkpoint.open(copied)


@pytest.mark.parametrize(("dtype", "name"), [(torch.int32, "I32"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_dtypes_that_hold_no_plain_weights(copied: Path, dtype: torch.dtype, name: str) -> None:
    save_file({"w": torch.zeros(2, 2).to(dtype)}, copied / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"^w: expected one of F32, F16, BF16, found {name}"):
        Checkpoint.open(copied)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    tensor = torch.zeros(3, 4, dtype=torch.bfloat16)
    check_finite("w", tensor)
    tensor[1, 2] = value
    with pytest.raises(CheckpointError, match=r"^w: expected finite values, found 1 NaN or Inf among 12"):
        check_finite("w", tensor)


def test_unknown_tensor(tiny_llama: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^w: no such tensor"):
        Checkpoint.open(tiny_llama).tensor("w")


@pytest.mark.parametrize(("name", "message"), [("adapter_config.json", "LoRA adapter"), ("model.gguf", "GGUF file")])
def test_what_is_no_checkpoint_is_told_by_its_name(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


def test_configurations_as_transformers_reads_them(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    found = architecture({**config, "rms_norm_eps": {"__float__": "Infinity"}, "other": {"__float__": "x"}})
    assert found is not None
    assert found[0].rms_norm_eps == float("inf")
    assert found[0].other == {"__float__": "x"}
    with pytest.raises(CheckpointError, match=r"config\.json: transformers refuses it .*hidden_size"):
        architecture({**config, "hidden_size": "wide"})
