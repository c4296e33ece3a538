"""Stored factors of a rotation: against matrices, to bytes and back, in any order of bounds, and damaged."""

from __future__ import annotations

import numpy as np
import pytest

from trueaxis.runtime.orthogonal import (
    COLUMNS,
    ROWS,
    Axis,
    Hadamard,
    Mirrors,
    Orthogonal,
    Planes,
    parse_orthogonal,
    sparse,
)
from trueaxis.runtime.transforms import decoded, parse_transform, undone
from trueaxis.types import Array


def planes(axis: Axis, count: int = 40) -> Planes:
    rng = np.random.default_rng(1)
    pairs = [sorted(rng.choice(axis.size, 2, replace=False).tolist()) for _ in range(count)]
    return sparse(axis, 7, [(i, j, int(rng.integers(-128, 129))) for i, j in pairs])


def mirrors(axis: Axis) -> Mirrors:
    return Mirrors(axis, np.random.default_rng(2).integers(-100, 101, (3, axis.size)))


def hadamard(axis: Axis) -> Hadamard:
    return Hadamard(axis, np.random.default_rng(3).integers(0, 2, axis.size).astype(bool))


def matrix_of(found: Orthogonal) -> Array:
    """x′ = T x on the axis alone, from the definition."""
    size = found.axis.size
    turn = np.eye(size)
    if isinstance(found, Planes):
        for i, j, code in zip(found.first, found.second, found.codes, strict=True):
            angle, one = 2 * np.arctan(code / 2.0**found.bits), np.eye(size)
            one[[i, j], [i, j]], one[i, j], one[j, i] = np.cos(angle), -np.sin(angle), np.sin(angle)
            turn = one @ turn
    elif isinstance(found, Mirrors):
        for vector in found.vectors:
            v = vector / np.linalg.norm(vector)
            turn = (np.eye(size) - 2 * np.outer(v, v)) @ turn
    else:
        bits = np.arange(size)[:, None] & np.arange(size)
        signs = np.array([[bin(one).count("1") % 2 for one in row] for row in bits.tolist()])
        turn = np.where(found.negative, -1, 1)[:, None] * (1 - 2 * signs) / np.sqrt(size)
    return turn


EXTENT = 48
AXES = [Axis(COLUMNS, 16), Axis(COLUMNS, 8, 3), Axis(ROWS, 16, 3), Axis(ROWS, 4), Axis(COLUMNS, 2, 24)]
every = pytest.mark.parametrize("make", [planes, mirrors, hadamard])


@every
@pytest.mark.parametrize("axis", AXES)
def test_against_the_matrix(make: type, axis: Axis) -> None:
    found: Orthogonal = make(axis)
    outer = EXTENT // (axis.size * axis.inner)
    whole = np.kron(np.eye(outer), np.kron(matrix_of(found), np.eye(axis.inner)))
    values = np.random.default_rng(4).normal(size=(EXTENT, EXTENT))
    expected = values @ whole.T if axis.side == COLUMNS else whole @ values
    assert np.allclose(found.decoded(values), expected, atol=1e-12)
    assert np.allclose(found.undone(expected), values, atol=1e-12)
    single = found.decoded(values.astype(np.float32))
    assert single.dtype == np.float32
    assert single.flags.c_contiguous
    assert np.allclose(single, expected, atol=1e-5)


@every
@pytest.mark.parametrize("axis", AXES)
def test_bytes_come_back(make: type, axis: Axis) -> None:
    found: Orthogonal = make(axis)
    again = parse_transform(found.payload, EXTENT, EXTENT)
    assert again is not None
    assert again.payload == found.payload
    values = np.random.default_rng(5).normal(size=(EXTENT, EXTENT)).astype(np.float32)
    assert np.array_equal(decoded(values, [again]), decoded(values, [found]))
    assert np.allclose(undone(decoded(values, [again, found]), [again, found]), values, atol=1e-5)


def test_many_rows_are_worked_on_in_parts() -> None:
    found, rng = planes(Axis(COLUMNS, 1024)), np.random.default_rng(6)
    values = rng.normal(size=(700, 1024)).astype(np.float32)
    whole = found.decoded(values)
    assert np.array_equal(whole[300:301], found.decoded(values[300:301]))


def test_order_that_takes_fewest_bytes_does_the_same() -> None:
    """Planes with a coordinate in common keep their order."""
    rng = np.random.default_rng(7)
    listed = [(*sorted(rng.choice(9, 2, replace=False).tolist()), int(rng.integers(-16, 17))) for _ in range(60)]
    first, second, codes = np.array(listed).T
    given = Planes(Axis(COLUMNS, 9), 4, first, second, codes)
    values = rng.normal(size=(5, 9))
    assert np.array_equal(sparse(given.axis, 4, listed).decoded(values), given.decoded(values))
    assert len(sparse(given.axis, 4, listed).payload) < len(given.payload)


def test_every_pair_of_a_small_axis_takes_hardly_more_than_its_angles() -> None:
    first, second = np.triu_indices(32, 1)
    codes = np.random.default_rng(8).integers(-128, 128, first.size)
    size = len(Planes(Axis(COLUMNS, 32), 7, first, second, codes).payload)
    assert size < first.size * 9.2 / 8


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (b"\3", "too early"),
        (b"\3\1\x10", "data ends"),
        (b"\3\0\x10\1\7\1", "on side 0"),
        (b"\3\3\x10\1\7\1", "on side 3"),
        (b"\3\1\1\1\7\1", "extent 1"),
        (b"\3\1\x10\0\7\1", "extent 16"),
        (b"\3\1\x07\1\7\1", "does not divide 48"),
        (b"\3\1\x10\x06\7\1", "does not divide 48"),
        (b"\3\1\x10\1\0\1abcd", "planes of 0 bits"),
        (b"\3\1\x10\1\x15\1abcd", "planes of 21 bits"),
        (b"\3\1\x10\1\7\0abcd", "0 planes"),
        (b"\3\1\x10\1\7\x09abcd", "9 planes"),
        (b"\4\1\x10\1\0", "0 vectors"),
        (b"\4\1\x10\1\3ab", "3 vectors"),
        (b"\5\1\x10\1\0", "8 signs"),
        (b"\5\1\x10\1\0\0\0", "24 signs"),
        (b"\5\1\x04\1\x10", "8 signs"),
        (b"\5\1\x06\1\0", "Hadamard of 6"),
    ],
)
def test_damaged_payloads_are_refused(payload: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_orthogonal(payload, EXTENT, EXTENT)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Planes(Axis(COLUMNS, 16), 3, np.array([1]), np.array([16]), np.array([1])), "outside 16"),
        (Planes(Axis(COLUMNS, 16), 3, np.array([2]), np.array([1]), np.array([1])), "outside 16"),
        (Planes(Axis(COLUMNS, 16), 3, np.array([-1]), np.array([1]), np.array([1])), "outside 16"),
        (Planes(Axis(COLUMNS, 16), 3, np.array([0]), np.array([1]), np.array([9])), "angle"),
        (Mirrors(Axis(COLUMNS, 2), np.array([[500, 300], [0, 0]])), "zero or too long"),
        (Mirrors(Axis(COLUMNS, 2), np.array([[32769, 0]])), "zero or too long"),
    ],
)
def test_numbers_out_of_range_are_refused(found: Orthogonal, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_orthogonal(found.payload, EXTENT, EXTENT)


def test_largest_numbers_are_taken() -> None:
    for found in (
        Planes(Axis(ROWS, 48), 20, np.array([46]), np.array([47]), np.array([-(1 << 20)])),
        Mirrors(Axis(ROWS, 2), np.array([[32768, -32768]])),
    ):
        again = parse_orthogonal(found.payload, EXTENT, EXTENT)
        assert np.allclose(again.undone(again.decoded(np.eye(EXTENT))), np.eye(EXTENT))
