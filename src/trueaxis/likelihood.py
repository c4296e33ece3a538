"""Compare what two models predict: Kullback–Leibler divergence, likelihood, agreement, token by token.

    logits [..., vocabulary] ─▶ log-softmax, a few rows at a time ─▶ float64 [...]

    KL(p ‖ q) = Σ_v p_v (ln p_v − ln q_v)        nats = −ln q_target

A slice holds at most 2²² logits, so that vocabularies of hundreds of thousands cost no more memory than small ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

_SLICE_LOGITS = 1 << 22


def kl_nats(expected: torch.Tensor, found: torch.Tensor, precision: torch.dtype = torch.float32) -> torch.Tensor:
    """KL(softmax(expected) ‖ softmax(found)) of every token.

    Args:
        expected, found: Logits [..., vocabulary] of any floating dtype.
        precision: Of the logarithms; sums over the vocabulary are float64 whatever it is.

    Returns:
        float64 [...], nats.

    Example:
        >>> logits = torch.tensor([[0.0, 1.0]])
        >>> kl_nats(logits, logits)
        tensor([0.], dtype=torch.float64)
    """
    parts = []
    for p_logits, q_logits in zip(_slices(expected), _slices(found), strict=True):
        log_p, log_q = p_logits.to(precision).log_softmax(-1), q_logits.to(precision).log_softmax(-1)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1, dtype=torch.float64))
    return torch.cat(parts).reshape(expected.shape[:-1])


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
