"""Planes of bits: every bit comes back on every instruction set, structure earns bytes, damage is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueaxis import _core
from trueaxis.lossless.tensor import pack_tensor
from trueaxis.lossless.words import words_of
from trueaxis.runtime.bitplanes import Kind, Residue, ScaleCodes, pack_bitplanes, unpack_bitplanes
from trueaxis.types import Array

UNSIGNED = {"BF16": "<u2", "F16": "<u2", "F32": "<u4", "F64": "<u8", "U8": "u1", "I64": "<u8"}


def entries_of(values: Array) -> Array:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(values.size, values.itemsize)


def round_trip(values: Array, dtype: str, base: Array | None = None) -> bytes:
    """The payload, after it gave back every bit."""
    entries, theirs = entries_of(values), None if base is None else entries_of(base)
    payload = pack_tensor(entries, values.shape, dtype, theirs)
    found = unpack_bitplanes(payload, values.size, values.itemsize)
    assert pack_bitplanes(found) == payload
    decoded = found.entries(values.size, values.itemsize, None if theirs is None else theirs.reshape(-1))
    assert np.array_equal(decoded, entries.reshape(-1))
    return payload


def bfloat16(values: Array) -> Array:
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2")


def gaussian(rows: int, columns: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype("<f4")


def test_noise_is_kept_as_it_is() -> None:
    noise = np.random.default_rng(3).integers(0, 256, 8 * 200 * 200, np.uint8).view("<f8").reshape(200, 200)
    assert len(round_trip(noise, "F64")) < 1.001 * noise.nbytes


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_pattern_of_sixteen_bits(dtype: str, instruction_set: str) -> None:
    """NaN payloads, both zeros, denormals and infinities among them."""
    patterns = np.random.default_rng(1).permutation(np.arange(1 << 18, dtype="<u4")).astype("<u2").reshape(512, 512)
    round_trip(patterns, dtype)
    round_trip(patterns, dtype, np.random.default_rng(2).permutation(patterns.reshape(-1)).reshape(512, 512))


@given(
    st.sampled_from(sorted(UNSIGNED)), st.sampled_from([(1,), (7,), (3, 5), (1, 40), (40, 1), (64, 3, 9), ()]),
    st.integers(1, 64), st.booleans(), st.integers(0, 1 << 32),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_any_bits_of_any_shape(dtype: str, shape: tuple[int, ...], bits: int, beside: bool, seed: int) -> None:
    rng, kind = np.random.default_rng(seed), np.dtype(UNSIGNED[dtype])
    bits = min(bits, 8 * kind.itemsize)
    values, base = (
        (rng.integers(0, 1 << 63, shape, np.uint64) >> np.uint64(64 - bits) << np.uint64(1)).astype(kind) for _ in "ab"
    )
    round_trip(values, dtype, base if beside else None)


@pytest.mark.parametrize("count", [1 << 17, (1 << 17) + 1, (1 << 17) + 4095, (1 << 17) + 64])
def test_sixty_four_lanes_on_every_instruction_set(count: int, instruction_set: str) -> None:
    values = bfloat16(gaussian(1, count)[0])
    payload = round_trip(values, "BF16")
    plane = unpack_bitplanes(payload, count, 2).planes[0]
    assert (plane.kind, plane.lanes_log2) == (Kind.CODED, 6)
    near = (values + np.random.default_rng(1).integers(0, 2, count)).astype("<u2")
    assert len(round_trip(near, "BF16", values)) < 0.1 * near.nbytes


def test_a_gaussian_takes_what_its_entropy_says() -> None:
    values = bfloat16(gaussian(512, 512))
    words = words_of(values.astype("<u2"), Residue.OWN).reshape(-1)
    counts = np.bincount(words >> 5)
    entropy = -float((counts * np.log2(np.maximum(counts, 1) / counts.sum())).sum()) / 8 + values.size * 5 / 8
    assert entropy < len(round_trip(values, "BF16")) < 1.004 * entropy


def test_scales_of_rows_and_columns_are_found() -> None:
    rng = np.random.default_rng(3)
    plain = gaussian(384, 384)
    rows, columns = np.exp2(1.5 * rng.standard_normal((384, 1))), np.exp2(1.5 * rng.standard_normal(384))
    for scale, gain in ((rows, 0.9), (columns, 0.9), (rows * columns, 0.9)):
        values = bfloat16(plain * scale)
        payload = round_trip(values, "BF16")
        assert isinstance(unpack_bitplanes(payload, values.size, 2).contexts, ScaleCodes)
        # what is left to pay is the noise itself, the codes, and where octaves lie
        paid = (len(payload) - len(round_trip(bfloat16(plain), "BF16"))) * 8 / values.size
        blind = (_blind_bytes(values) - _blind_bytes(bfloat16(plain))) * 8 / values.size
        assert paid < (1 - gain * 0.75) * blind


def _blind_bytes(values: Array) -> float:
    """Entropy of exponents and two bits of mantissas, without contexts, and the rest."""
    counts = np.bincount(words_of(values, Residue.OWN).reshape(-1) >> 6)
    counts = counts[counts > 0]
    return -float((counts * np.log2(counts / counts.sum())).sum()) / 8 + values.size * 6 / 8


def test_beside_a_base_small_moves_cost_little() -> None:
    base = gaussian(256, 256)
    moved = base + 0.002 * gaussian(256, 256, 1)
    alone = len(round_trip(bfloat16(moved), "BF16"))
    assert len(round_trip(bfloat16(moved), "BF16", bfloat16(base))) < 0.55 * alone
    assert len(round_trip(moved, "F32", base)) < 0.8 * len(round_trip(moved, "F32"))
    assert len(round_trip(bfloat16(base), "BF16", bfloat16(base))) < 16


def test_a_base_that_has_nothing_to_say_is_left_out() -> None:
    payload = round_trip(bfloat16(gaussian(128, 128)), "BF16", bfloat16(1e-6 * gaussian(128, 128, 1)))
    assert unpack_bitplanes(payload, 128 * 128, 2).residue == Residue.OWN


def test_differences_are_of_ordered_integers() -> None:
    """−0 and the smallest numbers on either side of it are neighbours."""
    line = np.array([0x8002, 0x8001, 0x8000, 0, 1, 2], "<u2")
    assert words_of(line[1:], Residue.DIFFERENCE, line[:-1]).tolist() == [2] * 5
    assert words_of(line[:-1], Residue.DIFFERENCE, line[1:]).tolist() == [1] * 5


def test_values_beyond_the_window_escape() -> None:
    values = bfloat16(2.0**60 * gaussian(512, 512))
    values[::100, ::7] = 0
    payload = round_trip(values, "BF16")
    assert len(unpack_bitplanes(payload, values.size, 2).planes[0].escapes) == 2 * int((values == 0).sum())


@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.integers(0, 1 << 20), st.integers(0, 255), st.integers(0, 3))
def test_damaged_payloads_are_refused_or_decode(beside: bool, place: int, value: int, kind: int) -> None:
    values = bfloat16(gaussian(24, 40) * np.exp2(np.arange(24) / 4)[:, None])
    base = bfloat16(gaussian(24, 40)) if beside else None
    payload = bytearray(pack_tensor(entries_of(values), (24, 40), "BF16", None if base is None else entries_of(base)))
    place %= min(len(payload), 400)
    if kind == 0:
        del payload[place:]
    elif kind == 1:
        payload[place:place] = bytes([value] * 3)
    else:
        payload[place] = value
    try:
        found = unpack_bitplanes(bytes(payload), 24 * 40, 2)
        assert found.entries(24 * 40, 2, None if base is None else entries_of(base).reshape(-1)).size == 2 * 24 * 40
    except ValueError:
        pass


def test_few_bytes_do_not_stand_for_many_entries() -> None:
    payload = pack_tensor(entries_of(np.full((4, 40), 0x3F80, "<u2")), (4, 40), "BF16")
    with pytest.raises(ValueError, match="too few for"):
        unpack_bitplanes(payload, 1 << 30, 2)
    zeros = pack_tensor(entries_of(np.zeros((4, 40), "<u2")), (4, 40), "BF16")
    assert len(zeros) == 4
    with pytest.raises(ValueError, match="no bytes stand for"):
        unpack_bitplanes(zeros, 1 << 30, 2)


def test_symbols_without_a_frequency_are_not_coded() -> None:
    frequencies = np.zeros((1, 256), np.uint16)
    frequencies[0, :2] = 2048
    with pytest.raises(ValueError, match="no frequency"):
        _core.encode_plane(np.array([2], np.uint8), np.zeros(1, np.uint8), frequencies, 4)
