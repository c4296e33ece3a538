"""Against formulas written out in NumPy, over more tokens than one slice holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueaxis import likelihood
from trueaxis.likelihood import Prediction, kl_nats, same_choice, target_nats


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 7, 50, generator=generator) * 3, torch.randn(3, 7, 50, generator=generator) * 3


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    values = logits.double().numpy()
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


@pytest.mark.parametrize("slice_logits", [1, 200, 1 << 22])
def test_formulas(
    logits: tuple[torch.Tensor, torch.Tensor], slice_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "_SLICE_LOGITS", slice_logits)
    p, q = map(log_softmax, logits)
    targets = torch.arange(21).reshape(3, 7)
    expected = (np.exp(p) * (p - q)).sum(-1)
    assert kl_nats(*logits).dtype == torch.float64
    np.testing.assert_allclose(kl_nats(*logits).numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(Prediction(logits[0]).kl_nats(logits[1]).numpy(), expected, rtol=1e-7)
    nats = -np.take_along_axis(q, targets.numpy()[..., None], -1)[..., 0]
    np.testing.assert_allclose(target_nats(logits[1], targets).numpy(), nats, rtol=1e-6)
    agreed = p.argmax(-1) == q.argmax(-1)
    assert same_choice(*logits).tolist() == agreed.tolist()


def test_small_differences_survive(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    shift = torch.zeros(50)
    shift[3] = 1e-2
    p, q = log_softmax(logits[0]), log_softmax(logits[0] + shift)
    expected = float((np.exp(p) * (p - q)).sum())
    assert float(kl_nats(logits[0], logits[0] + shift).sum()) == pytest.approx(expected, rel=0.05)
    assert float(kl_nats(logits[0], logits[0]).abs().sum()) == 0
