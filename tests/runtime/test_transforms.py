"""What leads back from the coordinates of the file: reflections, multiples of the identity, exact products."""

from __future__ import annotations

import numpy as np
import pytest

from trueaxis.runtime.transforms import (
    COLUMNS,
    ROWS,
    Diagonal,
    Reflection,
    decoded,
    exact_product,
    parse_transform,
    undone,
)
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
    reflection = Reflection(sides)
    assert np.allclose(reflection.decoded(values), left @ values @ right)
    assert np.allclose(undone(reflection.decoded(values), [reflection]), values)
    single = values.astype(np.float32)
    found = reflection.decoded(single)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert np.allclose(found, left @ single @ right, atol=1e-6)


def test_the_last_axis_is_that_of_the_mean() -> None:
    last = np.eye(16)[-1:]
    assert np.allclose(Reflection(COLUMNS).decoded(last), -0.25)


def test_no_sides_change_nothing() -> None:
    values = np.ones((2, 3), np.float32)
    assert Reflection(0).decoded(values) is values
    assert undone(values, ()) is decoded(values, ()) is values


def test_the_last_of_several_is_decoded_first() -> None:
    values = np.random.default_rng(2).normal(size=(4, 4)).astype(np.float32)
    steps = [Reflection(COLUMNS), Diagonal(2.0)]
    expected = (values + 2 * np.eye(4)) @ householder(4)
    assert np.allclose(decoded(values, steps), expected, atol=1e-6)
    assert np.allclose(undone(decoded(values, steps), steps), values, atol=1e-6)
    assert decoded(values, steps).dtype == np.float32


@pytest.mark.parametrize("transform", [Reflection(1), Reflection(3), Diagonal(1.5), Diagonal(-0.0)])
def test_payloads_come_back(transform: Reflection | Diagonal) -> None:
    assert parse_transform(transform.payload, 5, 5) == transform


@pytest.mark.parametrize(
    "payload", [b"\1", b"\1\0", b"\1\4", b"\1\1\1", b"\2", b"\2\0\0\0", b"\2\0\0\xc0\x7f", b"\2\0\0\x80\x7f"]
)
def test_damaged_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"sides|finite"):
        parse_transform(payload, 5, 5)


def test_a_diagonal_needs_a_square_and_unknown_kinds_are_left_to_the_caller() -> None:
    with pytest.raises(ValueError, match=r"not \[5, 4\]"):
        parse_transform(Diagonal(1.0).payload, 5, 4)
    assert parse_transform(b"\xc8rest", 5, 5) is None
    assert parse_transform(b"", 5, 5) is None


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (300, 64, 64)])
def test_products_are_exact_sums_of_integers(shape: tuple[int, int, int]) -> None:
    """The same sums in Python's own integers, whatever the order of terms and the scale of rows."""
    rows, inner, columns = shape
    rng = np.random.default_rng(3)
    left = (rng.normal(size=(rows, inner)) * 2.0 ** rng.integers(-30, 30, (rows, 1))).astype(np.float32)
    right = rng.normal(size=(inner, columns)).astype(np.float32)
    right[:, 0] = 0
    found = exact_product(left, right)
    assert found.dtype == np.float32
    wide = left.astype(np.float64) @ right
    assert np.allclose(found, wide, rtol=0, atol=2.0**-17 * np.abs(wide).max(axis=1, keepdims=True))
    order = rng.permutation(inner)
    assert np.array_equal(exact_product(left[:, order], right[order]), found)
    if rows < 10:
        for i, j in np.ndindex(rows, columns):
            a, b = (_integers(part) for part in (left[i], right[:, j]))
            total = sum(x * y for x, y in zip(a[0], b[0], strict=True))
            assert found[i, j] == np.float32(np.ldexp(float(total), a[1] + b[1]))


def _integers(values: Array) -> tuple[list[int], int]:
    exponent = int(np.frexp(float(np.abs(values).max()))[1]) - 19
    return [round(float(value) / 2.0**exponent) for value in values], exponent
