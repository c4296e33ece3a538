"""Sum what modules of a running model read.

    Listeners ─▶ hooks ─▶ Σ x xᵀ, Σ x, tokens per space and batch ─▶ added up in the order of batches

Several threads may run batches at once: each batch has sums of its own, so that the total is the same to the last bit.
A block can also listen where it was sent to, with its hooks: what it hears there comes back as its result.
An expert reads the tokens routed to it, and its output is weighed by the router; its sums are those of w·x, so that
errors of all experts of a layer count on one scale. What its second matrix reads is computed from its first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch

from trueaxis.model.architecture import submodule
from trueaxis.model.graph import Listeners
from trueaxis.parallel import ordered_stream
from trueaxis.scratch import NO_SCRATCH, NoScratch
from trueaxis.types import Array

R = TypeVar("R")

CHUNK_TOKENS = 4096


class Sum:
    """Σ x xᵀ, Σ x and the number of tokens of one space, taken over chunks."""

    outer: torch.Tensor
    linear: torch.Tensor

    def __init__(self, scratch: NoScratch = NO_SCRATCH) -> None:
        self.tokens, self._scratch = 0, scratch

    def add(self, activations: torch.Tensor) -> None:
        """Add the rows of activations [..., n]."""
        for rows in activations.detach().reshape(-1, activations.shape[-1]).split(CHUNK_TOKENS):
            self._add((rows.T @ rows).double(), rows.sum(dim=0, dtype=torch.float64), rows.shape[0])

    def join(self, other: Sum) -> None:
        """Add what another one has summed."""
        self._add(other.outer, other.linear, other.tokens)

    def _add(self, outer: torch.Tensor, linear: torch.Tensor, tokens: int) -> None:
        if hasattr(self, "outer"):
            self.outer += outer
            self.linear += linear
        else:
            self.outer, self.linear = self._scratch.tensor(outer.clone()), linear.clone()
        self.tokens += tokens


class Hearing:
    """Sums by space over batches; a copy in another process starts anew.

    Attributes:
        sums: Space → its sum over all batches that were run.
        scratch: Where sums over all batches are held.
    """

    def __init__(self, scratch: NoScratch = NO_SCRATCH) -> None:
        self.sums: dict[str, Sum] = {}
        self.scratch = scratch
        self._batch = threading.local()

    def add(self, space: str, activations: torch.Tensor) -> None:
        """Add the rows of activations [..., n] to what the batch of this thread has heard."""
        self._batch.sums.setdefault(space, Sum()).add(activations)

    def __reduce__(self) -> tuple[type[Hearing], tuple[()]]:
        return Hearing, ()

    def during(self, run: Callable[[], R]) -> tuple[R, dict[str, Sum]]:
        """What comes of a batch in this thread, and what it hears."""
        self._batch.sums = {}
        with torch.inference_mode():  # of this thread
            return run(), self._batch.sums

    def over(self, run: Callable[[int], Any], batches: int, threads: int) -> None:
        """Run batches 0, 1, … here and add what each hears.

        Args:
            run: Runs the batch of this number.
            batches: How many there are.
            threads: Batches side by side; the sums do not depend on it.
        """
        self.gather(lambda number: self.during(lambda: run(number))[1], batches, threads)

    def gather(self, heard: Callable[[int], dict[str, Sum]], batches: int, threads: int) -> None:
        """As `over`, of batches that may run elsewhere and tell what they heard."""
        for found in ordered_stream(heard, range(batches), threads):
            for space, one in found.items():
                self.sums.setdefault(space, Sum(self.scratch)).join(one)


def packed(sums: dict[str, Sum]) -> tuple[dict[str, Array], dict[str, int]]:
    """Sums as arrays, and their numbers of tokens."""
    arrays = {f"outer/{space}": one.outer.cpu().numpy() for space, one in sums.items()}
    arrays |= {f"linear/{space}": one.linear.cpu().numpy() for space, one in sums.items()}
    return arrays, {space: one.tokens for space, one in sums.items()}


def unpacked(arrays: Mapping[str, Array], tokens: Mapping[str, int]) -> dict[str, Sum]:
    """What `packed` took apart."""
    sums: dict[str, Sum] = {}
    for space, count in tokens.items():
        one = sums[space] = Sum()
        one.outer, one.linear = (torch.from_numpy(arrays[f"{kind}/{space}"]) for kind in ("outer", "linear"))
        one.tokens = count
    return sums


@contextmanager
def listening(model: Any, listeners: Listeners, hearing: Hearing) -> Iterator[None]:
    """While the context lasts, what enters each module is added to the sum of its space; at its end the experts of
    a layer are pooled. Modules that the model does not call with their input leave no sum."""
    sums = hearing.sums
    handles = []
    for space, module in listeners.spaces.items():

        def add(found: torch.nn.Module, args: tuple[Any, ...], space: str = space) -> None:
            if args and isinstance(found.weight, torch.Tensor) and args[0].shape[-1] in found.weight.shape:
                hearing.add(space, args[0])

        handles.append(submodule(model, module).register_forward_pre_hook(add))
    for name, module in listeners.experts.items():

        def route(found: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
            _add_experts(found, name, [*args, *kwargs.values()], hearing)

        handles.append(submodule(model, module).register_forward_pre_hook(route, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for name in listeners.experts:
        for side in ("in", "hidden"):
            members = [space for space in sums if space.startswith(f"{name}.") and space.endswith(f".{side}")]
            pool = Sum(hearing.scratch)
            for space in members:
                pool.join(sums[space])
            if members:
                sums[f"{name}.{side}"] = pool


class Routed(NamedTuple):
    """One call of the experts of a layer: hidden states [T, d], chosen experts [T, k], and their weights [T, k]."""

    states: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor


def routed(inputs: list[Any]) -> Routed:
    """What the experts of a layer are called with.

    Args:
        inputs: Hidden states [..., d], chosen experts [T, k], and their weights [T, k] or [T, experts].
    """
    tensors = [value for value in inputs if isinstance(value, torch.Tensor)]
    chosen = next(value for value in tensors if not value.is_floating_point())
    states, weights = [value for value in tensors if value.is_floating_point()][:2]
    states = states.reshape(-1, states.shape[-1])
    chosen = chosen.reshape(states.shape[0], -1)
    weights = weights.reshape(states.shape[0], -1)
    return Routed(states, chosen, weights if weights.shape == chosen.shape else weights.gather(1, chosen))


def _add_experts(module: Any, name: str, inputs: list[Any], hearing: Hearing) -> None:
    """Add the tokens of one call of the experts of a layer.

    Args:
        module: Holds gate_up_proj and down_proj, 3-D.
        name: Of the experts, for spaces.
        inputs: As for `routed`.
        hearing: Added to.
    """
    states, chosen, weights = routed(inputs)
    for index in range(module.gate_up_proj.shape[0]):
        tokens, ranks = torch.where(chosen == index)
        share, read = weights[tokens, ranks, None], states[tokens]
        hearing.add(f"{name}.{index}.in", share * read)
        hearing.add(f"{name}.{index}.hidden", share * expert_hidden(module, index, read))


def expert_hidden(module: Any, index: int, states: torch.Tensor) -> torch.Tensor:
    """What the second matrix of an expert reads [T, n], of what its first one reads [T, d]."""
    matrix = module.gate_up_proj[index]
    joined = states @ (matrix if getattr(module, "is_transposed", False) else matrix.T)
    if getattr(module, "has_bias", False):
        joined = joined + module.gate_up_proj_bias[index]
    if hasattr(module, "_apply_gate"):
        return module._apply_gate(joined)
    gate, up = joined.chunk(2, dim=-1)
    return module.act_fn(gate) * up
