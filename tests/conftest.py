"""Models and tokens shared by all tests: random weights, made once per session from fixed seeds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported, by torch at times

VOCABULARY = 128


def _save_llama(path: Path, *, tied: bool, dtype_name: str) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.08,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones would hide mistakes in folding
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        model.to(getattr(torch, dtype_name)).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama, d 64, 2 layers, 4/2 heads, FFN 96, vocabulary 128, untied, bfloat16."""
    return _save_llama(tmp_path_factory.mktemp("models") / "tiny", tied=False, dtype_name="bfloat16")


@pytest.fixture(scope="session")
def tied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shape, tied, float32."""
    return _save_llama(tmp_path_factory.mktemp("models") / "tied", tied=True, dtype_name="float32")


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npy file of random token ids, uint16 [32, 64]."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.npy"
    ids = np.random.default_rng(7).integers(0, VOCABULARY, (32, 64))
    np.save(path, ids.astype(np.uint16))
    return path


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The model that comes with the package: Llama, d 192, 4 layers, 6/2 heads, FFN 512, vocabulary 2048, tied."""
    from trueaxis.demo.run import MODEL

    return MODEL


@pytest.fixture(scope="session")
def compressed_llama(tiny_llama: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` at 6 bits, calibrated on `tokens`, with its statistics beside it in statistics.safetensors."""
    import trueaxis

    out = tmp_path_factory.mktemp("compressed") / "tiny"
    trueaxis.compress(tiny_llama, out, bits=6, calibration=[tokens], statistics=out.parent / "statistics.safetensors")
    return out


@pytest.fixture(scope="session")
def compressed_tied(tied_llama: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tied_llama` at 6 bits, calibrated on `tokens`."""
    import trueaxis

    out = tmp_path_factory.mktemp("compressed") / "tied"
    trueaxis.compress(tied_llama, out, bits=6, calibration=[tokens])
    return out


@pytest.fixture(params=["portable", "avx2", "avx512"])
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set in turn; skipped where the processor lacks it."""
    from trueaxis import _core

    if request.param not in _core.instruction_sets():
        pytest.skip(f"this processor has no {request.param}")
    _core.use_instruction_set(request.param)
    yield request.param
    _core.use_instruction_set(_core.instruction_sets()[-1])
