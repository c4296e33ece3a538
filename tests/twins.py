"""Slow twins of the C++ core, written from docs/format.md one symbol at a time, and inputs to compare on."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from trueaxis import _core
from trueaxis.types import Array

# (h0, h1) of trellis 0 to 7, as docs/format.md gives them
CODES = [(0, 0), (0o5, 0o2), (0o13, 0o4), (0o23, 0o4), (0o45, 0o10), (0o103, 0o24), (0o327, 0o124), (0o753, 0o304)]
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


def branches(x: float, cls: int, bits: Array, orders: Array, rate_weight: float) -> tuple[Array, Array]:
    """Cost and magnitude of the four branches 2q + p of one target, float32 in the order of the core."""
    largest, weight = bits.shape[2] - 2, np.float32(rate_weight)
    costs, magnitudes, x = np.zeros(4, np.float32), np.zeros(4, np.int64), np.abs(np.float32(x))
    for q in range(2):
        below = min(int(np.floor((x + np.float32(q)) * np.float32(0.5))), LARGEST - 1)

        def cost(magnitude: int, q: int = q) -> np.float32:
            error = x - np.float32(0 if magnitude == 0 else 2 * magnitude - q)
            length = bits[q, cls, min(magnitude, largest + 1)]
            if magnitude > largest:
                length += np.float32(len(escape_bits(magnitude, largest, int(orders[cls]))))
            return error * error + weight * length

        even, odd = (below, below + 1) if below % 2 == 0 else (below + 1, below)
        even = 0 if cost(0) < cost(even) else even
        costs[2 * q : 2 * q + 2] = cost(even), cost(odd)
        magnitudes[2 * q : 2 * q + 2] = even, odd
    return costs, magnitudes


def viterbi(targets: Array, classes: Array, bits: Array, orders: Array, rate_weight: float, trellis: int) -> Array:
    """k of one column, one state at a time: of equal paths the even parity, of equal ends the lowest state."""
    states = 1 if trellis == 0 else 2 << trellis
    paths = np.full(states, 1e30, np.float32)
    paths[0] = 0
    history = []
    for i, (x, cls) in enumerate(zip(targets, classes, strict=True)):
        costs, magnitudes = branches(x, int(cls), bits, orders, rate_weight)
        best = [(np.float32(np.inf), 0, 0)] * states
        for parity in range(2):
            for state in range(states):
                after = next_state(state, parity, trellis)
                found = paths[state] + costs[2 * (state & 1) + parity]
                if found < best[after][0]:
                    best[after] = (found, state, int(magnitudes[2 * (state & 1) + parity]))
        paths = np.array([found for found, _, _ in best], np.float32)
        if i % 256 == 255:
            paths = paths - paths[0]
        history.append(best)
    state, k = int(np.argmin(paths)), []
    for best in reversed(history):
        _, state, magnitude = best[state]
        k.append(magnitude)
    return (np.array(k[::-1], np.int32) * np.where(targets < 0, -1, 1)).astype(np.int32)


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
            q, cls = quantizers(k, segment[4]), classes_of(segment, self.frequencies.shape[1])
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
            k, cls = np.zeros(segment[0].shape, np.int32), classes_of(segment, self.frequencies.shape[1])
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


class Estimate:
    """Probability that a bit is 0: the mean of two averages, over all bits at first, exponential later."""

    def __init__(self) -> None:
        self.fast = self.slow = 1 << 15
        self.seen = 0

    def split(self, width: int) -> int:
        return (width >> 12) * min(max((self.fast + self.slow) >> 5, 1), 4095)

    def update(self, bit: int) -> None:
        fast, slow = min(self.seen + 2, 16), min(self.seen + 2, 128)
        self.fast += -(self.fast // fast) if bit else (65535 - self.fast) // fast
        self.slow += -(self.slow // slow) if bit else (65535 - self.slow) // slow
        self.seen += 1


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
