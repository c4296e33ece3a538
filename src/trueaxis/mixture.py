"""Mixture: where targets lie of the experts of a layer, each over the tokens that the original routes to it.

    original    x ─▶ router ─▶ tokens of an expert, their weights g        C = E[g² x x̃ᵀ]
    compressed  x̃ of the same tokens, wherever its own router sends them   H̃ = E[g² x̃ x̃ᵀ]

For the second matrix of an expert x and x̃ are what the first one and the activation make of them, in either model.
An expert sees few tokens for the n² numbers of its shift: what it says beyond that of all tokens of the layer is taken
as far as one half of its tokens foretells the other.
Memory: what the experts of one layer read of the text, in both models, in scratch; ten sums of one expert per thread.

References: James & Stein 1961 (shrinkage toward what many share).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from trueaxis.metric.listening import expert_hidden
from trueaxis.metric.walking import shares_of
from trueaxis.model.architecture import submodule
from trueaxis.types import Array

Heard = Sequence[Mapping[str, torch.Tensor]]
"""What modules read of every batch [tokens, n], by name."""


class Shift(NamedTuple):
    """Targets W + W · inputs + stream.

    Attributes:
        inputs: (C − H̃) (H̃ + δI)⁻¹ [n, n].
        stream: As much again of what the residual stream has lost [d, n], or None.
    """

    inputs: Array
    stream: Array | None


def solved(cross: torch.Tensor, own: torch.Tensor, damping: float) -> Shift:
    """The shift that sums over tokens call for.

    Args:
        cross: C − H̃ [n, n], and below it the part of the stream, if there is one; float64.
        own: H̃ [n, n] float64; damped in place.
        damping: δ as a share of the mean of its diagonal.
    """
    size, found = len(own), _fitted(cross, own, damping).numpy()
    return Shift(found[:size], found[size:] if len(found) > size else None)


class Half(NamedTuple):
    """Sums over one half of the tokens: lost x̃ᵀ [k, n] and x̃ x̃ᵀ [n, n], float64."""

    cross: torch.Tensor
    own: torch.Tensor


def foretold(halves: Sequence[Half], damping: float) -> Array:
    """What maps x̃ to what was lost [k, n], as far as halves of the tokens agree about it; zero where they do not.

    The best factor s of what one half says, for the other, is found in closed form; its noise is that of half of the
    tokens, that of all of them calls for 2s / (1 + s).
    """
    one, other = (_fitted(half.cross, half.own.clone(), damping) for half in halves)
    agreed = sum(float((a * half.cross).sum()) for a, half in zip((other, one), halves, strict=True))
    energy = sum(float((a @ half.own * a).sum()) for a, half in zip((other, one), halves, strict=True))
    factor = min(max(agreed / energy, 0.0), 1.0) if energy > 0 else 0.0
    whole = _fitted(halves[0].cross + halves[1].cross, halves[0].own + halves[1].own, damping)
    return (2 * factor / (1 + factor) * whole).numpy()


def _fitted(cross: torch.Tensor, own: torch.Tensor, damping: float) -> torch.Tensor:
    """cross (own + δI)⁻¹; `own` is damped in place."""
    own.diagonal().add_(max(damping * float(own.diagonal().mean()), np.finfo(np.float64).tiny))
    return torch.linalg.solve(own, cross, left=False)


class Mixture:
    """The experts of a layer in two models that went through the same text.

    Args:
        original, drifted: The models.
        module: The experts in them.
        heard, found: What walks told of the module in either, its shares and the stream among it.
        damping: As for `solved`.
        stream: Module that reads the residual stream, or None.
        share: Of what the stream lost that second matrices make up for.
    """

    def __init__(
        self,
        original: Any,
        drifted: Any,
        module: str,
        heard: Heard,
        found: Heard,
        damping: float,
        stream: str | None,
        share: float,
    ) -> None:
        self._models: list[Any] = [submodule(model, module) for model in (original, drifted)]
        self._module, self._heard, self._damping = module, (heard, found), damping
        self._stream, self._share = stream, share

    @property
    def experts(self) -> int:
        """How many there are."""
        return self._models[0].gate_up_proj.shape[0]

    @cached_property
    @torch.inference_mode()
    def pooled(self) -> torch.Tensor:
        """The shift of all tokens of the layer [n, n], each weighed as by its experts."""
        cross, own = torch.zeros(()), torch.zeros(())
        for first, second in zip(*self._heard, strict=True):
            weights = first[shares_of(self._module)].square().sum(1, keepdim=True).sqrt()
            drifted = weights * second[self._module]
            cross = cross + ((weights * first[self._module] - drifted).T @ drifted).double()
            own = own + (drifted.T @ drifted).double()
        return _fitted(cross, own, self._damping)

    @torch.inference_mode()
    def states(self, expert: int) -> Shift:
        """For the first matrices of an expert."""
        halves = self._halves(expert, lambda model, states: states)
        beyond = [Half(cross - self.pooled @ own, own) for cross, own in halves]
        return Shift(self.pooled.numpy() + foretold(beyond, self._damping), None)

    @torch.inference_mode()
    def hidden(self, expert: int) -> Shift:
        """For its second matrix; the first ones of the drifted model stay as they are from then on."""
        halves = self._halves(expert, lambda model, states: expert_hidden(model, expert, states), self._stream)
        size = len(halves[0].own)
        inputs = foretold([Half(cross[:size], own) for cross, own in halves], self._damping)
        if self._stream is None:
            return Shift(inputs, None)
        return Shift(inputs, foretold([Half(cross[size:], own) for cross, own in halves], self._damping))

    def _halves(
        self, expert: int, read: Callable[[Any, torch.Tensor], torch.Tensor], stream: str | None = None
    ) -> list[Half]:
        """Sums over the first halves of all batches, and over the second ones."""
        sums = [[torch.zeros(()), torch.zeros(())] for _ in range(2)]
        for batch in zip(*self._heard, strict=True):
            share = batch[0][shares_of(self._module)][:, expert]
            tokens = torch.nonzero(share)[:, 0]
            weights = share[tokens, None]
            reads = (read(model, one[self._module][tokens]) for model, one in zip(self._models, batch, strict=True))
            wanted, drifted = (weights * found for found in reads)
            lost = wanted - drifted
            if stream is not None:
                left = self._share * weights * (batch[0][stream][tokens] - batch[1][stream][tokens])
                lost = torch.cat([lost, left], dim=1)
            first = int((tokens < len(share) // 2).sum())
            for half, rows in zip(sums, (slice(first), slice(first, None)), strict=True):
                half[0] = half[0] + (lost[rows].T @ drifted[rows]).double()
                half[1] = half[1] + (drifted[rows].T @ drifted[rows]).double()
        return [Half(*half) for half in sums]
