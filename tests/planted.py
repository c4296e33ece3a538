"""Checkpoints in which a claim is known to be true, and i.i.d. ones in which it is known to be false.

Llamas of two blocks, d 64, MLP 192, vocabulary 96, float32. Linear layers are drawn by a rule; the stream is the
embedding, next to which what the blocks write is small.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

VOCABULARY, WIDTH, HIDDEN = 96, 64, 192
Draw = Callable[[np.random.Generator, int, int], np.ndarray]
"""(generator, m, n) ─▶ W [m, n]."""

AXES = np.linalg.qr(np.random.default_rng(50).normal(size=(HIDDEN, HIDDEN)))[0]


def axes_of(size: int) -> np.ndarray:
    """Rotation [size, size], always the same."""
    return np.linalg.qr(AXES[:size, :size])[0]


def iid(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    return rng.normal(size=(m, n))


def turned(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Rows with principal axes of very different energy, turned."""
    return (rng.normal(size=(m, n)) * 2.0 ** np.linspace(3, -3, n)) @ axes_of(n).T


def narrow(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """An eighth of the rank, and a little noise."""
    rank = min(m, n) // 8
    return rng.normal(size=(m, rank)) @ rng.normal(size=(rank, n)) / np.sqrt(rank) + 0.001 * iid(rng, m, n)


def curved(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Rows on a curved surface."""
    places = rng.uniform(0, 1, size=(m, 2))
    return np.sin(places @ rng.normal(size=(2, n)) * 2 + rng.uniform(0, 6, n))


def sparse(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Two weights of three are next to nothing."""
    return iid(rng, m, n) * np.where(rng.uniform(size=(m, n)) < 1 / 3, 1.0, 0.01)


def spiked(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Turned rows, and 3 % of large weights in the axes of the checkpoint, which hold 30 % of the energy."""
    base, spikes = turned(rng, m, n), rng.choice([-1.0, 0.0, 1.0], size=(m, n), p=[0.015, 0.97, 0.015])
    return base / base.std() * np.sqrt(0.7) + spikes * np.sqrt(0.3 / 0.03)


def peaked(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Turned rows, and 10 % of large weights in the axes of the checkpoint, which hold half of the energy."""
    base, spikes = narrow(rng, m, n), rng.choice([-1.0, 0.0, 1.0], size=(m, n), p=[0.05, 0.9, 0.05])
    return base / base.std() * np.sqrt(0.5) + spikes * np.sqrt(0.5 / 0.1)


def uneven(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Rows of very different size."""
    return iid(rng, m, n) * 2.0 ** rng.normal(0, 1, size=(m, 1))


def heavy_where_energetic(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Outliers in the first third of the columns, which read the most energy where the stream is `uneven_stream`."""
    heavy = rng.standard_t(3, size=(m, n))
    return np.where(np.arange(n) < n // 3, heavy / np.sqrt(3), iid(rng, m, n))


def three_valued(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Three unevenly spaced values, with a little spread: four levels hit them, evenly spaced ones do not."""
    return rng.choice([-1.0, 0.13, 1.37], size=(m, n)) + 0.02 * iid(rng, m, n)


def large_where_silent(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Large weights where `uneven_stream` has least energy."""
    return iid(rng, m, n) * 2.0 ** np.linspace(-3, 3, n)


def large_where_loud(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Large weights where `uneven_stream` has most energy."""
    return iid(rng, m, n) * 2.0 ** np.linspace(3, -3, n)


def even_stream(rng: np.random.Generator, width: int) -> np.ndarray:
    """Embedding [V, d] with the same energy in all directions."""
    return rng.normal(size=(VOCABULARY, width))


def uneven_stream(rng: np.random.Generator, width: int) -> np.ndarray:
    """Embedding [V, d] whose energy falls from the first coordinate to the last."""
    return even_stream(rng, width) * 2.0 ** np.linspace(3, -3, width)


def plant(
    path: Path,
    draw: Draw,
    stream: Callable[[np.random.Generator, int], np.ndarray] = even_stream,
    width: int = WIDTH,
    hidden: int = HIDDEN,
) -> Path:
    """A checkpoint whose linear layers are drawn by a rule, each at unit row energy times 0.5."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=hidden, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=hidden // 2, max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    rng = np.random.default_rng(4)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("proj.weight"):
                drawn = draw(rng, *value.shape)
                value.copy_(torch.from_numpy(drawn * (0.5 / np.sqrt(np.square(drawn).sum(axis=1).mean()))))
        embedding = stream(rng, width)
        model.get_input_embeddings().weight.copy_(torch.from_numpy(embedding / np.sqrt(np.square(embedding).mean())))
        model.get_output_embeddings().weight.copy_(torch.from_numpy(rng.normal(size=(VOCABULARY, width)) / 16))
    model.save_pretrained(path)
    return path


def plant_minimum(path: Path) -> tuple[Path, np.ndarray]:
    """A checkpoint that knows its text exactly, and that text: the next token is drawn from the model's own prediction.

    What the blocks write is zero, so the model is a table of next-token probabilities.
    """
    import torch
    from transformers import LlamaForCausalLM

    plant(path, iid)
    model = LlamaForCausalLM.from_pretrained(path)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                value.zero_()
            elif name == "lm_head.weight":
                value.mul_(16)
            elif name.endswith(("v_proj.weight", "gate_proj.weight", "up_proj.weight")):
                value.mul_(4)  # what the writers would read: first derivatives outweigh the sampling of the text
        table = model(torch.arange(VOCABULARY)[:, None]).logits[:, 0].double().softmax(-1).numpy()
    model.save_pretrained(path)
    rng, ids = np.random.default_rng(5), np.zeros((16, 256), np.int64)
    ids[:, 0] = rng.integers(0, VOCABULARY, 16)
    for place in range(1, ids.shape[1]):
        ids[:, place] = [rng.choice(VOCABULARY, p=table[token]) for token in ids[:, place - 1]]
    return path, ids


def random_text() -> np.ndarray:
    """Token ids [16, 256], every token as likely."""
    return np.random.default_rng(6).integers(0, VOCABULARY, (16, 256))
