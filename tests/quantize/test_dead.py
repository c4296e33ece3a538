"""Dead inputs and rows: what reads nothing or reaches nothing takes no bits, and nobody has to name it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import trueaxis
from checkpoints import save_small_llama, save_tokens
from trueaxis.align.loss import fisher
from trueaxis.metric.calibrate import load_tokens
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.recipe import Recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.stages import Feedback, Fisher, NoDrift
from trueaxis.types import Metric

HIDDEN, DEAD = 256, 96
SHAPE = {"vocab_size": 64, "hidden_size": 96, "num_attention_heads": 2, "num_hidden_layers": 2}
PLAIN = Recipe(quantize=Feedback(effort="scalar"), drift=NoDrift())


def planted(path: Path, alive: int) -> Path:
    """A model whose first channels are alive, of others half without anything to read, half without a reader."""
    from safetensors.torch import load_file, save_file

    save_small_llama(path, intermediate_size=HIDDEN, **SHAPE)
    tensors = load_file(path / "model.safetensors")
    unread = (HIDDEN + alive) // 2
    for name, tensor in tensors.items():
        if "up_proj" in name:
            tensor[alive:unread] = 0
        if "down_proj" in name:
            tensor[:, unread:] = 0
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def test_dead_channels_take_no_bits(tmp_path: Path) -> None:
    alive = HIDDEN - DEAD
    model = planted(tmp_path / "model", alive)
    tokens = save_tokens(tmp_path / "tokens.npy", SHAPE["vocab_size"])
    trueaxis.compress(model, tmp_path / "out", bits=7, calibration=[tokens], recipe=PLAIN)
    decoder = Decoder(tmp_path / "out")
    for layer in range(2):
        for name in ("gate", "up", "down"):
            tensor = decoder.tensor(f"model.layers.{layer}.mlp.{name}_proj.weight", torch.float32)
            channels = tensor.abs().amax(0 if name == "down" else 1)
            zero = int((channels == 0).sum())  # channels are sorted in the file
            assert zero >= DEAD // 2 if name == "down" else zero == DEAD, name  # feedback may use inputs nobody read
    found = trueaxis.evaluate(tmp_path / "out", tokens=load_tokens(tokens), reference=model, allow_overlap=True)
    assert found.kl_nats is not None and found.kl_nats < 1e-4


def test_a_model_with_dead_channels_is_as_close_as_one_without_them(tmp_path: Path) -> None:
    """At the same bytes; what is left of them is the codes of their steps, on rows that are short here."""
    from safetensors.torch import load_file, save_file

    alive, tokens = HIDDEN - DEAD, save_tokens(tmp_path / "tokens.npy", SHAPE["vocab_size"])
    model = planted(tmp_path / "model", alive)
    slim = save_small_llama(tmp_path / "slim", intermediate_size=alive, **SHAPE)
    tensors = load_file(model / "model.safetensors")
    for name, tensor in tensors.items():
        if "mlp" in name:
            tensors[name] = (tensor[:, :alive] if "down" in name else tensor[:alive]).contiguous()
    save_file(tensors, slim / "model.safetensors", {"format": "pt"})
    target, found = Checkpoint.open(slim).parameters * 5 // 8, {}
    for path in (model, slim):
        out = tmp_path / f"{path.name}-out"
        trueaxis.compress(path, out, size=target, calibration=[tokens], recipe=PLAIN)
        found[path.name] = trueaxis.evaluate(
            out, tokens=load_tokens(tokens), reference=path, allow_overlap=True
        ).kl_nats
    assert found["model"] is not None and found["slim"] is not None
    assert found["model"] < 1.25 * found["slim"]


def test_logits_of_tokens_that_never_come_keep_their_weights() -> None:
    """A row of zeros would lift them to 0 from far below."""
    rows = np.array([1.0, 1e-20, 2.0])
    statistics: Any = SimpleNamespace(output_moment=lambda name: rows)
    weights = {}
    for role in ("head", "linear"):
        weight: Any = SimpleNamespace(role=role, name="a.weight", shape=(3, 2))
        weights[role] = fisher(Fisher(), weight, Metric(np.eye(2)), None, statistics).row_weights
    assert weights["head"] is not None and weights["head"].min() > 0.01
    assert weights["linear"] is not None and list(weights["linear"] == 0) == [False, True, False]
