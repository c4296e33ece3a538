"""Matching: a member whose channels and heads were permuted is stored in the base's order, others as they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import trueaxis
from trueaxis.family.journey import MATCHED
from trueaxis.family.matching import _assigned, _better

HEADS, GROUPS, SIDE = 4, 2, 16  # of tiny_llama: query heads, query heads of a key-value head, coordinates


def save_moved(base: Path, out: Path, permuted: bool) -> Path:
    """The base with noise, and with channels and heads of every block in another order."""
    rng, generator = np.random.default_rng(3), torch.Generator().manual_seed(1)
    shutil.copytree(base, out)
    tensors = load_file(base / "model.safetensors")
    for name, value in tensors.items():
        noise = 0.02 * value.float().std() * torch.randn(value.shape, generator=generator)
        tensors[name] = (value.float() + noise).to(value.dtype) if value.dim() == 2 else value
    for block in range(2 * permuted):
        groups = np.array([1, 0])
        inside = np.stack([rng.permutation(GROUPS) for _ in groups])
        queries = (groups[:, None] * GROUPS + inside).ravel()
        read, written = ((heads[:, None] * SIDE + np.arange(SIDE)).ravel() for heads in (queries, groups))
        channels = rng.permutation(tensors[f"model.layers.{block}.mlp.up_proj.weight"].shape[0])
        for part, order, axis in (
            ("self_attn.q_proj", read, 0), ("self_attn.k_proj", written, 0), ("self_attn.v_proj", written, 0),
            ("self_attn.o_proj", read, 1), ("mlp.gate_proj", channels, 0), ("mlp.up_proj", channels, 0),
            ("mlp.down_proj", channels, 1),
        ):  # fmt: skip
            name = f"model.layers.{block}.{part}.weight"
            tensors[name] = tensors[name].index_select(axis, torch.from_numpy(order)).contiguous()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model.float()(ids).logits


@pytest.mark.parametrize("permuted", [True, False])
def test_a_permuted_member_goes_into_the_order_of_the_base(
    tiny_llama: Path, tokens: Path, tmp_path: Path, permuted: bool
) -> None:
    member = save_moved(tiny_llama, tmp_path / "member", permuted)
    straight = load_file(save_moved(tiny_llama, tmp_path / "straight", False) / "model.safetensors")
    report = trueaxis.compress_family(
        tiny_llama, [member], tmp_path / "out", bits_delta=4, calibration=[tokens]
    ).members["member"]
    assert (MATCHED in report.notes) == permuted
    found = trueaxis.load(tmp_path / "out", member="member")
    base = load_file(tiny_llama / "model.safetensors")
    lost, moved = 0.0, 0.0
    for name, value in found.state_dict().items():
        lost += float((value.float() - straight[name].float()).square().sum())
        moved += float((base[name].float() - straight[name].float()).square().sum())
    assert lost < 0.5 * moved  # nearer to the member in the base's order than the base itself
    ids = torch.from_numpy(np.load(tokens)[:2].astype(np.int64))
    theirs = logits(AutoModelForCausalLM.from_pretrained(member), ids)
    ours = logits(AutoModelForCausalLM.from_pretrained(tiny_llama), ids)
    assert float((logits(found, ids) - theirs).square().mean()) < 0.5 * float((ours - theirs).square().mean())


def test_orders_that_gain_little_are_left_alone() -> None:
    cost = np.array([[1.0, 0.99], [0.99, 1.0]])
    assert _better(cost) is None
    found = _better(np.array([[9.0, 1.0, 9.0], [9.0, 9.0, 1.0], [1.0, 9.0, 9.0]]))
    assert found is not None and found.tolist() == [2, 0, 1]
    assert _assigned(np.eye(3) * -1).tolist() == [0, 1, 2]
