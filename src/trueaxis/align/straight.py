"""Straight through: KL of the network with every matrix rounded in the axes tried, and its gradient in those axes.

    y ─▶ round(y) − y, taken as constant ─▶ errors in the gauge's axes ─▶ the running model ─▶ KL, ∂KL/∂errors

Rounding has no gradient, so that of the identity is taken (Bengio, Léonard & Courville 2013); what moves the KL is then
how the axes turn the errors and set their steps.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trueaxis.align.estimate import SLOPE
from trueaxis.align.gauge import gauged_model
from trueaxis.align.network import Alignment, Network
from trueaxis.align.trial import Tried, turned_rows
from trueaxis.metric.running import forward
from trueaxis.metric.sensitivity import Output
from trueaxis.model.architecture import locate
from trueaxis.runtime.transforms import Reflection
from trueaxis.types import Array, TrueaxisError

if TYPE_CHECKING:
    import torch

SEQUENCES, LENGTH = 4, 256  # read at every step, drawn anew


class StraightThrough:
    """Call it with the matrices tried, all rows of each, for λ·KL in bits: differentiable in the rotations.

    Args:
        network: Its water level is λ; D in units of g is nats per token, and so is KL.
        start: The gauge that learning starts from.
        tokens: Calibration text, integers [sequences, length].
    """

    def __init__(self, network: Network, start: Alignment, tokens: Array) -> None:
        self._model = gauged_model(network, start.changes, start.products)
        self._plain = copy.deepcopy(self._model)
        self._gradients = copy.deepcopy(self._model)
        self._changes, self._tokens = start.changes, tokens
        self._worth = SLOPE / network.water
        self._generator = np.random.default_rng(network.seed)

    def __call__(self, tried: Sequence[Tried], rotations: Sequence[torch.Tensor]) -> torch.Tensor:
        """λ·KL in bits, summed over the network."""
        import torch

        tried = [one for one in tried if one.piece.weight.place is not None]
        errors = [_error(one, rotations) for one in tried]
        self._model.requires_grad_(True).zero_grad()
        with torch.no_grad():
            for one, error in zip(tried, errors, strict=True):
                view = _view(self._model, one)
                view.copy_(_view(self._plain, one) + self._loaded(one, error))
        kl = self._divergence()
        kl.backward()
        linear = torch.zeros(())
        with torch.no_grad():
            for own, gradient in zip(self._model.parameters(), self._gradients.parameters(), strict=True):
                gradient.copy_(torch.zeros_like(own) if own.grad is None else own.grad)
        for one, error in zip(tried, errors, strict=True):
            slope = self._loaded(one, _view(self._gradients, one))
            linear = linear + (error * slope).sum()
        return self._worth * (kl.detach() + linear - linear.detach())

    def _divergence(self) -> torch.Tensor:
        """KL in nats per token on a few sequences."""
        import torch

        drawn = self._generator.integers(0, self._tokens.shape[0], SEQUENCES)
        ids = torch.from_numpy(self._tokens[drawn, :LENGTH].astype(np.int64))
        with torch.no_grad():
            expected = Output.of(self._plain, forward(self._plain, ids)).logits
        found = Output.of(self._model, forward(self._model, ids)).logits
        if expected is None or found is None:
            raise TrueaxisError("align.distortion: kl needs a model that predicts tokens; use metric")
        log_p, log_q = expected.log_softmax(-1), found.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1).mean()

    def _loaded(self, one: Tried, values: torch.Tensor) -> torch.Tensor:
        """From the gauge's coordinates to the model's or back: the reflection is its own transpose."""
        import torch

        change = self._changes.get(one.piece.weight.name)
        if change is None or not change.reflected:
            return values.detach()
        return torch.from_numpy(Reflection(change.reflected).decoded(values.detach().numpy()))


def _view(model: Any, one: Tried) -> torch.Tensor:
    """The matrix in a running model; one that it does not have was left out."""
    assert one.piece.weight.place is not None
    return locate(model, one.piece.weight.place)


def _error(one: Tried, rotations: Sequence[torch.Tensor]) -> torch.Tensor:
    """Ŵ − W [m, n] in the gauge's axes."""
    import torch

    piece, scaled = one.piece, one.relaxation.scaled
    steps = (scaled.round() - scaled).detach()
    visited = steps / (piece.unit * one.visited.lower.diagonal()) / piece.rows[one.rows, None]
    error = visited[:, torch.argsort(one.visited.order)]
    back = [rotation.transpose(1, 2) for rotation in rotations]
    error = turned_rows(error.T, piece.reads, back).T[torch.argsort(one.rows)]
    return turned_rows(error, piece.writes, back)
