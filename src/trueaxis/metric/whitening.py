"""Whiten what matrices read, so that one pass backward tells what noise in any of them would do to the model's output.

    H + δI = C Cᵀ,  x ─▶ C⁻¹ x ─┐
                                 ├─▶ M = Σ_t g_t (C⁻¹ x_t)ᵀ of a sequence ─▶ ½ E|M|² / (m n)  nats per unit of D
    −ln p of labels ─▶ g = ∂/∂y ─┘

Noise that is white where D is a plain sum of squares, E = Z C⁻¹, moves −ln p of a whole sequence by tr(Zᵀ M) to first
order. Over labels drawn from the model the mean square of that is twice the KL to second order, and over Z it is
|M|² D / (m n). One error disturbs all tokens of a sequence and acts on the tokens after them, so M is of the sequence;
labels of two sequences are independent. |M|² = Σ_{t,s} (g_t · g_s)(x̃_t · x̃_s) costs less where sequences are short.

References: Martens 2020, New Insights and Perspectives on the Natural Gradient Method (KL and the Fisher).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch

from trueaxis.metric.metric import damped_cholesky, metric_for
from trueaxis.metric.statistics import Statistics
from trueaxis.parallel import ordered_map
from trueaxis.types import Weight


class _Space(NamedTuple):
    """C⁻¹ [n, n] float32 of a space, and n less the directions that damping alone gives energy."""

    inverse: torch.Tensor
    inputs: float


class Whitening:
    """What matrices read, in coordinates in which D of an error is the sum of its squares.

    Args:
        statistics: Of the checkpoint.
        weights: Linear layers and heads; their metrics are factored here.
        threads: Spaces side by side.
    """

    def __init__(self, statistics: Statistics, weights: Sequence[Weight], threads: int) -> None:
        self._statistics, self._last = statistics, threading.local()
        firsts = {weight.space or weight.name: weight for weight in weights}
        self._spaces = dict(zip(firsts, ordered_map(self._factored, firsts.values(), threads), strict=True))

    def read(self, weight: Weight, inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor | None:
        """C⁻¹ x of what a module reads [..., n]; None if that is not what one of the weights is multiplied by.

        Args:
            weight: Of the module.
            inputs: That it reads.
            outputs: That it puts out for them.
        """
        space = weight.space or weight.name
        shape = *outputs.shape[:-1], weight.shape[1]
        if space not in self._spaces or inputs.shape != shape or not inputs.is_floating_point():
            return None
        known = getattr(self._last, "read", None)  # queries, keys and values read one tensor
        if known is None or known[0] != space or known[1] is not inputs:
            found = self._spaces[space]
            whitened = inputs.detach() if found is None else inputs.detach() @ found.inverse.to(inputs.device).T
            known = self._last.read = space, inputs, whitened
        return known[2]

    def freedom(self, weight: Weight) -> float:
        """Directions of an error of a matrix [m, n], less those that nothing is read in."""
        found = self._spaces[weight.space or weight.name]
        return weight.shape[0] * (weight.shape[1] if found is None else found.inputs)

    def _factored(self, weight: Weight) -> _Space | None:
        second_moment = metric_for(weight, self._statistics).second_moment
        if second_moment is None:
            return None
        found, damping = damped_cholesky(second_moment)
        factor = torch.from_numpy(found)
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor), dtype=factor.dtype), upper=False)
        inputs = len(factor) - damping * float(inverse.square().sum())  # tr(C⁻¹ H C⁻ᵀ)
        return _Space(self._statistics.scratch.tensor(inverse.float()), inputs)


def energy(gradients: torch.Tensor, inputs: torch.Tensor) -> float:
    """Σ over sequences of |Σ_t g_t x_tᵀ|².

    Args:
        gradients: [sequences, T, m].
        inputs: [sequences, T, n].

    Example:
        >>> energy(torch.ones(1, 2, 3), torch.ones(1, 2, 5))
        60.0
    """
    total = 0.0
    for given, read in zip(gradients, inputs, strict=True):
        tokens, m, n = *given.shape, read.shape[-1]
        if tokens * (m + n) < m * n:
            total += float(((given @ given.T) * (read @ read.T)).sum(dtype=torch.float64))
        else:
            total += float((given.T @ read).square().sum(dtype=torch.float64))
    return total
