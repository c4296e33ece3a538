"""rANS streams against their slow twin, byte for byte; ideal lengths; damage."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from trueaxis import _core
from twins import CLASSES, CODES, LARGEST, classes_of, describe, escape_bits, make_segment, make_tables, quantizers


@pytest.mark.parametrize("trellis", range(len(CODES)))
def test_count_symbols_follows_trellis_and_classes(trellis: int) -> None:
    segment = make_segment(np.random.default_rng(trellis), 5, 60, trellis, scale=6)
    expected = np.zeros((2, CLASSES, 17), np.uint64)
    magnitude = np.minimum(np.abs(segment[0]), 16)
    np.add.at(expected, (quantizers(segment[0], trellis), classes_of(segment), magnitude), np.uint64(1))
    np.testing.assert_array_equal(_core.count_symbols(CLASSES, 15, [segment]), expected)
    assert expected[1].any() == (trellis > 0)


def test_classes_do_not_overflow() -> None:
    low, high = np.array([-(1 << 31)], np.int32), np.array([(1 << 31) - 1], np.int32)
    zero = np.zeros((1, 1), np.int32)
    assert _core.count_symbols(CLASSES, 7, [(zero, high, high, 0, 0)])[0, CLASSES - 1, 0] == 1
    assert _core.count_symbols(CLASSES, 7, [(zero, low, low, 0, 0)])[0, 0, 0] == 1
    assert _core.count_symbols(CLASSES, 7, [(zero, low, high, 31, 0)])[0, 0, 0] == 1


@pytest.mark.parametrize("largest", [7, 15, 31, 63])
@pytest.mark.parametrize("lanes", [1, 3, 8, 32])
def test_stream_equals_twin(largest: int, lanes: int) -> None:
    """Several segments in one chain, every trellis, strips with idle lanes, and escapes: the same bytes."""
    rng = np.random.default_rng(largest + lanes)
    shapes = [(5, 17), (1, 40), (9, 6), (3, 1), (2, 0), (0, 4)]
    segments = [make_segment(rng, columns, rows, t, scale=largest / 3) for t, (columns, rows) in enumerate(shapes)]
    twin, tables = make_tables(segments, largest)
    stream, escapes = _core.encode_stream(tables, segments, lanes)
    assert (stream, escapes) == twin.encode(segments, lanes)
    assert escapes
    decoded = _core.decode_stream(tables, stream, escapes, describe(segments), lanes)
    slow = twin.decode(stream, escapes, segments, lanes)
    for found, expected, segment in zip(decoded, slow, segments, strict=True):
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, segment[0])
        np.testing.assert_array_equal(expected, segment[0])


def test_empty_stream_is_its_states() -> None:
    _, tables = make_tables([make_segment(np.random.default_rng(0), 2, 50, 0)], 7)
    assert _core.encode_stream(tables, [], 2) == (struct.pack("<2I", 1 << 16, 1 << 16), b"")
    assert _core.decode_stream(tables, struct.pack("<2I", 1 << 16, 1 << 16), b"", [], 2) == []


@pytest.mark.parametrize("order", [0, 1, 12, 24])
@pytest.mark.parametrize("largest", [7, 63])
def test_escapes_reach_two_to_the_24(order: int, largest: int) -> None:
    edge = [largest + 1, largest + 2, 1 << 20, LARGEST - 1, LARGEST]
    k = np.array([[0, *edge, *(-value for value in edge), 1]], np.int32)
    segment = (k, np.zeros(k.shape[1], np.int32), np.zeros(1, np.int32), 0, 3)
    twin, tables = make_tables([segment], largest, np.full(CLASSES, order, np.uint8))
    stream, escapes = _core.encode_stream(tables, [segment], 1)
    assert (stream, escapes) == twin.encode([segment], 1)
    np.testing.assert_array_equal(_core.decode_stream(tables, stream, escapes, describe([segment]), 1)[0], k)


@pytest.mark.parametrize("value", [LARGEST + 1, -LARGEST - 1, (1 << 31) - 1, -(1 << 31)])
def test_index_beyond_range_is_refused(value: int) -> None:
    segment = (np.array([[value]], np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32), 0, 0)
    _, tables = make_tables([make_segment(np.random.default_rng(0), 2, 50, 0)], 7)
    for refuse in (
        lambda: _core.encode_stream(tables, [segment], 1),
        lambda: _core.stream_bits(tables, [segment]),
        lambda: _core.count_symbols(CLASSES, 7, [segment]),
    ):
        with pytest.raises(ValueError, match="2\\^24"):
            refuse()


def test_symbol_without_probability_is_refused() -> None:
    zeros, code = np.zeros((1, 8), np.int32), np.zeros(1, np.int32)
    segment = (zeros, np.zeros(8, np.int32), code, 0, 0)
    _, tables = make_tables([segment], 7)
    for k, rows in ((1, np.zeros(8, np.int32)), (0, np.full(8, 3, np.int32))):  # absent symbol, absent table
        with pytest.raises(ValueError, match=r"no probability|no table"):
            _core.encode_stream(tables, [(zeros + k, rows, code, 0, 0)], 1)
        with pytest.raises(ValueError, match=r"no probability|no table"):
            _core.stream_bits(tables, [(zeros + k, rows, code, 0, 0)])
    stream, escapes = _core.encode_stream(tables, [segment], 1)
    with pytest.raises(ValueError, match="table"):
        _core.decode_stream(tables, stream, escapes, [(np.full(8, 3, np.int32), code, 0, 0)], 1)


@pytest.mark.parametrize("largest", [7, 31])
@pytest.mark.parametrize("trellis", [0, 1, 5])
def test_stream_is_close_to_its_ideal(largest: int, trellis: int) -> None:
    segment = make_segment(np.random.default_rng(1), 96, 700, trellis)
    twin, tables = make_tables([segment], largest)
    q, cls, k = quantizers(segment[0], trellis), classes_of(segment), np.abs(segment[0])
    frequency = twin.frequencies[q, cls, np.minimum(k, largest + 1)].astype(np.float64)
    ideal = float((12 - np.log2(frequency)).sum())
    payload = sum(
        len(escape_bits(int(value), largest, int(twin.orders[c])))
        for value, c in zip(k[k > largest], cls[k > largest], strict=True)
    )
    assert _core.stream_bits(tables, [segment]) == pytest.approx(ideal + payload, rel=1e-9)
    stream, escapes = _core.encode_stream(tables, [segment], 32)
    assert len(stream) * 8 <= ideal + 32 * 32 + 16
    assert len(escapes) == -(-payload // 8)


def test_damaged_streams_never_crash() -> None:
    rng = np.random.default_rng(3)
    segments = [make_segment(rng, 7, 30, 2, scale=8), make_segment(rng, 3, 20, 0, scale=8)]
    _, tables = make_tables(segments, 7)
    parts = _core.encode_stream(tables, segments, 4)
    for trial in range(2000):
        damaged = [bytearray(part) for part in parts]
        victim = damaged[trial % 2]
        if trial % 4 < 2:
            victim[rng.integers(len(victim))] ^= 1 << int(rng.integers(8))
        else:
            del victim[rng.integers(len(victim)) :]
        try:
            found = _core.decode_stream(tables, bytes(damaged[0]), bytes(damaged[1]), describe(segments), 4)
        except ValueError:
            continue
        assert any((k != segment[0]).any() for k, segment in zip(found, segments, strict=True))


def test_leftover_bytes_are_refused() -> None:
    segments = [make_segment(np.random.default_rng(4), 4, 30, 1, scale=8)]
    _, tables = make_tables(segments, 7)
    stream, escapes = _core.encode_stream(tables, segments, 4)
    for bad in ((stream + b"\0", escapes), (stream + b"\0\0", escapes), (stream, escapes + b"\0"), (b"", escapes)):
        with pytest.raises(ValueError):
            _core.decode_stream(tables, *bad, describe(segments), 4)
    with pytest.raises(ValueError, match="below"):
        _core.decode_stream(tables, struct.pack("<I", 65535) + stream[4:], escapes, describe(segments), 4)


def test_arguments_are_checked() -> None:
    segment = make_segment(np.random.default_rng(5), 4, 30, 1)
    k, row_codes, column_codes, shift, trellis = segment
    _, tables = make_tables([segment], 7)
    for bad in (
        (k, row_codes[:-1], column_codes, shift, trellis),
        (k, row_codes, column_codes[:-1], shift, trellis),
        (k, row_codes, column_codes, -1, trellis),
        (k, row_codes, column_codes, 32, trellis),
        (k, row_codes, column_codes, shift, len(CODES)),
        (k, row_codes, column_codes, shift, -1),
    ):
        with pytest.raises(ValueError):
            _core.encode_stream(tables, [bad], 4)
    for lanes in (0, 33, -1):
        with pytest.raises(ValueError, match="lanes"):
            _core.encode_stream(tables, [segment], lanes)
