"""Plain checkpoints are written tensor by tensor as the safetensors library writes them whole."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

import trueaxis


def test_the_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    model, packed = tmp_path / "model", tmp_path / "packed"
    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(model)
    generator = torch.Generator().manual_seed(0)
    kinds = (
        torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.int16, torch.uint16,
        torch.float16, torch.bfloat16, torch.int32, torch.uint32, torch.float32, torch.float64, torch.int64,
        torch.uint64,
    )  # fmt: skip
    tensors = {f"layer.{19 - n}": torch.randn(3, n, generator=generator).to(kind) for n, kind in enumerate(kinds)}
    tensors |= {"layer.ü": torch.ones(()), "layer.empty": torch.ones(0, 4)}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    trueaxis.compress_lossless(model, packed)
    trueaxis.unpack(packed, tmp_path / "plain")
    found = tmp_path / "plain" / "model.safetensors"
    assert load_file(found).keys() == tensors.keys()
    assert found.read_bytes() == (model / "model.safetensors").read_bytes()
