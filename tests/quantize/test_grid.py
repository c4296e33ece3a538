"""Steps as integers: exact on every machine, and back."""

from __future__ import annotations

from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueaxis.quantize.grid import CODE_LIMIT, MANTISSAS, OCTAVE, column_groups, nearest_codes, resolution_for, steps
from trueaxis.types import FormatError, Grid

RESOLUTIONS = [1, 2, 4, 8, 16, 32]


def test_mantissas_are_correctly_rounded() -> None:
    """|M[i] − 2^(i/32)| is at most half a unit of the last place, in 50-digit arithmetic."""
    getcontext().prec = 50
    for i, mantissa in enumerate(MANTISSAS.view(np.float32)):
        exact = Decimal(2) ** (Decimal(i) / 32)
        assert abs(Decimal(float(mantissa)) - exact) <= Decimal(2) ** -24


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_steps_are_powers_of_two(resolution: int) -> None:
    limit = CODE_LIMIT // (OCTAVE // resolution)
    codes = np.arange(-limit, limit + 1)
    found = steps(codes, resolution)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, 2.0 ** (codes / resolution), rtol=2**-24)
    assert (found[resolution:] == 2 * found[:-resolution]).all()
    np.testing.assert_array_equal(nearest_codes(found, resolution), codes)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_codes_out_of_range_are_refused(resolution: int) -> None:
    for sign in (-1, 1):
        with pytest.raises(FormatError, match="out of range"):
            steps(np.array([[0], [sign * (CODE_LIMIT // (OCTAVE // resolution) + 1)]]), resolution)
    assert steps(np.zeros((0, 3), int), resolution).shape == (0, 3)


@given(st.floats(1e-37, 1e37), st.sampled_from(RESOLUTIONS))
def test_nearest_code_is_nearest_in_ratio(value: float, resolution: int) -> None:
    code = nearest_codes(np.array([value]), resolution)
    assert abs(np.log2(value) - code[0] / resolution) <= 0.5 / resolution + 1e-9


@pytest.mark.parametrize("value", [0.0, 1e-300, 1e300])
def test_extreme_steps_are_clipped_to_what_a_file_can_hold(value: float) -> None:
    assert np.isfinite(steps(nearest_codes(np.array([value]), 8), 8)).all()


def test_groups_follow_the_original_columns() -> None:
    grid = Grid(np.zeros(7, np.int32), np.zeros((2, 3), np.int32), 8, 3)
    assert column_groups(grid).tolist() == [0, 0, 0, 1, 1, 1, 2]


def test_longer_columns_pay_for_finer_steps() -> None:
    found = [resolution_for(samples) for samples in (1, 64, 1 << 10, 1 << 20)]
    assert found == sorted(found) and set(found) <= set(RESOLUTIONS)
