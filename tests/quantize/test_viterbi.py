"""Trellis-coded quantization: every instruction set finds the path of the slow twin; more states quantize better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trueaxis import _core
from trueaxis.entropy.model import first_tables
from trueaxis.types import Array
from twins import CODES, viterbi

TABLES = first_tables()
BITS = TABLES.code_bits()
BITS[1] *= np.float32(1.1)  # the two quantizers differ


def path(targets: Array, classes: Array, rate_weight: float, trellis: int, bits: Array = BITS) -> Array:
    offsets = np.zeros((2, bits.shape[1], 2), np.float32)
    return _core.viterbi(targets[None], classes[None], bits, offsets, TABLES.escape_orders, rate_weight, trellis)[0]


@pytest.mark.parametrize("trellis", range(len(CODES)))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 32), st.integers(0, 40), st.floats(0, 3), st.floats(-2, 9))
def test_path_equals_the_twin(
    instruction_set: str, trellis: int, seed: int, rows: int, rate_weight: float, octaves: float
) -> None:
    """Short columns of any scale, up to targets far beyond the alphabet of classes that do not fit them."""
    rng = np.random.default_rng(seed)
    targets = (rng.laplace(size=rows) * 2.0**octaves).astype(np.float32)
    classes = rng.integers(0, 48, rows).astype(np.uint8)
    expected = viterbi(targets, classes, BITS, TABLES.escape_orders, rate_weight, trellis)
    np.testing.assert_array_equal(path(targets, classes, rate_weight, trellis), expected)


@pytest.mark.parametrize("trellis", [2, 5])
def test_long_columns_equal_the_twin(instruction_set: str, trellis: int) -> None:
    """Path costs are renormalized every 256 rows."""
    rng = np.random.default_rng(trellis)
    targets = (rng.normal(size=600) * 3).astype(np.float32)
    classes = rng.integers(14, 26, 600).astype(np.uint8)
    expected = viterbi(targets, classes, BITS, TABLES.escape_orders, 0.3, trellis)
    np.testing.assert_array_equal(path(targets, classes, 0.3, trellis), expected)


@pytest.mark.parametrize("trellis", range(1, len(CODES)))
def test_equal_paths_break_alike_everywhere(instruction_set: str, trellis: int) -> None:
    """Targets half way between points and a rate of nothing make ties in every row."""
    targets = np.resize(np.array([1.0, -0.5, 2.0, 1.5, 0.0, -3.0, 0.5], np.float32), 90)
    classes = np.full(90, 20, np.uint8)
    expected = viterbi(targets, classes, BITS, TABLES.escape_orders, 0.0, trellis)
    np.testing.assert_array_equal(path(targets, classes, 0.0, trellis), expected)


@pytest.mark.parametrize("trellis", [0, 5])
def test_infinite_targets_stay_within_range(instruction_set: str, trellis: int) -> None:
    targets = np.array([np.inf, -np.inf, np.nan, 3e38, 1e9], np.float32)
    found = path(targets, np.zeros(5, np.uint8), 0.1, trellis)
    assert (np.abs(found.astype(np.int64)) <= 1 << 24).all()


def test_more_states_lose_less() -> None:
    """Error² of a uniform source without a rate: towards 1.53 dB below the scalar quantizer's 1/3."""
    targets = np.random.default_rng(0).uniform(-400, 400, 1 << 16).astype(np.float32)
    losses = []
    for trellis in range(len(CODES)):
        k = path(targets, np.full(targets.size, 47, np.uint8), 0.0, trellis)
        state, error = 0, 0.0
        h0, h1 = CODES[trellis]
        for x, index in zip(targets.tolist(), k.tolist(), strict=True):
            q = state & 1
            point = 2 * index - (q * ((index > 0) - (index < 0)))
            error += (x - point) ** 2
            state = (state >> 1) ^ (h1 >> 1 if index % 2 else 0) ^ (h0 >> 1 if q else 0)
        losses.append(error / targets.size)
    gains_db = 10 * np.log10((1 / 3) / np.array(losses))
    assert gains_db[0] == pytest.approx(0, abs=0.05)
    assert (np.diff(gains_db[1:]) > 0.02).all()
    assert gains_db[1:] == pytest.approx([0.99, 1.09, 1.16, 1.22, 1.26, 1.31, 1.34], abs=0.04)


def test_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="sse9"):
        _core.use_instruction_set("sse9")
