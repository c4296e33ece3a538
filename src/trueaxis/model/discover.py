"""Find out what a checkpoint without a family table holds, from the model itself where transformers can build it.

    config.json ─▶ skeleton ─▶ embeddings, Conv1D, modules with a matrix, experts ─▶ Survey
                          └─ none ─▶ names and shapes alone: matrices without a space

Every linear layer gets a space of its own. What is no matrix of a known kind stays exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from trueaxis.model.architecture import skeleton
from trueaxis.model.checkpoint import HEAD_NAMES, Checkpoint, Entry
from trueaxis.model.experts import expert_tensors, expert_weights
from trueaxis.types import Place, Role, Weight

HEAD_SPACE = "head"
HEADED = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForPreTraining", "ForConditionalGeneration")
SMALLEST_SIDE = 32  # of a bare parameter that is taken for a matrix: smaller ones are tables of constants
_EXACT = re.compile(r"position|wpe|token_type|bias(es)?(\.weight)?$")
_EMBEDDINGS = re.compile(r"embed|wte|shared")


class Survey(NamedTuple):
    """What a checkpoint holds: its weights, its blocks in order, and the module of its head in the running model."""

    weights: tuple[Weight, ...]
    blocks: tuple[str, ...]
    head: str | None


def unplaced(name: str, entry: Entry) -> Weight:
    """A tensor of which nothing but name and shape is known."""
    matrix = len(entry.shape) == 2 and min(entry.shape) >= (1 if name.endswith("weight") else SMALLEST_SIDE)
    role: Role = "linear" if matrix and not _EXACT.search(name) else "exact"
    return Weight(name, entry.shape, entry.dtype, role)


def discover(checkpoint: Checkpoint) -> Survey:
    """Survey of a checkpoint whose model_type has no table; it runs in one piece, so there are no blocks."""
    model = skeleton(checkpoint.config)
    found = _Names(checkpoint) if model is None else _Modules(checkpoint, model)
    weights: list[Weight] = []
    experts = expert_tensors(checkpoint)
    for module, tensors in experts.items():
        runs_as, transposed = found.experts(module)
        for tensor in tensors:
            weights += expert_weights(checkpoint, tensor, runs_as or module, runs_as, transposed=transposed)
    done = {weight.tensor for weight in weights} | checkpoint.aliases.keys()
    weights += [found.weight(name, entry) for name, entry in checkpoint.entries.items() if name not in done]
    return Survey(tuple(_in_stored_order(checkpoint, weights)), (), found.head)


def _in_stored_order(checkpoint: Checkpoint, weights: list[Weight]) -> Iterator[Weight]:
    position = {name: number for number, name in enumerate(checkpoint.entries)}
    return iter(sorted(weights, key=lambda weight: position[weight.tensor]))


class _Names:
    """Without a model: an embedding is what is called so and has a row per token of the vocabulary."""

    head: str | None = None

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._vocabulary = checkpoint.config.get("vocab_size")

    def experts(self, module: str) -> tuple[str | None, bool]:
        """(Module in the running model, whether it holds matrices [n, m])."""
        del module
        return None, False

    def weight(self, name: str, entry: Entry) -> Weight:
        """What one tensor is."""
        found = unplaced(name, entry)
        if found.role == "linear" and entry.shape[0] == self._vocabulary:
            if name in HEAD_NAMES:
                return Weight(name, entry.shape, entry.dtype, "head")
            if _EMBEDDINGS.search(name):
                return Weight(name, entry.shape, entry.dtype, "embedding")
        return found


class _Modules:
    """With the skeleton of the model."""

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self._modules = dict(model.named_modules())
        self._prefix = f"{model.base_model_prefix}."
        self._stored = checkpoint.entries.keys() - checkpoint.aliases.keys()
        inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
        names = {module: name for name, module in self._modules.items()}
        self._embedding, self.head = names.get(inputs), names.get(outputs)
        self._shared = outputs is not None and getattr(outputs, "weight", 0) is getattr(inputs, "weight", 1)

    def experts(self, module: str) -> tuple[str | None, bool]:
        """(Module in the running model, whether it holds matrices [n, m])."""
        name, found = self._find(module)
        fused = getattr(found, "gate_up_proj", None) is not None and getattr(found, "down_proj", None) is not None
        if not fused or not getattr(found, "has_gate", True):
            return None, False
        return name, bool(getattr(found, "is_transposed", False))

    def weight(self, name: str, entry: Entry) -> Weight:
        """What one tensor is."""
        from torch import nn
        from transformers.pytorch_utils import Conv1D

        module_name, _, leaf = name.rpartition(".")
        runs_as, module = self._find(module_name)
        shape, dtype = entry.shape, entry.dtype
        if leaf != "weight" or len(shape) != 2 or runs_as is None:
            return unplaced(name, entry)
        place = Place(f"{runs_as}.weight")
        if runs_as == self._embedding:
            tied = self._shared and self.head is not None
            return Weight(
                name, shape, dtype, "tied" if tied else "embedding", HEAD_SPACE if tied else None, place=place
            )
        if runs_as == self.head:
            return Weight(name, shape, dtype, "head", HEAD_SPACE, place=place)
        bias = f"{module_name}.bias" if f"{module_name}.bias" in self._stored else None
        space = f"{runs_as}.in"
        if isinstance(module, Conv1D):
            turned = Place(place.parameter, transposed=True)
            return Weight(name, shape[::-1], dtype, "linear", space, transposed=True, place=turned, bias=bias)
        if isinstance(module, nn.Embedding):
            return unplaced(name, entry)
        # nn.Linear, and what multiplies its input by a matrix without being one, such as a router.
        return Weight(name, shape, dtype, "linear", space, place=place, bias=bias)

    def _find(self, name: str) -> tuple[str | None, Any]:
        """A module of the running model, with or without the prefix; (None, None) if there is none."""
        for candidate in (name, self._prefix + name, name.removeprefix(self._prefix)):
            if candidate in self._modules:
                return candidate, self._modules[candidate]
        return None, None
