"""Linear layers in 8 bits: the layer against its definition, the model against the dense one, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import trueaxis
from families import CASES, build, save_tokens
from trueaxis.runtime.int8 import Int8Linear, product
from trueaxis.types import TrueaxisError

IDS = torch.arange(48).reshape(2, 24)


def divergence(one: torch.Tensor, other: torch.Tensor) -> float:
    """KL in nats per token, of logits."""
    left, right = one.double().log_softmax(-1), other.double().log_softmax(-1)
    return float((left.exp() * (left - right)).sum(-1).mean())


@pytest.mark.parametrize("shape", [(64, 96), (37, 23)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_is_what_it_says(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    fine = torch.randint(-127, 128, shape, generator=generator).float()
    fine[3, 5], fine[30, 5], fine[7, 20] = 1000.0, -128.0, 300.0
    columns, rows = (2.0 ** torch.randint(-9, -3, (n,), generator=generator) for n in (shape[1], shape[0]))
    bias = torch.nn.Parameter(torch.randn(shape[0], generator=generator).to(dtype))
    inputs = torch.randn(2, 3, shape[1], generator=generator).to(dtype)
    layer = Int8Linear(fine, columns, rows, bias)
    assert layer.indices.dtype == torch.int8
    assert layer.sparse_values.tolist() == [873.0, 173.0, -1.0]
    expected = inputs.double() @ (rows[:, None] * fine * columns).double().T + bias.double()
    error = (layer(inputs).double() - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 1e-2)


def test_both_products_agree() -> None:
    indices = torch.randint(-127, 128, (64, 32), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    inputs = torch.randint(-8, 9, (5, 32), generator=torch.Generator().manual_seed(1)).float()
    assert torch.equal(product(inputs, indices), inputs @ indices.float().T)
    assert torch.equal(
        product(inputs[:, :31], indices[:, :31].contiguous()), inputs[:, :31] @ indices[:, :31].float().T
    )


def test_model_is_close_to_the_dense_one(compressed_llama: Path) -> None:
    dense, packed = trueaxis.load(compressed_llama), trueaxis.load(compressed_llama, resident="int8")
    with torch.inference_mode():
        found = divergence(dense(IDS).logits, packed(IDS).logits)
    assert 0 < found < 1e-3
    matrices = {name for name, value in dense.named_parameters() if value.ndim == 2}
    assert set(packed.int8.packed) | set(packed.int8.dense) == matrices
    assert packed.int8.dense["model.embed_tokens.weight"] == "Embedding is no linear layer"
    wide = {name: why for name, why in packed.int8.dense.items() if "embed" not in name}
    assert all("beyond 8 bits" in why for why in wide.values())  # six bits are many for a model this small
    assert len(packed.int8.packed) > 10
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    assert packed.generate(IDS, **settings).shape == (2, 27)
    assert torch.equal(packed.model.norm.weight, dense.model.norm.weight)


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_what_is_no_plain_matrix_stays_dense(name: str, tmp_path: Path) -> None:
    build(CASES[name]).save_pretrained(tmp_path / "original")
    trueaxis.compress(tmp_path / "original", tmp_path / "out", bits=8, calibration=[save_tokens(tmp_path)])
    dense, packed = (trueaxis.load(tmp_path / "out", resident=form) for form in ("dense", "int8"))
    with torch.inference_mode():
        assert divergence(dense(IDS).logits, packed(IDS).logits) < 1e-2
    reasons = {name.rsplit(".", 2)[-2]: why for name, why in packed.int8.dense.items()}
    assert set(reasons) & {"experts", "c_attn"}
    layers = sum(isinstance(module, Int8Linear) for module in packed.modules())
    assert layers == len(packed.int8.packed)


def test_a_tied_head_stays_dense(compressed_tied: Path) -> None:
    packed = trueaxis.load(compressed_tied, torch.float32, resident="int8")
    assert packed.lm_head.weight is packed.model.embed_tokens.weight or "lm_head.weight" in packed.int8.packed


def test_refuses_to_train_and_to_save(compressed_llama: Path, tmp_path: Path) -> None:
    packed = trueaxis.load(compressed_llama, resident="int8")
    with pytest.raises(TrueaxisError, match="to train"):
        packed.train()
    with pytest.raises(TrueaxisError, match="are not saved"):
        packed.save_pretrained(tmp_path / "plain")
    with pytest.raises(TrueaxisError, match="are not saved"):
        packed.state_dict()
