"""The reflection that leads back from coordinates without a mean."""

from __future__ import annotations

import numpy as np
import pytest

from trueaxis.runtime.transforms import COLUMNS, ROWS, reflected, reflection, undone
from trueaxis.types import Array


def householder(size: int) -> Array:
    v = np.full(size, 1 / np.sqrt(size))
    v[-1] += 1
    return np.eye(size) - 2 * np.outer(v, v) / (v @ v)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (6, 9), (40, 3)])
@pytest.mark.parametrize("sides", [COLUMNS, ROWS, COLUMNS | ROWS])
def test_against_the_matrix(shape: tuple[int, int], sides: int) -> None:
    values = np.random.default_rng(1).normal(size=shape)
    right = householder(shape[1]) if sides & COLUMNS else np.eye(shape[1])
    left = householder(shape[0]) if sides & ROWS else np.eye(shape[0])
    assert np.allclose(reflected(values, sides), left @ values @ right)
    assert np.allclose(undone(reflected(values, sides), [reflection(sides)]), values)
    single = values.astype(np.float32)
    found = reflected(single, sides)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.allclose(found, left @ single @ right, atol=1e-6)


def test_the_last_axis_is_that_of_the_mean() -> None:
    last = np.eye(16)[-1:]
    assert np.allclose(reflected(last, COLUMNS), -0.25)


def test_no_sides_change_nothing() -> None:
    values = np.ones((2, 3), np.float32)
    assert reflected(values, 0) is values
    assert undone(values, ()) is values
