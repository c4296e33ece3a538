"""Side information: adaptive integers against a slow decoder."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueaxis import _core
from twins import SideTwin

INTEGERS = st.one_of(st.integers(-3, 3), st.integers(-(1 << 30) + 1, (1 << 30) - 1))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(INTEGERS, st.integers(0, 255)), max_size=200))
def test_integers_survive_and_equal_twin(pairs: list[tuple[int, int]]) -> None:
    values = np.array([value for value, _ in pairs], np.int32)
    contexts = np.array([context for _, context in pairs], np.uint8)
    data = _core.encode_integers(values, contexts)
    np.testing.assert_array_equal(_core.decode_integers(data, contexts), values)
    twin = SideTwin(data)
    assert [twin.integer(int(context)) for context in contexts] == values.tolist()
    with pytest.raises(ValueError):
        _core.decode_integers(data + b"\1" * 5, contexts)  # up to four may stand where zeros were trimmed


def test_side_information_is_close_to_adaptive_ideal() -> None:
    """Against a geometric source of unknown parameter, whose adaptive ideal costs ½ log₂ n more than its entropy."""
    rng = np.random.default_rng(0)
    count = 20000
    for p in (0.2, 0.5, 0.8):
        values = (rng.geometric(p, count) - 1).astype(np.int32) * rng.choice([-1, 1], count).astype(np.int32)
        magnitudes = np.abs(values)
        likelihood = np.log2(p) + magnitudes * np.log2(1 - p)
        ideal_bits = -likelihood.sum() + (magnitudes > 0).sum() + 0.5 * np.log2(count)
        data = _core.encode_integers(values, np.zeros(count, np.uint8))
        assert len(data) * 8 <= 1.03 * ideal_bits + 40


def test_side_information_flush_is_short() -> None:
    assert _core.encode_integers(np.zeros(0, np.int32), np.zeros(0, np.uint8)) == b""
    assert _core.encode_integers(np.zeros(4, np.int32), np.zeros(4, np.uint8)) == b""


@pytest.mark.parametrize("value", [1 << 30, -(1 << 30), -(1 << 31), (1 << 31) - 1])
def test_side_information_range_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="30"):
        _core.encode_integers(np.array([value], np.int32), np.zeros(1, np.uint8))


def test_damaged_side_information_never_crashes() -> None:
    rng = np.random.default_rng(1)
    values, contexts = rng.integers(-1000, 1000, 300).astype(np.int32), rng.integers(0, 4, 300).astype(np.uint8)
    data = _core.encode_integers(values, contexts)
    for trial in range(2000):
        damaged = bytearray(data)
        if trial % 2:
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        else:
            del damaged[rng.integers(len(damaged)) :]
        try:
            found = _core.decode_integers(bytes(damaged), contexts)
        except ValueError:
            continue
        assert (found != values).any()
    for length in range(64):
        for byte in (b"\0", b"\xff"):
            try:
                assert _core.decode_integers(byte * length, contexts).shape == (300,)
            except ValueError:
                continue
    with pytest.raises(ValueError, match="context"):
        _core.encode_integers(values, contexts[:-1])
