"""The C++ core against slow twins in NumPy and plain Python: tables, rANS, trellis, reconstruction, side information."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueaxis import _core
from trueaxis.types import Array

# (h0, h1) of trellis 0 to 5, as docs/format.md gives them
CODES = [(0, 0), (0o5, 0o2), (0o13, 0o4), (0o23, 0o4), (0o45, 0o10), (0o103, 0o24)]
CLASSES = 6
LARGEST = 1 << 24

Segment = tuple[Array, Array, Array, int, int]


def next_state(state: int, k: int, trellis: int) -> int:
    h0, h1 = CODES[trellis]
    return (state >> 1) ^ (h1 >> 1 if k % 2 else 0) ^ (h0 >> 1 if state % 2 else 0)


def quantizers(k: Array, trellis: int) -> Array:
    """q of every index of k [columns, rows]."""
    found = np.zeros(k.shape, np.int64)
    for j, column in enumerate(k):
        state = 0
        for i, index in enumerate(column):
            found[j, i] = state & 1
            state = next_state(state, int(index), trellis)
    return found


def classes_of(segment: Segment, classes: int = CLASSES) -> Array:
    _, row_codes, column_codes, shift, _ = segment
    total = row_codes[None, :].astype(np.int64) + column_codes[:, None].astype(np.int64)
    return np.clip(total >> shift, 0, classes - 1)


def escape_bits(k: int, largest: int, order: int) -> str:
    excess = abs(k) - largest - 1
    scaled = (excess >> order) + 1
    suffix = format(excess & ((1 << order) - 1), f"0{order}b") if order else ""
    return ("1" if k < 0 else "0") + "0" * (scaled.bit_length() - 1) + format(scaled, "b") + suffix


@dataclass
class Twin:
    """The coder of docs/format.md, one symbol at a time."""

    frequencies: Array
    orders: Array
    largest: int = field(init=False)

    def __post_init__(self) -> None:
        self.largest = self.frequencies.shape[2] - 2

    def row(self, q: int, cls: int) -> list[int]:
        """Frequencies in the order −K … K, escape."""
        half = self.frequencies[q, cls].astype(int).tolist()
        return half[self.largest : 0 : -1] + half[: self.largest + 2]

    def symbols(self, segments: list[Segment], lanes: int) -> list[tuple[int, int, int, int]]:
        """(lane, k, q, class) in the order of decoding."""
        found = []
        for segment in segments:
            k = segment[0]
            q, cls = quantizers(k, segment[4]), classes_of(segment)
            for first in range(0, k.shape[0], lanes):
                for i in range(k.shape[1]):
                    for j in range(first, min(first + lanes, k.shape[0])):
                        found.append((j - first, int(k[j, i]), int(q[j, i]), int(cls[j, i])))
        return found

    def encode(self, segments: list[Segment], lanes: int) -> tuple[bytes, bytes]:
        states, words = [1 << 16] * lanes, []
        symbols = self.symbols(segments, lanes)
        for lane, k, q, cls in reversed(symbols):
            row = self.row(q, cls)
            symbol = k + self.largest if abs(k) <= self.largest else 2 * self.largest + 1
            frequency, cumulative = row[symbol], sum(row[:symbol])
            x = states[lane]
            if x >= frequency << 20:
                words.append(x & 0xFFFF)
                x >>= 16
            states[lane] = (x // frequency << 12) + x % frequency + cumulative
        escaped = "".join(
            escape_bits(k, self.largest, int(self.orders[cls])) for _, k, _, cls in symbols if abs(k) > self.largest
        )
        escaped += "0" * (-len(escaped) % 8)
        packed = bytes(int(escaped[i : i + 8], 2) for i in range(0, len(escaped), 8))
        return struct.pack(f"<{lanes}I", *states) + struct.pack(f"<{len(words)}H", *reversed(words)), packed

    def decode(self, stream: bytes, escapes: bytes, segments: list[Segment], lanes: int) -> list[Array]:
        states = list(struct.unpack_from(f"<{lanes}I", stream))
        words = iter(struct.unpack_from(f"<{(len(stream) - 4 * lanes) // 2}H", stream, 4 * lanes))
        bits = iter("".join(format(byte, "08b") for byte in escapes))
        decoded = []
        for segment in segments:
            k, cls = np.zeros(segment[0].shape, np.int32), classes_of(segment)
            for first in range(0, k.shape[0], lanes):
                trellis_states = [0] * lanes
                for i in range(k.shape[1]):
                    for lane in range(min(lanes, k.shape[0] - first)):
                        row = self.row(trellis_states[lane] & 1, cls[first + lane, i])
                        slot, symbol, cumulative = states[lane] & 4095, 0, 0
                        while cumulative + row[symbol] <= slot:
                            cumulative += row[symbol]
                            symbol += 1
                        x = row[symbol] * (states[lane] >> 12) + slot - cumulative
                        states[lane] = x << 16 | next(words) if x < 1 << 16 else x
                        index = symbol - self.largest
                        if symbol == 2 * self.largest + 1:
                            index = self.read_escape(bits, int(self.orders[cls[first + lane, i]]))
                        k[first + lane, i] = index
                        trellis_states[lane] = next_state(trellis_states[lane], index, segment[4])
            decoded.append(k)
        assert states == [1 << 16] * lanes
        assert next(words, None) is None
        assert set(bits) <= {"0"}
        return decoded

    def read_escape(self, bits: object, order: int) -> int:
        negative = next(bits) == "1"  # type: ignore[call-overload]
        zeros = 0
        while next(bits) == "0":  # type: ignore[call-overload]
            zeros += 1
        tail = "".join(next(bits) for _ in range(zeros + order))  # type: ignore[call-overload]
        magnitude = int("1" + tail, 2) - (1 << order) + self.largest + 1
        return -magnitude if negative else magnitude


def make_segment(
    rng: np.random.Generator, columns: int, rows: int, trellis: int, scale: float = 2.0, shift: int = 2
) -> Segment:
    row_codes = rng.integers(-8, 12, rows).astype(np.int32)
    column_codes = rng.integers(-8, 16, columns).astype(np.int32)
    spread = scale * 2.0 ** ((row_codes[None, :] + column_codes[:, None]) / 16)
    return np.rint(rng.laplace(size=(columns, rows)) * spread).astype(np.int32), row_codes, column_codes, shift, trellis


def make_tables(segments: list[Segment], largest: int, orders: Array | None = None) -> tuple[Twin, _core.TableSet]:
    counts = _core.count_symbols(CLASSES, largest, segments)
    frequencies = _core.normalize_counts(counts.reshape(-1, largest + 2)).reshape(counts.shape)
    orders = np.arange(CLASSES, dtype=np.uint8) % 3 if orders is None else orders
    return Twin(frequencies, orders), _core.TableSet(frequencies, orders)


def describe(segments: list[Segment]) -> list[tuple[Array, Array, int, int]]:
    return [segment[1:] for segment in segments]


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
        with pytest.raises(ValueError, match="no probability|no table"):
            _core.encode_stream(tables, [(zeros + k, rows, code, 0, 0)], 1)
        with pytest.raises(ValueError, match="no probability|no table"):
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


def test_tables_are_checked() -> None:
    orders = np.zeros(1, np.uint8)
    good = np.zeros((2, 1, 9), np.uint16)
    good[0, 0, [0, 1]] = 4094, 1
    _core.TableSet(good, orders)
    for cell, value in (((0, 0, 0), 4095), ((0, 0, 0), 4096), ((1, 0, 3), 1)):
        bad = good.copy()
        bad[cell] = value
        with pytest.raises(ValueError):
            _core.TableSet(bad, orders)
    certain = np.zeros((2, 1, 9), np.uint16)
    certain[0, 0, 0] = 4096
    for frequencies, escape_orders in (
        (certain, orders),
        (good[:1], orders),
        (good[:, :, :8], orders),
        (good, np.zeros(2, np.uint8)),
        (good, np.full(1, 25, np.uint8)),
    ):
        with pytest.raises(ValueError):
            _core.TableSet(np.ascontiguousarray(frequencies), escape_orders)


def length_bits(counts: Array, frequencies: Array) -> Array:
    """Code length of counts [..., K + 2] under frequencies; inf where a counted symbol has none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        lengths = np.where(counts > 0, counts * (12 - np.log2(frequencies)), 0.0)
    return lengths.sum(axis=-1)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([7, 15, 31, 63]), st.data())
def test_normalized_tables_are_complete(largest: int, data: st.DataObject) -> None:
    count = st.one_of(st.just(0), st.integers(1, 5), st.integers(0, 1 << 40))
    counts = np.array([data.draw(st.lists(count, min_size=largest + 2, max_size=largest + 2))], np.uint64)
    row = _core.normalize_counts(counts)[0].astype(int)
    if not counts.any():
        assert not row.any()
        return
    assert row[0] + 2 * row[1:-1].sum() + row[-1] == 4096
    assert row[0] >= 1 and row.max() <= 4095
    assert (row[counts[0] > 0] >= 1).all()
    assert not row[1:-1][counts[0, 1:-1] == 0].any()


def test_only_zeros_leave_the_escape_one_slot() -> None:
    counts = np.zeros((1, 9), np.uint64)
    counts[0, 0] = 1000
    assert _core.normalize_counts(counts)[0].tolist() == [4095, 0, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("seed", range(12))
def test_normalized_tables_are_nearly_optimal(seed: int) -> None:
    """Against every table of three symbols: zero, one pair, and another pair or the escape."""
    rng = np.random.default_rng(seed)
    other = 8 if seed % 2 else 2
    counts = np.zeros(9, np.uint64)
    counts[[0, 1, other]] = np.maximum(1, 10.0 ** rng.uniform(0, 6, 3)).astype(np.uint64)
    pair, second = np.meshgrid(np.arange(1, 2048), np.arange(1, 4096 if other == 8 else 2048), indexing="ij")
    zero = 4096 - 2 * pair - second * (1 if other == 8 else 2)
    candidates = np.stack([zero, pair, second], axis=-1)[zero >= 1]
    best = length_bits(counts[[0, 1, other]].astype(float), candidates).min()
    found = length_bits(counts.astype(float), _core.normalize_counts(counts[None])[0])
    assert best - 1e-6 <= found <= best + 1e-5 * counts.sum() + 1e-6


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


class Estimate:
    """Probability that a bit is 0: the mean of two exponential averages."""

    def __init__(self) -> None:
        self.fast = self.slow = 1 << 15

    def split(self, width: int) -> int:
        return (width >> 12) * min(max((self.fast + self.slow) >> 5, 1), 4095)

    def update(self, bit: int) -> None:
        if bit:
            self.fast -= self.fast >> 4
            self.slow -= self.slow >> 7
        else:
            self.fast += (65535 - self.fast) >> 4
            self.slow += (65535 - self.slow) >> 7


class SideTwin:
    """Decoder of adaptive integers."""

    def __init__(self, data: bytes) -> None:
        self.code, self.rest, self.range = int.from_bytes(data[:4].ljust(4, b"\0"), "big"), data[4:], 0xFFFFFFFF
        self.estimates: dict[tuple, Estimate] = {}

    def take(self, bound: int) -> int:
        bit = int(self.code >= bound)
        self.code, self.range = (self.code - bound, self.range - bound) if bit else (self.code, bound)
        return bit

    def fill(self) -> None:
        while self.range < 1 << 24:
            self.range <<= 8
            self.code = self.code << 8 | (self.rest[0] if self.rest else 0)
            self.rest = self.rest[1:]

    def adaptive(self, *name: object) -> int:
        estimate = self.estimates.setdefault(name, Estimate())
        bit = self.take(estimate.split(self.range))
        estimate.update(bit)
        self.fill()
        return bit

    def bypass(self) -> int:
        self.range >>= 1
        bit = int(self.code >= self.range)
        self.code -= self.range * bit
        self.fill()
        return bit

    def integer(self, context: int) -> int:
        if not self.adaptive(context, "nonzero"):
            return 0
        negative = self.adaptive(context, "sign")
        exponent = 0
        while self.adaptive(context, "prefix", exponent):
            exponent += 1
        magnitude = 1
        for b in reversed(range(exponent)):
            bit = self.adaptive(context, "mantissa", exponent) if b == exponent - 1 else self.bypass()
            magnitude = magnitude << 1 | bit
        return -magnitude if negative else magnitude


INTEGERS = st.one_of(st.integers(-3, 3), st.integers(-(1 << 30) + 1, (1 << 30) - 1))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(INTEGERS, st.integers(0, 255)), max_size=200))
def test_integers_survive_and_equal_twin(pairs: list[tuple[int, int]]) -> None:
    values = np.array([value for value, _ in pairs], np.int32)
    contexts = np.array([context for _, context in pairs], np.uint8)
    data = _core.encode_integers(values, contexts)
    np.testing.assert_array_equal(_core.decode_integers(data, contexts), values)
    twin = SideTwin(data)
    assert [twin.integer(int(context)) for context in contexts] == values.tolist()
    with pytest.raises(ValueError):
        _core.decode_integers(data + b"\1", contexts)


def test_side_information_is_close_to_adaptive_ideal() -> None:
    """Against a geometric source of unknown parameter, whose adaptive ideal costs ½ log₂ n more than its entropy."""
    rng = np.random.default_rng(0)
    count = 20000
    for p in (0.2, 0.5, 0.8):
        values = (rng.geometric(p, count) - 1).astype(np.int32) * rng.choice([-1, 1], count).astype(np.int32)
        magnitudes = np.abs(values)
        likelihood = np.log2(p) + magnitudes * np.log2(1 - p)
        ideal_bits = -likelihood.sum() + (magnitudes > 0).sum() + 0.5 * np.log2(count)
        data = _core.encode_integers(values, np.zeros(count, np.uint8))
        assert len(data) * 8 <= 1.03 * ideal_bits + 40


def test_side_information_flush_is_short() -> None:
    assert _core.encode_integers(np.zeros(0, np.int32), np.zeros(0, np.uint8)) == b""
    assert _core.encode_integers(np.zeros(4, np.int32), np.zeros(4, np.uint8)) == b""


@pytest.mark.parametrize("value", [1 << 30, -(1 << 30), -(1 << 31), (1 << 31) - 1])
def test_side_information_range_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match="30"):
        _core.encode_integers(np.array([value], np.int32), np.zeros(1, np.uint8))


def test_damaged_side_information_never_crashes() -> None:
    rng = np.random.default_rng(1)
    values, contexts = rng.integers(-1000, 1000, 300).astype(np.int32), rng.integers(0, 4, 300).astype(np.uint8)
    data = _core.encode_integers(values, contexts)
    for trial in range(2000):
        damaged = bytearray(data)
        if trial % 2:
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        else:
            del damaged[rng.integers(len(damaged)) :]
        try:
            found = _core.decode_integers(bytes(damaged), contexts)
        except ValueError:
            continue
        assert (found != values).any()
    for length in range(64):
        for byte in (b"\0", b"\xff"):
            try:
                assert _core.decode_integers(byte * length, contexts).shape == (300,)
            except ValueError:
                continue
    with pytest.raises(ValueError, match="contexts|context"):
        _core.encode_integers(values, contexts[:-1])
