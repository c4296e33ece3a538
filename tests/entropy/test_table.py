"""Frequency tables: complete, nearly optimal, and checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueaxis import _core
from trueaxis.types import Array


def test_tables_are_checked() -> None:
    orders = np.zeros(1, np.uint8)
    good = np.zeros((2, 1, 9), np.uint16)
    good[0, 0, [0, 1]] = 4094, 1
    _core.TableSet(good, orders)
    for cell, value in (((0, 0, 0), 4095), ((0, 0, 0), 4096), ((1, 0, 3), 1)):
        bad = good.copy()
        bad[cell] = value
        with pytest.raises(ValueError):
            _core.TableSet(bad, orders)
    certain = np.zeros((2, 1, 9), np.uint16)
    certain[0, 0, 0] = 4096
    for frequencies, escape_orders in (
        (certain, orders),
        (good[:1], orders),
        (good[:, :, :8], orders),
        (good, np.zeros(2, np.uint8)),
        (good, np.full(1, 25, np.uint8)),
    ):
        with pytest.raises(ValueError):
            _core.TableSet(np.ascontiguousarray(frequencies), escape_orders)


def length_bits(counts: Array, frequencies: Array) -> Array:
    """Code length of counts [..., K + 2] under frequencies; inf where a counted symbol has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.where(counts > 0, counts * (12 - np.log2(frequencies)), 0.0)
    return lengths.sum(axis=-1)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([7, 15, 31, 63]), st.data())
def test_normalized_tables_are_complete(largest: int, data: st.DataObject) -> None:
    count = st.one_of(st.just(0), st.integers(1, 5), st.integers(0, 1 << 40))
    counts = np.array([data.draw(st.lists(count, min_size=largest + 2, max_size=largest + 2))], np.uint64)
    row = _core.normalize_counts(counts)[0].astype(int)
    if not counts.any():
        assert not row.any()
        return
    assert row[0] + 2 * row[1:-1].sum() + row[-1] == 4096
    assert row[0] >= 1 and row.max() <= 4095
    assert (row[counts[0] > 0] >= 1).all()
    assert not row[1:-1][counts[0, 1:-1] == 0].any()


def test_only_zeros_leave_the_escape_one_slot() -> None:
    counts = np.zeros((1, 9), np.uint64)
    counts[0, 0] = 1000
    assert _core.normalize_counts(counts)[0].tolist() == [4095, 0, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("seed", range(12))
def test_normalized_tables_are_nearly_optimal(seed: int) -> None:
    """Against every table of three symbols: zero, one pair, and another pair or the escape."""
    rng = np.random.default_rng(seed)
    other = 8 if seed % 2 else 2
    counts = np.zeros(9, np.uint64)
    counts[[0, 1, other]] = np.maximum(1, 10.0 ** rng.uniform(0, 6, 3)).astype(np.uint64)
    pair, second = np.meshgrid(np.arange(1, 2048), np.arange(1, 4096 if other == 8 else 2048), indexing="ij")
    zero = 4096 - 2 * pair - second * (1 if other == 8 else 2)
    candidates = np.stack([zero, pair, second], axis=-1)[zero >= 1]
    best = length_bits(counts[[0, 1, other]].astype(float), candidates).min()
    found = length_bits(counts.astype(float), _core.normalize_counts(counts[None])[0].astype(float))
    assert best - 1e-6 <= found <= best + 1e-5 * counts.sum() + 1e-6
