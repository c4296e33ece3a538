"""Compressed-tensors: the consumer's own loader gives the integers times the scales, and feedback lowers D."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import trueaxis
from checkpoints import save_small_llama
from trueaxis.export.compressed_tensors import pack
from trueaxis.export.rounding import round_groups
from trueaxis.types import TrueaxisError


def decoded(packed: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """W [m, n] from its words, one number after the other."""
    words, per_word = packed.numpy().view(np.uint32), 32 // bits
    parts = [(words >> (bits * place)) & ((1 << bits) - 1) for place in range(per_word)]
    numbers = np.stack(parts, axis=-1).reshape(packed.shape[0], -1).astype(np.int64) - (1 << (bits - 1))
    group = numbers.shape[1] // scales.shape[1]
    return torch.from_numpy(numbers).float() * scales.float().repeat_interleave(group, dim=1)


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_transformers_loads_what_the_file_says(kind: str, compressed_llama: Path, tokens: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="transformers reads this with compressed-tensors")
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    report = trueaxis.export(compressed_llama, out, "compressed-tensors", type=kind, calibration=[tokens])
    assert [note.rpartition(" is in ")[2][:19] for note in report.notes] == ["aligned coordinates"]
    assert report.file_bytes == (out / "model.safetensors").stat().st_size
    plain = trueaxis.unpack(compressed_llama, tmp_path / "plain")
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 32  # of 64 and 96 inputs
    stored, state = load_file(out / "model.safetensors"), load_file(plain / "model.safetensors")
    rounded = 0
    for name in [name for name in state if f"{name}_packed" in stored]:
        value = decoded(stored[f"{name}_packed"], stored[f"{name}_scale"], int(kind[3:]))
        # rough, but scales or nibbles in a wrong place are far beyond it
        assert (value - state[name]).norm() < {"int4": 0.15, "int8": 0.01}[kind] * state[name].float().norm(), name
        state[name], rounded = value.to(torch.bfloat16), rounded + 1
    assert rounded == 14 and config["ignore"] == ["lm_head"]
    expected = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16)
    expected.load_state_dict(state)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)(ids).logits
        assert torch.equal(found, expected(ids).logits)


def test_feedback_loses_less_in_its_metric_and_nearest_is_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 128, generator=generator)
    mixed = torch.randn(400, 20, generator=generator) @ torch.randn(20, 128, generator=generator)
    inputs = (mixed + 0.3 * torch.randn(400, 128, generator=generator)).double()
    moment = (inputs.T @ inputs / len(inputs)).numpy()

    def lost(found: torch.Tensor) -> float:
        error = (found - weight).double().numpy()
        return float(np.einsum("ij,jk,ik->", error, moment, error))

    nearest, fed = (round_groups(weight, one, 4, 64, torch.bfloat16) for one in (None, moment))
    assert lost(fed.values()) < 0.5 * lost(nearest.values())
    for one in (nearest, fed):
        assert one.indices.min() >= -8 and one.indices.max() <= 7
    steps = nearest.scales.float().repeat_interleave(64, dim=1)
    assert torch.equal(nearest.indices.float(), (weight / steps).round().clamp(-8, 7))


def test_words_hold_the_first_column_lowest() -> None:
    indices = np.random.default_rng(0).integers(-8, 8, (3, 64)).astype(np.int8)
    for bits in (4, 8):
        assert np.array_equal(decoded(pack(indices, bits), torch.ones(3, 1), bits).numpy(), indices)


def test_what_does_not_fit_is_refused_by_name(tiny_llama: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"group": 64}, r"--group 64: groups are multiples of 32 .* of this model these are 32$"),
        ({"group": 7}, r"--group 7: groups are multiples of 32 .* of this model these are 32$"),
        ({"type": "int3"}, r"'int3' is no type of compressed-tensors exports; known: int4, int8"),
    ):
        with pytest.raises(TrueaxisError, match=message):
            trueaxis.export(tiny_llama, tmp_path / "out", "compressed-tensors", **settings)
    with pytest.raises(TrueaxisError, match=r"multiples of 32 that divide.*this layer has 23;"):
        trueaxis.export(save_small_llama(tmp_path / "odd", hidden_size=32), tmp_path / "out", "compressed-tensors")
    assert not (tmp_path / "out").exists()
