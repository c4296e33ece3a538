"""Small fine-tunes for benchmarks: a checkpoint, a text of another kind, some steps of AdamW, a checkpoint again.

model, text ─▶ tokens ─▶ steps on random windows ─▶ directory in the dtype of the model
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

BATCH, WINDOW = 4, 128


def tune(
    model: Path, text: str, out: Path, steps: int, rate: float, seed: int = 0, earlier: Mapping[int, Path] | None = None
) -> Path:
    """Writes a fine-tune of `model` to `out`.

    Args:
        model: Directory of a checkpoint with a tokenizer.
        text: What it is trained on.
        out: Directory to create.
        steps, rate: Of AdamW without decay; the rate falls to zero linearly.
        seed: Of the windows.
        earlier: Steps before the last ─▶ directories that take what stands after them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    found = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).train()
    stored = AutoModelForCausalLM.from_pretrained(model).dtype
    optimizer = torch.optim.AdamW(found.parameters(), lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        starts = torch.randint(0, len(ids) - WINDOW - 1, (BATCH,), generator=generator)
        batch = torch.stack([ids[start : start + WINDOW] for start in starts])
        found(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in (earlier or {}):
            _save(deepcopy(found).to(stored), model, (earlier or {})[step + 1])
    return _save(found.to(stored), model, out)


def _save(found: Any, model: Path, out: Path) -> Path:
    found.save_pretrained(out)
    for file in model.glob("tokenizer*"):
        shutil.copyfile(file, out / file.name)
    return out
