"""Roles, spaces and norms of a Llama; what an unknown architecture or tensor leads to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import route, trace
from trueaxis.types import CheckpointError


def test_llama_roles_spaces_and_norms(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    weights = {weight.name: weight for weight in trace(checkpoint)}
    assert weights.keys() == checkpoint.entries.keys()
    block = "model.layers.1"
    for module in ("q_proj", "k_proj", "v_proj"):
        weight = weights[f"{block}.self_attn.{module}.weight"]
        assert (weight.role, weight.space) == ("linear", f"{block}.self_attn.in")
        assert weight.norm == f"{block}.input_layernorm.weight"
    for module in ("gate_proj", "up_proj"):
        weight = weights[f"{block}.mlp.{module}.weight"]
        assert (weight.space, weight.norm) == (f"{block}.mlp.in", f"{block}.post_attention_layernorm.weight")
    assert weights[f"{block}.self_attn.o_proj.weight"].space == f"{block}.self_attn.out"
    assert weights[f"{block}.mlp.down_proj.weight"].space == f"{block}.mlp.hidden"
    assert weights[f"{block}.mlp.down_proj.weight"].norm is None
    assert weights[f"{block}.input_layernorm.weight"].role == "exact"
    assert weights["model.embed_tokens.weight"].role == "embedding"
    head = weights["lm_head.weight"]
    assert (head.role, head.space, head.norm, head.dtype) == ("head", "head", "model.norm.weight", "BF16")


def test_tied_matrix_is_one_weight(tied_llama: Path) -> None:
    weights = trace(Checkpoint.open(tied_llama))
    tied = [weight for weight in weights if weight.role == "tied"]
    assert [(weight.name, weight.space) for weight in tied] == [("model.embed_tokens.weight", "head")]
    assert not any(weight.role in ("embedding", "head") for weight in weights)


def test_route_listens_once_per_space(tiny_llama: Path) -> None:
    places = route(Checkpoint.open(tiny_llama))
    assert places.blocks == ("model.layers.0", "model.layers.1")
    assert places.inside[1].spaces == {
        "model.layers.1.self_attn.in": "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.out": "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.in": "model.layers.1.mlp.gate_proj",
        "model.layers.1.mlp.hidden": "model.layers.1.mlp.down_proj",
    }
    assert (places.embedding, places.head) == ("model.embed_tokens", "lm_head")
    assert places.outside.spaces == {}


def _edited(source: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_a_model_that_cannot_be_built_goes_by_names(tiny_llama: Path, tmp_path: Path) -> None:
    changes = {"model_type": "unheard-of", "architectures": ["UnheardOfForCausalLM"]}
    weights = {
        weight.name: weight for weight in trace(Checkpoint.open(_edited(tiny_llama, tmp_path / "copy", **changes)))
    }
    assert weights["model.embed_tokens.weight"].role == "embedding"
    assert weights["lm_head.weight"].role == "head"
    up = weights["model.layers.0.mlp.up_proj.weight"]
    assert (up.role, up.space, up.place) == ("linear", None, None)
    assert weights["model.norm.weight"].role == "exact"


def test_number_of_blocks_must_be_known_and_present(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(_edited(tiny_llama, tmp_path / "none", num_hidden_layers=None))
    with pytest.raises(CheckpointError, match=r"expected num_hidden_layers as a positive integer, found None"):
        route(checkpoint)
    checkpoint = Checkpoint.open(_edited(tiny_llama, tmp_path / "three", num_hidden_layers=3))
    with pytest.raises(CheckpointError, match=r"^model\.layers\.2\.input_layernorm\.weight: the model needs"):
        trace(checkpoint)


def test_tensors_outside_the_table(tiny_llama: Path, tmp_path: Path) -> None:
    directory = _edited(tiny_llama, tmp_path / "copy")
    tensors = load_file(directory / "model.safetensors")
    extra = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64), "adapter.weight": torch.zeros(4, 6)}
    extra["constants"] = torch.zeros(64, 8)
    save_file({**tensors, **extra}, directory / "model.safetensors")
    weights = {weight.name: weight for weight in trace(Checkpoint.open(directory))}
    assert weights["model.layers.0.self_attn.q_proj.bias"].role == "exact"
    assert (weights["adapter.weight"].role, weights["adapter.weight"].space) == ("linear", None)
    assert weights["constants"].role == "exact"

    tensors["lm_head.weight"] = torch.zeros(128)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"^lm_head\.weight: expected a matrix, found shape \[128\]"):
        trace(Checkpoint.open(directory))
