"""Llama checkpoints of any small size with random weights, and token ids for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SMALL = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 23,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def save_small_llama(path: Path, dtype_name: str = "bfloat16", shard_size: str = "1GB", **changes: Any) -> Path:
    """`SMALL` with changes, weights from a fixed seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(LlamaConfig(**{**SMALL, **changes})).to(getattr(torch, dtype_name))
    model.save_pretrained(path, max_shard_size=shard_size)
    return path


def save_tokens(path: Path, vocabulary: int, sequences: int = 40, length: int = 32) -> Path:
    """Random token ids [sequences, length]."""
    np.save(path, np.random.default_rng(2).integers(0, vocabulary, (sequences, length)).astype(np.uint16))
    return path
