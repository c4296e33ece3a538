"""LEB128 numbers: round trip, the longest, and damage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueaxis.entropy.varint import LONGEST, pack_varint, unpack_varint

NUMBERS = st.integers(0, (1 << 63) - 1)


@given(st.lists(NUMBERS, min_size=1, max_size=5), st.binary(max_size=3))
def test_round_trip_of_neighbours(values: list[int], rest: bytes) -> None:
    data, position = b"".join(map(pack_varint, values)) + rest, 0
    for value in values:
        found, position = unpack_varint(data, position)
        assert found == value
    assert position == len(data) - len(rest)


@pytest.mark.parametrize("bits", range(1, 64))
def test_seven_bits_per_byte(bits: int) -> None:
    assert len(pack_varint((1 << bits) - 1)) == -(-bits // 7) <= LONGEST


@pytest.mark.parametrize("value", [-1, 1 << 63])
def test_numbers_beyond_63_bits_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="2\\^63"):
        pack_varint(value)


@given(NUMBERS)
def test_truncation_is_refused(value: int) -> None:
    data = pack_varint(value)
    for length in range(len(data)):
        with pytest.raises(ValueError, match="ends inside"):
            unpack_varint(data[:length], 0)


def test_endless_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="longer than 63 bits"):
        unpack_varint(b"\x80" * 100, 0)
