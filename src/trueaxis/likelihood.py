"""Compare what two models predict: Kullback–Leibler divergence, likelihood, agreement, token by token.

    logits [..., vocabulary] ─▶ log-softmax, a few rows at a time ─▶ float64 [...]

    KL(p ‖ q) = Σ_v p_v (ln p_v − ln q_v)        nats = −ln q_target

A slice holds at most 2¹⁶ logits (or one token), so that vocabularies of any size cost little memory and stay in cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_SLICE_LOGITS = 1 << 16  # float64 copies of as many stay in the second-level cache


def kl_nats(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL(softmax(expected) ‖ softmax(found)) of every token; logarithms are float32, sums over the vocabulary float64.

    Args:
        expected, found: Logits [..., vocabulary] of any floating dtype.

    Returns:
        float64 [...], nats.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> kl_nats(logits, logits)
        tensor([0.], dtype=torch.float64)
    """
    parts = []
    for p_logits, q_logits in zip(_slices(expected), _slices(found), strict=True):
        log_p, log_q = p_logits.float().log_softmax(-1), q_logits.float().log_softmax(-1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1, dtype=torch.float64))
    return torch.cat(parts).reshape(expected.shape[:-1])


class Prediction:
    """Logits of a model, made ready to be compared with those of many others, to differences of 10⁻⁸ nats.

    KL(p ‖ q) = Σ_v p_v (x_v − y_v) − (ln Σ eˣ − ln Σ eʸ) for logits x and y: exactly 0 where they are the same. It is
    float64 throughout, but that p is kept as float32.

    Args:
        logits: x [..., vocabulary], kept.

    Example:
        >>> Prediction(torch.tensor([[0.0, 1.0]])).kl_nats(torch.tensor([[0.0, 1.0]]))
        tensor([0.], dtype=torch.float64)
    """

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits
        self._shares: list[torch.Tensor] = []
        self._totals: list[torch.Tensor] = []
        for rows in _slices(logits):
            exact = rows.double()
            total = exact.logsumexp(-1, keepdim=True)
            self._shares.append((exact - total).exp().float())
            self._totals.append(total)

    def kl_nats(self, found: torch.Tensor) -> torch.Tensor:
        """KL(this ‖ softmax(found)) of every token, float64 [...] in nats."""
        parts = []
        for x, y, p, total in zip(_slices(self.logits), _slices(found), self._shares, self._totals, strict=True):
            exact = y.double()
            shift = total - exact.logsumexp(-1, keepdim=True)
            parts.append((x.double() - exact - shift).mul_(p).sum(-1))
        return torch.cat(parts).reshape(found.shape[:-1])


def target_nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """−ln of the probability given to each target.

    Args:
        logits: [..., vocabulary].
        targets: Token ids, int64 [...].

    Returns:
        float64 [...], nats.
    """
    parts = []
    flat = targets.reshape(-1)
    for rows in _slices(logits):
        ids, flat = flat[: rows.shape[0]], flat[rows.shape[0] :]
        parts.append(-rows.float().log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1).double())
    return torch.cat(parts).reshape(targets.shape)


def same_choice(expected: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Whether both models find the same token likeliest: bool [...] of logits [..., vocabulary]."""
    return expected.argmax(-1) == found.argmax(-1)


def _slices(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    width = logits.shape[-1]
    return iter(logits.reshape(-1, width).split(max(1, _SLICE_LOGITS // width)))
