"""What a loaded model carries besides weights: generation settings, dtype, a clean configuration."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import trueaxis
import trueaxis.hf
from trueaxis.runtime.load import built
from trueaxis.runtime.resident import DenseThere


def test_generation_settings_are_those_of_the_file(compressed_llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(compressed_llama, copy)
    settings = {"do_sample": True, "temperature": 0.25, "eos_token_id": 5}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    for model in (trueaxis.load(copy), AutoModelForCausalLM.from_pretrained(copy)):
        assert model.generation_config.temperature == 0.25
        assert model.generation_config.eos_token_id == 5


def test_dense_weights_of_a_device_may_be_trained(compressed_llama: Path) -> None:
    """The form that `load` gives a GPU, made here by the CPU."""
    model = built(compressed_llama, DenseThere(), torch.device("cpu"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(torch.arange(5)[None]).logits.float().square().mean().backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad.any()


def test_the_configuration_is_the_original_one(compressed_llama: Path, tiny_llama: Path) -> None:
    model = trueaxis.load(compressed_llama)
    assert not model.training
    assert not hasattr(model.config, "quantization_config")
    original = AutoModelForCausalLM.from_pretrained(tiny_llama).config.to_dict()
    assert {**model.config.to_dict(), "_name_or_path": ""} == {**original, "_name_or_path": ""}


def test_a_configuration_without_dtype_gets_that_of_the_weights(
    tiny_llama: Path, compressed_llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    tokens = torch.randint(0, 128, (32, 64), generator=torch.Generator().manual_seed(0)).numpy()
    import numpy as np

    np.save(tmp_path / "tokens.npy", tokens)
    trueaxis.compress(tmp_path / "model", tmp_path / "out", bits=8, calibration=[tmp_path / "tokens.npy"])
    for model in (trueaxis.load(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(tmp_path / "out")):
        assert {value.dtype for value in model.parameters()} == {torch.bfloat16}


def test_unpacking_in_shards_gives_the_same_tensors(
    compressed_llama: Path, tmp_path: Path, monkeypatch: object
) -> None:
    from trueaxis.runtime import load as module

    monkeypatch.setattr(module, "SHARD_BYTES", 50_000)  # type: ignore[attr-defined]
    trueaxis.unpack(compressed_llama, tmp_path / "plain", dtype="float32")
    assert len(list((tmp_path / "plain").glob("*.safetensors"))) > 1
    plain, expected = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "plain"),
        trueaxis.load(compressed_llama, torch.float32),
    )
    for name, value in expected.state_dict().items():
        assert torch.equal(plain.state_dict()[name], value), name
