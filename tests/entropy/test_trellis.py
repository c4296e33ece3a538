"""Reconstruction against float32 NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from trueaxis import _core
from twins import CLASSES, CODES, classes_of, make_segment, quantizers


@pytest.mark.parametrize("trellis", range(len(CODES)))
def test_reconstruction_equals_float32_twin(trellis: int) -> None:
    rng = np.random.default_rng(trellis)
    segment = make_segment(rng, 11, 40, trellis, scale=20)
    k, row_codes, column_codes, shift, _ = segment
    offsets = rng.integers(-64, 64, (2, CLASSES, 2)).astype(np.int8)
    column_steps = rng.lognormal(size=11).astype(np.float32)
    row_steps = rng.lognormal(size=(40, 3)).astype(np.float32)
    groups = rng.integers(0, 3, 11).astype(np.int32)
    found = _core.reconstruct(k, row_codes, column_codes, shift, trellis, offsets, column_steps, row_steps, groups)
    q, sign = quantizers(k, trellis), np.sign(k)
    position = (2 * k - q * sign).astype(np.float32)
    offset = offsets[q, classes_of(segment), np.clip(np.abs(k), 1, 2) - 1].astype(np.float32) / np.float32(64)
    value = (position + sign.astype(np.float32) * offset) * (column_steps[:, None] * row_steps[:, groups].T)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, value)


def test_reconstruction_checks_groups() -> None:
    k, row_codes, column_codes, shift, trellis = make_segment(np.random.default_rng(0), 2, 3, 0)
    offsets, column_steps, row_steps = np.zeros((2, 4, 2), np.int8), np.ones(2, np.float32), np.ones((3, 1), np.float32)
    for groups in ([0, 1], [-1, 0]):
        with pytest.raises(ValueError, match="group"):
            _core.reconstruct(
                k, row_codes, column_codes, shift, trellis, offsets, column_steps, row_steps, np.array(groups, np.int32)
            )
