"""Whitened inputs have the identity for a metric, directions without energy count for nothing, both sums agree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trueaxis.metric.statistics import Statistics
from trueaxis.metric.whitening import Whitening, energy
from trueaxis.types import Array, Weight


def statistics_of(inputs: Array) -> Statistics:
    sums, totals = {"s": inputs.T @ inputs}, {"s": inputs.sum(axis=0)}
    return Statistics(sums, totals, {"s": len(inputs)}, np.ones(8, np.int64), "", (), np.zeros(0, np.uint64))


def test_whitened_inputs_have_the_identity_for_a_metric() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((400, 6)) @ generator.standard_normal((6, 6))
    weight = Weight("w", (3, 6), "F32", "linear", "s")
    whitening = Whitening(statistics_of(inputs), [weight], 1)
    read = torch.from_numpy(inputs).float()[None]
    found = whitening.read(weight, read, torch.zeros(1, 400, 3))
    assert found is not None
    assert np.allclose((found[0].T @ found[0] / 400).numpy(), np.eye(6), atol=1e-2)
    assert whitening.freedom(weight) == pytest.approx(3 * 6, rel=1e-3)
    assert whitening.read(weight, read, torch.zeros(1, 399, 3)) is None
    assert whitening.read(Weight("v", (3, 6), "F32", "linear", "other"), read, torch.zeros(1, 400, 3)) is None


def test_directions_that_nothing_is_read_in_do_not_count() -> None:
    inputs = np.random.default_rng(0).standard_normal((400, 6)) * [1, 1, 1, 1, 0, 0]
    weight = Weight("w", (3, 6), "F32", "linear", "s")
    assert Whitening(statistics_of(inputs), [weight], 1).freedom(weight) == pytest.approx(3 * 4, rel=1e-3)


def test_a_matrix_without_a_metric_reads_what_it_reads() -> None:
    weight = Weight("w", (3, 6), "F32", "linear")
    whitening = Whitening(statistics_of(np.eye(6)), [weight], 1)
    read = torch.randn(2, 5, 6)
    found = whitening.read(weight, read, torch.zeros(2, 5, 3))
    assert found is not None
    assert torch.equal(found, read)
    assert whitening.freedom(weight) == 18


@pytest.mark.parametrize(("tokens", "m", "n"), [(4, 40, 30), (50, 4, 3)])
def test_energy_is_that_of_the_product(tokens: int, m: int, n: int) -> None:
    gradients, inputs = torch.randn(3, tokens, m), torch.randn(3, tokens, n)
    expected = float((gradients.transpose(1, 2) @ inputs).double().square().sum())
    assert energy(gradients, inputs) == pytest.approx(expected, rel=1e-5)
