"""Tensors kept bit for bit: every bit pattern comes back, the shortest way is taken, and damage is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueaxis.entropy.varint import pack_varint
from trueaxis.runtime.planes import CODED, CONSTANT, RAW, pack_planes, unpack_planes
from trueaxis.types import Array


def entries_of(values: Array) -> Array:
    return values.view(np.uint8).reshape(len(values), -1)


@given(st.sampled_from([2, 4, 8]), st.integers(0, 40), st.sampled_from([1, 2, 256]), st.integers(0, 1 << 32))
def test_every_bit_comes_back(width: int, count: int, symbols: int, seed: int) -> None:
    entries = np.random.default_rng(seed).integers(0, symbols, (count, width)).astype(np.uint8)
    payload = pack_planes(entries)
    assert np.array_equal(unpack_planes(payload, count, width), entries)
    assert len(payload) <= 1 + count * width


def test_the_shortest_way_is_taken() -> None:
    norm = (1 + 0.2 * np.random.default_rng(0).standard_normal(256)).astype("<f4")
    assert pack_planes(entries_of(np.ones(3, "<f4"))).hex() == "010000803f"
    assert pack_planes(entries_of(np.full(1, 1.5, "<f8"))).hex() == "00000000000000f83f"
    whole = pack_planes(entries_of(norm))
    assert whole[0] == CODED
    assert len(whole) < 0.78 * norm.nbytes
    short = pack_planes(entries_of((norm.view("<u4") & 0xFFFF0000).view("<f4")))
    assert len(short) == len(whole) - norm.nbytes // 2
    assert pack_planes(np.random.default_rng(0).integers(0, 256, (50, 2)).astype(np.uint8))[0] == RAW


@pytest.mark.parametrize("sign", [1, -1])
def test_signs_that_agree_cost_little(sign: int) -> None:
    norm = (1 + 0.2 * np.random.default_rng(0).standard_normal(256)).astype("<f4")
    both = norm * np.where(np.arange(256) % 3, 1, -1).astype("<f4")
    lengths = [len(pack_planes(entries_of(values))) for values in (sign * norm, both)]
    assert lengths[0] + 20 < lengths[1] < lengths[0] + 256 // 8 + 20


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\4" + bytes(8), b"\3" + bytes(8), b"\3\0\1\x28",
        bytes([RAW]) + bytes(7), bytes([CONSTANT]) + bytes(8), bytes([CODED]),
        bytes([CODED]) + pack_varint(9) + bytes(8), bytes([CODED]) + pack_varint(1) + b"\0" + bytes(3),
        bytes([CODED]) + pack_varint(4) + b"\xff" * 4,
    ],
)  # fmt: skip
def test_damaged_payloads_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"planes|data ends|side information|out of range|bytes are claimed"):
        unpack_planes(payload, 2, 4)


def test_few_bytes_do_not_stand_for_many_entries() -> None:
    for mode in (CODED, CONSTANT):
        payload = bytes([mode]) + (pack_varint(1) + b"\0" if mode == CODED else bytes(4))
        with pytest.raises(ValueError, match=r"planes record|too few"):
            unpack_planes(payload, 1 << 23, 4)
    with pytest.raises(ValueError, match="1 bytes are too few"):
        unpack_planes(bytes([CODED]) + pack_varint(1) + b"\0", 1 << 20, 4)
