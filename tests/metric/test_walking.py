"""Walks: what modules read is the same, bit for bit, whether attention runs again for it or not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from trueaxis.metric.calibrate import load_tokens
from trueaxis.metric.running import load_model
from trueaxis.metric.walking import Walk
from trueaxis.model.checkpoint import Checkpoint

BLOCK = "model.layers.0"
MODULES = [f"{BLOCK}.{name}" for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")]


def test_attention_runs_once_where_its_last_matrix_was_asked_about(tiny_llama: Path, tokens: Path) -> None:
    model = load_model(Checkpoint.open(tiny_llama))
    batches = [torch.from_numpy(load_tokens(tokens)[first : first + 2].astype("int64")) for first in (0, 2)]
    teacher, keeping, plain = (Walk(model, [BLOCK], batches) for _ in range(3))
    with teacher.block(0, MODULES):
        teacher.passed(0)
    assert teacher.last == {MODULES[1]: 2, MODULES[3]: 0}
    keeping.last = teacher.last
    calls: Counter[str] = Counter()
    model.get_submodule(MODULES[0]).register_forward_hook(lambda *_: calls.update(["q"]))
    heard: dict[str, list[dict[str, torch.Tensor]]] = {}
    for name, walk in (("keeping", keeping), ("plain", plain)):
        calls.clear()
        with walk.block(0, MODULES):
            heard[name] = [walk.until(number, module) for module in MODULES for number in (1, 0)]
            heard[name] += [walk.passed(number) for number in (0, 1)]
        assert calls["q"] == {"keeping": 2, "plain": 8}[name]
    for kept, found in zip(heard["keeping"], heard["plain"], strict=True):
        assert list(kept)[-1] == list(found)[-1]
        assert all(torch.equal(kept[module], found[module]) for module in kept)
    assert all(map(torch.equal, keeping._steps.states, plain._steps.states))
    assert "forward" not in vars(model.get_submodule(f"{BLOCK}.self_attn"))
