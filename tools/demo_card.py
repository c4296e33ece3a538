"""The card of the demo model: how it was made and what it knows, beside a unigram and a 5-gram model.

    evaluation split ─▶ tokens [windows, CONTEXT] ─▶ nats of every token but a window's first
                                                      ├ the model
                                                      ├ unigram       counts of the training tokens
                                                      └ 5-gram        interpolated Kneser–Ney, the same counts

All three predict the same tokens from the same windows. An n-gram of tokens is one integer in base VOCABULARY, and
counts are sorted arrays of such integers.

Modified Kneser–Ney smoothing: S. Chen and J. Goodman, "An empirical study of smoothing techniques", 1998.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

ORDER = 5
FLOOR = 0.1  # of every discount, so that no token is ever impossible

CARD = """\
---
license: mit
library_name: transformers
tags: [llama, code]
---
# The model that `trueaxis demo` compresses

{shape};
{parameters:,} parameters in {dtype}, {file_bytes:,} bytes. It continues Python source and serves to show compression
on any machine; it is far too small for other use.

**Text.** The Python standard library's own source (PSF licence), read at run time from the installation ({python}) by
`trueaxis.demo.corpus`, which splits modules by name: {training_tokens:,} training and {evaluation_tokens:,} evaluation
tokens; compression calibrates on a third split. None of the text is in the repository.

**Training.** `python tools/train_demo_model.py --minutes {minutes:g}`: {steps:,} steps of {step_tokens:,} tokens
({epochs:.1f} epochs) in {seconds:.0f} s, {core_minutes:.1f} core-minutes of a shared machine ({machine},
torch {torch}); Muon and AdamW, warm-up and cosine; mean training loss at the end {loss:.3f} nats per token.

**Evaluation.** Windows of {context} tokens of the evaluation split, every token but a window's first
({scored:,} tokens, {scored_bytes:,} bytes); the n-gram models have counted the training split.

| model | nats per token | perplexity per token | perplexity per byte |
|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class _Counts:
    """Counts of one order: sorted n-grams with their discounted counts, and what every history holds back."""

    grams: np.ndarray  # int64 [G], sorted
    discounted: np.ndarray  # float64 [G]
    histories: np.ndarray  # int64 [F], sorted
    totals: np.ndarray  # float64 [F], counts of all continuations
    held_back: np.ndarray  # float64 [F], discounts of all continuations


class KneserNey:
    """Interpolated modified Kneser–Ney model of a token stream.

    Example:
        >>> model = KneserNey(np.array([0, 1, 0, 1, 0, 1]), vocabulary=2, order=2)
        >>> bool(model.nats(np.array([[0, 1, 0]])).mean() < np.log(2))
        True
    """

    def __init__(self, stream: np.ndarray, vocabulary: int, order: int = ORDER) -> None:
        self.vocabulary, self.orders = vocabulary, []
        grams, counts = np.unique(_encode(stream, vocabulary, order), return_counts=True)
        for n in range(order, 0, -1):
            self.orders.append(_discount(grams, counts, vocabulary))
            grams, counts = np.unique(grams % vocabulary ** (n - 1), return_counts=True)  # distinct left neighbours
        self.orders.reverse()

    def nats(self, windows: np.ndarray) -> np.ndarray:
        """−ln p of every token but a window's first, from what precedes it in the window: [windows, length − 1]."""
        probability = np.full((windows.shape[0], windows.shape[1] - 1), 1 / self.vocabulary)
        for n, counts in enumerate(self.orders, start=1):
            first = max(n - 2, 0)  # a window's beginning has shorter histories
            keys = np.stack([_encode(window, self.vocabulary, n) for window in windows])[:, 1 if n == 1 else 0 :]
            probability[:, first:] = _interpolate(counts, keys, probability[:, first:], self.vocabulary)
        return -np.log(probability)


def _encode(stream: np.ndarray, vocabulary: int, n: int) -> np.ndarray:
    """Every n-gram of a stream as an integer, oldest token most significant."""
    length = len(stream) - n + 1
    keys = np.zeros(length, np.int64)
    for place in range(n):
        keys = keys * vocabulary + stream[place : place + length]
    return keys


def _discount(grams: np.ndarray, counts: np.ndarray, vocabulary: int) -> _Counts:
    once, twice, thrice, four = (max(int((counts == value).sum()), 1) for value in (1, 2, 3, 4))
    y = once / (once + 2 * twice)
    steps = np.array([0.0, 1 - 2 * y * twice / once, 2 - 3 * y * thrice / twice, 3 - 4 * y * four / thrice])
    floors = [0.0, FLOOR, FLOOR, FLOOR]
    discounts = np.clip(steps, floors, [0.0, 1.0, 2.0, 3.0])[np.minimum(counts, 3)]
    histories, where = np.unique(grams // vocabulary, return_inverse=True)
    totals, held_back = np.bincount(where, counts), np.bincount(where, discounts)
    return _Counts(grams, counts - discounts, histories, totals, held_back)


def _interpolate(counts: _Counts, keys: np.ndarray, lower: np.ndarray, vocabulary: int) -> np.ndarray:
    """p(w | history) = (discounted count + held back · lower) / total; `lower` where the history is new."""
    gram, known = _find(counts.grams, keys)
    history, seen = _find(counts.histories, keys // vocabulary)
    mine = np.where(known, counts.discounted[gram], 0.0) + counts.held_back[history] * lower
    return np.where(seen, mine / counts.totals[history], lower)


def _find(values: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(place of every key in a sorted array, whether it is there)."""
    place = np.minimum(np.searchsorted(values, keys), len(values) - 1)
    return place, values[place] == keys


def unigram_nats(stream: np.ndarray, windows: np.ndarray, vocabulary: int) -> np.ndarray:
    """−ln p of every token but a window's first, by its share of the stream; one is added to every count."""
    counts = np.bincount(stream, minlength=vocabulary) + 1
    return -np.log(counts / counts.sum())[windows[:, 1:]]


def model_nats(path: Path, windows: np.ndarray, batch: int = 4) -> np.ndarray:
    """−ln p of every token but a window's first by the checkpoint, computed in float32."""
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    nats = []
    with torch.inference_mode():
        for rows in torch.from_numpy(windows).split(batch):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
            nats.append(cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").numpy())
    return np.concatenate(nats).astype(np.float64)


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of text that every token stands for; special tokens stand for none."""
    special = tokenizer.get_added_tokens_decoder()
    names = [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]
    return np.array([0 if token in special else len(name) for token, name in enumerate(names)])


def write_card(path: Path, training: np.ndarray, evaluation: np.ndarray, context: int) -> str:
    """Evaluates the model in a directory and writes its README.md.

    Args:
        path: Checkpoint, tokenizer and training.json.
        training: Tokens that the n-gram models count, int64 [tokens].
        evaluation: Tokens to predict, int64 [tokens].
        context: Length of a window.

    Returns:
        The card.
    """
    tokenizer, log = Tokenizer.from_file(str(path / "tokenizer.json")), json.loads((path / "training.json").read_text())
    vocabulary = tokenizer.get_vocab_size()
    windows = evaluation[: len(evaluation) // context * context].reshape(-1, context)
    scored_bytes = int(token_bytes(tokenizer)[windows[:, 1:]].sum())
    nats = {
        "unigram": unigram_nats(training, windows, vocabulary),
        f"{ORDER}-gram, Kneser–Ney": KneserNey(training, vocabulary).nats(windows),
        "this model": model_nats(path, windows),
    }
    rows = [
        f"| {name} | {each.mean():.4f} | {np.exp(each.mean()):.2f} | {np.exp(each.sum() / scored_bytes):.4f} |"
        for name, each in nats.items()
    ]
    card = CARD.format(
        **log, **_shape(path), context=context, scored=windows[:, 1:].size, scored_bytes=scored_bytes,
        training_tokens=len(training), evaluation_tokens=len(evaluation), epochs=log["tokens"] / len(training),
        step_tokens=log["tokens"] // max(log["steps"], 1), core_minutes=log["core_seconds"] / 60,
        machine=platform.machine(), torch=importlib.metadata.version("torch"), rows="\n".join(rows),
    )  # fmt: skip
    (path / "README.md").write_text(card)
    return card


def _shape(path: Path) -> dict[str, object]:
    config, file = json.loads((path / "config.json").read_text()), path / "model.safetensors"
    with safe_open(file, "np") as tensors:
        sizes = [int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys()]  # noqa: SIM118
    shape = (
        f"Llama (RMSNorm, RoPE, GQA, SwiGLU): width {config['hidden_size']}, {config['num_hidden_layers']} layers, "
        f"{config['num_attention_heads']} query and {config['num_key_value_heads']} key-value heads, FFN "
        f"{config['intermediate_size']}, byte-level BPE vocabulary {config['vocab_size']}, tied, context "
        f"{config['max_position_embeddings']}"
    )
    return {
        "shape": shape, "parameters": sum(sizes), "dtype": config["dtype"], "file_bytes": file.stat().st_size,
    }  # fmt: skip
