"""Scale classes and tables: code lengths, the alphabet that costs least, and the bytes of a tables record."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueaxis import _core
from trueaxis.entropy.model import (
    ABSENT_BITS,
    CLASSES,
    MAGNITUDES,
    Tables,
    escape_orders,
    first_tables,
    fit_tables,
    laplacian_bits,
    offsets_from,
    pack_tables,
    unpack_tables,
)
from trueaxis.types import Array, FormatError


def laplacian_counts(rng: np.random.Generator, classes: Array, quantizers: int = 1) -> Array:
    """Counts [2, classes, 65] of rounded Laplacians whose mean magnitude is that of their class."""
    counts = np.zeros((2, CLASSES, 65), np.uint64)
    for q in range(quantizers):
        for cls in classes:
            mean = 2.0 ** ((cls - 20) / 4)
            k = np.minimum(np.rint(rng.exponential(mean, rng.integers(1, 5000))), 64).astype(int)
            counts[q, cls] = np.bincount(k, minlength=65)
    return counts


def assert_same(found: Tables, expected: Tables) -> None:
    np.testing.assert_array_equal(found.frequencies, expected.frequencies)
    np.testing.assert_array_equal(found.escape_orders, expected.escape_orders)
    present = expected.frequencies.any(axis=2)
    np.testing.assert_array_equal(found.offsets[present], expected.offsets[present])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sets(st.integers(0, CLASSES - 1), max_size=12), st.integers(1, 2))
def test_tables_round_trip(seed: int, classes: set[int], quantizers: int) -> None:
    rng = np.random.default_rng(seed)
    offsets = rng.integers(-127, 128, (2, CLASSES, 2)).astype(np.int8)
    tables = fit_tables(laplacian_counts(rng, np.array(sorted(classes), int), quantizers), offsets)
    found = unpack_tables(pack_tables(tables))
    assert_same(found, tables)
    assert found.frequencies.dtype == np.uint16 and found.offsets.dtype == np.int8


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MAGNITUDES), st.data())
def test_any_counts_round_trip(largest: int, data: st.DataObject) -> None:
    """Sparse counts with gaps, single symbols, escapes alone: whatever the normalizer accepts."""
    count = st.one_of(st.just(0), st.integers(0, 1 << 30))
    cells = data.draw(st.dictionaries(
        st.tuples(st.integers(0, 1), st.integers(0, CLASSES - 1)),
        st.lists(count, min_size=largest + 2, max_size=largest + 2), max_size=4))  # fmt: skip
    counts = np.zeros((2, CLASSES, largest + 2), np.uint64)
    for cell, row in cells.items():
        counts[cell] = row
    frequencies = _core.normalize_counts(counts.reshape(-1, largest + 2)).reshape(counts.shape)
    orders = np.array(data.draw(st.lists(st.integers(0, 24), min_size=CLASSES, max_size=CLASSES)), np.uint8)
    tables = Tables(frequencies, orders, np.zeros((2, CLASSES, 2), np.int8))
    assert_same(unpack_tables(pack_tables(tables)), tables)


def test_tables_are_small() -> None:
    counts = laplacian_counts(np.random.default_rng(0), np.arange(10, 30))
    assert len(pack_tables(fit_tables(counts, first_tables().offsets))) < 20 * 45
    assert len(pack_tables(first_tables())) < 30


def test_damaged_tables_are_refused_or_are_other_tables() -> None:
    rng = np.random.default_rng(1)
    tables = fit_tables(laplacian_counts(rng, np.arange(12, 24)), first_tables().offsets)
    payload = pack_tables(tables)
    for bad in (b"", b"\x04" + payload[1:], payload[:1], payload + b"\0" * 8):
        with pytest.raises(FormatError, match="tables record"):
            unpack_tables(bad)
    refused = 0
    for position in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[position // 8] ^= 1 << position % 8
        try:
            unpack_tables(bytes(damaged))
        except FormatError as error:
            assert "tables record" in str(error)
            refused += 1
    assert refused > 4 * len(payload)


@pytest.mark.parametrize("mean", [0.2, 1.0, 4.0, 12.0])
def test_the_alphabet_is_the_one_whose_bytes_are_fewest(mean: float) -> None:
    rng = np.random.default_rng(2)
    k = np.rint(rng.laplace(scale=mean, size=(30, 400))).astype(np.int32)
    cls = round(4 * np.log2(mean)) + 20
    matrix = (k, np.zeros(400, np.int32), np.full(30, cls, np.int32), 0, 0)
    counts = _core.count_symbols(CLASSES, 63, [matrix])
    chosen = fit_tables(counts, first_tables().offsets)
    sizes = {}
    for largest in MAGNITUDES:
        folded = np.concatenate([counts[..., : largest + 1], counts[..., largest + 1 :].sum(2, keepdims=True)], axis=2)
        frequencies = _core.normalize_counts(folded.reshape(-1, largest + 2)).reshape(folded.shape)
        tables = Tables(frequencies, escape_orders(), first_tables().offsets)
        stream, escapes = _core.encode_stream(tables.coder, [matrix], 1)
        sizes[largest] = len(stream) + len(escapes) + len(pack_tables(tables))
    assert sizes[chosen.largest_magnitude] <= min(sizes.values()) + 2


def test_code_bits_are_those_of_the_coder() -> None:
    counts = laplacian_counts(np.random.default_rng(3), np.array([20]))
    tables = fit_tables(counts, first_tables().offsets)
    k = np.arange(-3, 4, dtype=np.int32)[None]
    segment = (k, np.zeros(7, np.int32), np.array([20], np.int32), 0, 0)
    assert _core.stream_bits(tables.coder, [segment]) == pytest.approx(
        tables.code_bits()[0, 20, np.abs(k[0])].sum(), rel=1e-6
    )


def test_code_bits_of_absent_tables_and_symbols() -> None:
    counts = np.zeros((2, CLASSES, 65), np.uint64)
    counts[0, 20, 0] = 10
    bits = fit_tables(counts, first_tables().offsets).code_bits()
    assert bits[0, 20, 1] == ABSENT_BITS
    np.testing.assert_allclose(bits[0, 21], laplacian_bits(bits.shape[2] - 2)[21], rtol=1e-6)
    assert (first_tables().code_bits() > 0).all()


@pytest.mark.parametrize("largest", MAGNITUDES)
def test_laplacian_lengths_are_a_complete_code(largest: int) -> None:
    probability = 2.0 ** -laplacian_bits(largest)
    total = probability[:, 0] + 2 * probability[:, 1:-1].sum(axis=1) + probability[:, -1]
    assert (total < 1 + (2 * largest + 1) * 2.0**-ABSENT_BITS).all()
    likely = np.arange(CLASSES) < 20
    np.testing.assert_allclose(total[likely], 1, atol=0.01)


def test_escape_orders_grow_with_the_class() -> None:
    orders = escape_orders()
    assert (np.diff(orders.astype(int)) >= 0).all() and orders[0] == 0 and orders[-1] == 6


def test_offsets_are_mean_residuals_where_there_are_enough() -> None:
    sums, counts = np.zeros((2, CLASSES, 2)), np.zeros((2, CLASSES, 2))
    sums[0, 20], counts[0, 20] = (-25, -900), (50, 100)
    sums[0, 21], counts[0, 21] = (-10, 0), (31, 0)
    sums[1, 20], counts[1, 20] = (16, 0), (32, 0)
    offsets = offsets_from([(sums, counts), (sums, counts)])
    assert offsets[0, 20].tolist() == [-32, -63]  # −½; −9 is clipped to what a file can hold
    assert offsets[0, 21].tolist() == [round(-10 / 31 * 64), 0]
    assert not offsets_from([(sums / 2, counts / 2)])[0, 21].any()
    assert offsets[1, 20].tolist() == [32, 0] and not offsets[1, :20].any()
