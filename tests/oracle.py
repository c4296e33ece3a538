"""A second reader of the format, from docs/format.md and NumPy alone: slow, plain, and trusting its input.

    directory ─▶ records ─▶ {name: raw bits of the tensor}

It shares no code with the package; what both readers agree on is the format. Numbers and streams are decoded by the
twins, one symbol at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from twins import SideTwin, Twin, next_state

Array = np.ndarray
Change = Callable[[list[float]], list[float]]
CLASSES = 48
WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
WIDTH |= {"U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
MODEL, TABLES, STREAM, TRANSFORM, FUNCTION, RESIDUAL, PLANES, ALIAS, SLICE, BASE = 1, 2, 3, 16, 17, 18, 19, 20, 21, 22
TANGENT = 23


class Bytes:
    """A cursor over bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.position = data, 0

    def take(self, count: int) -> bytes:
        assert self.position + count <= len(self.data)
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self) -> int:
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.position)


def records(data: bytes) -> list[tuple[int, bytes, int]]:
    """(type, payload, position after it) of a run of records, each checked."""
    cursor, found = Bytes(data), []
    while cursor.position < len(data):
        start = cursor.position
        kind, mark, crc = struct.unpack("<BBI", cursor.take(6))
        payload = cursor.take(cursor.varint())
        frame = data[start : cursor.position - len(payload)]
        assert zlib.crc32(frame[:2] + bytes(4) + frame[6:] + payload) == crc
        assert mark & 127 == 1
        found.append((kind, payload, cursor.position))
    return found


def integers(data: bytes, contexts: list[int]) -> list[int]:
    decoder = SideTwin(data)
    return [decoder.integer(context) for context in contexts]


def read_shards(path: Path) -> tuple[dict[str, Any], bytes, list[bytes], str]:
    """(header, model-level records after the first, bytes of every tensor's records, fingerprint)."""
    files = sorted(path.glob("*.safetensors"))
    areas, heads = [], []
    for number, file in enumerate(files):
        data = file.read_bytes()
        size = 8 + struct.unpack("<Q", data[:8])[0]
        assert json.loads(data[8:size])[f"trueaxis.{number + 1:05d}"]["shape"] == [len(data) - size]
        heads.append(data[:size])
        areas.append(data[size:])
    kind, payload, end = records(areas[0])[0]
    assert kind == MODEL
    (count,) = struct.unpack_from("<I", payload)
    assert count == len(files)
    areas[0] = areas[0][end:]
    for number, (head, area) in enumerate(zip(heads, areas, strict=True)):
        digest = hashlib.blake2b(head + area, digest_size=16).digest()
        assert payload[4 + 16 * number :][:16] == digest
    header = json.loads(zlib.decompress(payload[4 + 16 * count :]))
    config = json.loads((path / "config.json").read_text())
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.blake2b(canonical, digest_size=16).hexdigest() == header["config"]
    everything = Bytes(b"".join(areas))
    model = everything.take(header["model_bytes"])
    extents = [everything.take(length) for *_, length in header["tensors"]]
    assert everything.position == len(everything.data)
    hashes = payload[4 : 4 + 16 * count]
    return header, model, extents, hashlib.blake2b(hashes, digest_size=16).hexdigest()


@dataclass
class OracleTables:
    """Tables as numbers: the coder, and offsets [2, classes, 2] in 1/64."""

    twin: Twin
    offsets: Array


def read_tables(payload: bytes) -> OracleTables:
    cursor = Bytes(payload)
    largest = (7, 15, 31, 63)[cursor.take(1)[0]]
    shape = integers(cursor.take(cursor.varint()), [0] * 96 + [1] * 48)
    orders = np.cumsum(shape[96:])
    present = [(q, c, shape[48 * q + c]) for q in range(2) for c in range(48) if shape[48 * q + c]]
    contexts = [context for *_, used in present for context in [*(min(m, 15) for m in range(1, used)), 16, 17, 18]]
    body = iter(integers(cursor.rest(), contexts))
    frequencies, offsets = np.zeros((2, CLASSES, largest + 2), int), np.zeros((2, CLASSES, 2), int)
    before: dict[int, Array] = {}
    for q, cls, used in present:
        row = frequencies[q, cls]
        lower = before.get(q, np.zeros_like(row))
        for m in [*range(1, used), largest + 1]:
            row[m] = next(body) + lower[m]
        offsets[q, cls] = next(body), next(body)
        row[0] = 4096 - 2 * row[1:-1].sum() - row[-1]
        before[q] = row
    return OracleTables(Twin(frequencies, orders), offsets)


@dataclass
class Coded:
    """A residual record without its indices; `own` is (lanes, strips per stream, [(stream, escapes)])."""

    shape: tuple[int, int]
    trellis: int
    resolution: int
    shift: int
    centroids: bool
    group: int
    shared: int | None
    own: tuple[int, int, list[tuple[bytes, bytes]]]
    column_steps: Array
    row_steps: Array
    column_scales: Array
    row_scales: Array

    @property
    def order(self) -> list[int]:
        """Columns in file order."""
        keys = zip(self.column_scales.tolist(), self.column_steps.tolist(), range(self.shape[1]), strict=True)
        return [j for *_, j in sorted(keys)]

    def segment(self, first: int, count: int) -> tuple[Array, Array, Array, int, int]:
        """Some columns in file order, as the twin takes them; zeros for the indices."""
        order = self.order[first : first + count]
        empty = np.zeros((len(order), self.shape[0]), np.int32)
        return empty, self.row_scales, self.column_scales[order], self.shift, self.trellis


def read_residual(payload: bytes, rows: int, columns: int) -> Coded:
    cursor = Bytes(payload)
    trellis, resolution, shift, modes = cursor.take(4)
    group, lanes, strips, shared, side_bytes = (cursor.varint() for _ in range(5))
    groups = -(-columns // group)
    sizes = [columns, rows * groups, columns, rows]
    contexts = [c for a, size in enumerate(sizes) for c in [2 * a] + [2 * a + 1] * size]
    numbers, arrays = integers(cursor.take(side_bytes), contexts), []
    for a, size in enumerate(sizes):
        first, entries = numbers[0], np.array(numbers[1 : size + 1])
        numbers = numbers[size + 1 :]
        arrays.append(np.cumsum(entries) if modes >> a & 1 else entries + first)
    column_steps, row_steps, column_scales, row_scales = arrays
    if not modes >> 5 & 1:
        column_scales = column_scales - column_steps * (4 << shift) // resolution
    count = 0 if shared else -(-columns // (lanes * strips))
    lengths = [(cursor.varint(), cursor.varint()) for _ in range(count)]
    streams = [(cursor.take(stream), cursor.take(escapes)) for stream, escapes in lengths]
    assert cursor.position == len(payload)
    return Coded(
        (rows, columns), trellis, resolution, shift, bool(modes >> 4 & 1), group, shared - 1 if shared else None,
        (lanes, strips, streams), column_steps, row_steps.reshape(rows, groups), column_scales, row_scales,
    )  # fmt: skip


def own_indices(coded: Coded, tables: OracleTables) -> Array:
    """k [n, m] in file order."""
    lanes, strips, streams = coded.own
    width, parts = lanes * strips, []
    for number, (stream, escapes) in enumerate(streams):
        segment = coded.segment(number * width, width)
        parts += tables.twin.decode(stream, escapes, [segment], lanes)
    return np.concatenate(parts)


def shared_indices(payload: bytes, members: list[Coded], tables: OracleTables) -> list[Array]:
    cursor = Bytes(payload)
    lanes = cursor.varint()
    stream = cursor.take(cursor.varint())
    segments = [coded.segment(0, coded.shape[1]) for coded in members]
    return tables.twin.decode(stream, cursor.rest(), segments, lanes)


def step(code: int, resolution: int) -> np.float32:
    """2^(code / resolution), correctly rounded to float32: a power of two times a rounded 32nd root of one."""
    exponent, fraction = divmod(code * 32 // resolution, 32)
    return np.float32(np.float32(2.0 ** (fraction / 32)) * np.float32(2.0**exponent))


def values_of(coded: Coded, indices: Array, tables: OracleTables) -> Array:
    """float32 [m, n]."""
    rows, columns = coded.shape
    found = np.zeros((rows, columns), np.float32)
    for place, j in enumerate(coded.order):
        state, column = 0, step(int(coded.column_steps[j]), coded.resolution)
        for i in range(rows):
            k, q = int(indices[place, i]), state & 1
            sign = (k > 0) - (k < 0)
            value = np.float32(2 * k - q * sign)
            if k and coded.centroids:
                cls = min(max((int(coded.row_scales[i]) + int(coded.column_scales[j])) >> coded.shift, 0), 47)
                offset = np.float32(tables.offsets[q, cls, min(abs(k), 2) - 1]) / np.float32(64)
                value = value + np.float32(sign) * offset
            row = step(int(coded.row_steps[i, j // coded.group]), coded.resolution)
            found[i, j] = value * (column * row)
            state = next_state(state, k, coded.trellis)
    return found


def reflected(values: Array) -> Array:
    """The reflection of columns."""
    n = values.shape[1]
    r, found = 1 / math.sqrt(n), np.zeros_like(values)
    for i, row in enumerate(values.astype(np.float64)):
        total = 0.0
        for j in range(n):
            total += row[j]
        t = (r * total + row[n - 1]) / (1 + r)
        found[i, : n - 1] = row[: n - 1] - r * t
        found[i, n - 1] = row[n - 1] - (r + 1) * t
    return found


def product(left: Array, right: Array | None = None) -> Array:
    """A B, or A where there is no B."""
    if right is None:
        return left
    total = np.zeros((left.shape[0], right.shape[1]))
    for k in range(right.shape[0]):
        total = total + np.outer(left[:, k].astype(np.float64), right[k].astype(np.float64))
    return total.astype(np.float32)


def orthogonal(values: Array, payload: bytes) -> Array:
    """A factor of a rotation, one row of one axis after the other."""
    cursor, found = Bytes(payload), values.astype(np.float64)
    kind, side = cursor.take(2)
    found = found if side == 1 else found.T.copy()
    s, t = cursor.varint(), cursor.varint()
    change = {3: plane_change, 4: mirror_change, 5: hadamard_change}[kind](cursor, s)
    for row in found:
        for start in range(0, found.shape[1], s * t):
            for inner in range(t):
                places = slice(start + inner, start + s * t + inner, t)
                row[places] = change(row[places].tolist())
    return (found if side == 1 else found.T).astype(np.float32)


def plane_change(cursor: Bytes, s: int) -> Change:
    bits, count = cursor.take(1)[0], cursor.varint()
    numbers = integers(cursor.rest(), [0] * count + [1] * count + [2] * count)
    planes, i, j = [], 0, 0
    for d, e, q in zip(numbers[:count], numbers[count : 2 * count], numbers[2 * count :], strict=True):
        i, j = i + d, e + 1 + (j if d == 0 else i + d)
        tangent = q / 2**bits
        scale = 1 + tangent * tangent
        planes.append((i, j, (1 - tangent * tangent) / scale, 2 * tangent / scale))

    def change(x: list[float]) -> list[float]:
        for i, j, c, sine in planes:
            x[i], x[j] = c * x[i] - sine * x[j], sine * x[i] + c * x[j]
        return x

    return change


def mirror_change(cursor: Bytes, s: int) -> Change:
    count = cursor.varint()
    numbers = integers(cursor.rest(), [0] * count * s)

    def change(x: list[float]) -> list[float]:
        for k in range(count):
            v = numbers[k * s : (k + 1) * s]
            total = 0.0
            for entry, value in zip(v, x, strict=True):
                total = total + entry * value if entry else total
            share = 2 * total / sum(entry * entry for entry in v)
            x = [value - entry * share if entry else value for entry, value in zip(v, x, strict=True)]
        return x

    return change


def hadamard_change(cursor: Bytes, s: int) -> Change:
    signs = int.from_bytes(cursor.rest(), "little")

    def change(x: list[float]) -> list[float]:
        h = 1
        while h < s:
            x = [x[b ^ h] - x[b] if b & h else x[b] + x[b ^ h] for b in range(s)]
            h *= 2
        scaled = [value * (1 / math.sqrt(s)) for value in x]
        return [-value if signs >> b & 1 else value for b, value in enumerate(scaled)]

    return change


def transformed(values: Array, payloads: list[bytes]) -> Array:
    """Coded values in the place of the tensor."""
    for payload in reversed(payloads):
        if payload[0] == 0:
            values = values.T
        elif payload[0] == 2:
            values = values + np.eye(len(values), dtype=np.float32) * np.frombuffer(payload, "<f4", offset=1)
        elif payload[0] in (3, 4, 5):
            values = orthogonal(values, payload)
        else:
            assert payload[0] == 1
            values = reflected(values) if payload[1] & 1 else values
            values = reflected(values.T).T if payload[1] & 2 else values
    return values


def coded_rows(cursor: Bytes, count: int, size: int) -> Array:
    """A factor [count, size], float32."""
    contexts = [0] * count + [1] * size + [2 + k * min(count, 30) // count for k in range(count) for _ in range(size)]
    numbers = integers(cursor.take(cursor.varint()), contexts)
    rows = [step(int(code), 4) for code in np.cumsum(numbers[:count])]
    columns = [step(int(code), 4) for code in np.cumsum(numbers[count : count + size])]
    entries = np.array(numbers[count + size :], np.float32).reshape(count, size)
    return entries * (np.array(rows, np.float32)[:, None] * np.array(columns, np.float32))


def hats(knots: int, size: int) -> Array:
    """[size, knots]."""
    found = np.ones((size, knots), np.float32)
    for i in range(size):
        for k in range(knots if knots > 1 else 0):
            found[i, k] = max(size - 1 - abs(i * (knots - 1) - k * (size - 1)), 0) / (size - 1)
    return found


def shared_matrices(payload: bytes, m: int, n: int) -> tuple[Array, str, Array | None]:
    """(θ, name of the tensor that holds the matrices, or the matrices)."""
    cursor = Bytes(payload)
    count = cursor.varint()
    weights = np.frombuffer(cursor.take(4 * count), "<f4")
    name = cursor.take(cursor.varint()).decode()
    return weights, name, None if name else coded_rows(cursor, count * m, n).reshape(count, m, n)


def term(payload: bytes, m: int, n: int, holders: dict[str, Array]) -> Array:
    """What is added to a residual [m, n]."""
    if payload[1] == 3:
        weights, name, own = shared_matrices(payload[2:], m, n)
        total = np.zeros((m, n))
        for weight, matrix in zip(weights.tolist(), holders[name] if own is None else own, strict=True):
            total = total + weight * matrix.astype(np.float64)
        return total.astype(np.float32)
    cursor = Bytes(payload[2:])
    rank = cursor.varint()
    left = hats(rank, m) if payload[1] == 1 else coded_rows(cursor, rank, m).T
    return product(left, hats(rank, n).T if payload[1] == 2 else coded_rows(cursor, rank, n))


def multiplied(left: Array, right: Array) -> Array:
    """A·S in whole numbers of 20 bits times powers of two."""
    rows, columns = [whole_numbers(row) for row in left], [whole_numbers(column) for column in right.T]
    found = np.zeros((len(rows), len(columns)), np.float32)
    for i, (a, p) in enumerate(rows):
        for j, (b, q) in enumerate(columns):
            found[i, j] = np.float32(math.ldexp(sum(x * y for x, y in zip(a, b, strict=True)), p + q))
    return found


def whole_numbers(values: Array) -> tuple[list[int], int]:
    largest = max(abs(float(value)) for value in values)
    p = math.floor(math.log2(largest)) - 18 if largest else -19
    return [round(math.ldexp(float(value), -p)) for value in values], p


def rounded(values: Array, dtype: str) -> bytes:
    """Bits of float32 values in a dtype, to nearest, ties to even."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, "<f4").view("<u4").astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(values).astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def floats(bits: bytes, dtype: str) -> Array:
    """float32 values of bits."""
    if dtype == "BF16":
        return (np.frombuffer(bits, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(bits, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype("<f4")


def read_planes(payload: bytes, count: int, width: int, base: bytes) -> bytes:
    mode, cursor = payload[0], Bytes(payload[1:])
    if mode == 3:
        return read_bitplanes(cursor, count, width, base)
    if mode < 2:
        return cursor.rest() * (count if mode == 1 else 1)
    numbers = integers(cursor.take(cursor.varint()), [0] + [1, 2] * count)
    lower = cursor.rest() or bytes(count * (width - 2))
    upper = [sign << 15 | magnitude + numbers[0] for sign, magnitude in zip(numbers[1::2], numbers[2::2], strict=True)]
    parts = (lower[i * (width - 2) :][: width - 2] + struct.pack("<H", bits) for i, bits in enumerate(upper))
    return b"".join(parts)


def read_bitplanes(cursor: Bytes, count: int, width: int, base: bytes) -> bytes:
    """Planes of bits to entries."""
    head, bits = cursor.take(1)[0], 8 * width
    theirs = [int.from_bytes(base[i : i + width], "little") for i in range(0, len(base), width)]
    tables, contexts = 1, [0] * count
    if head >> 2 == 1:
        tables, columns = cursor.varint(), cursor.varint()
        rows = count // columns
        numbers = integers(cursor.take(cursor.varint()), [0] + [1] * rows + [2] + [3] * columns)
        codes, across = numbers[1 : rows + 1], numbers[rows + 2 :]
        contexts = [codes[i // columns] + numbers[0] + across[i % columns] + numbers[rows + 1] for i in range(count)]
    elif head >> 2 == 2:
        tables, top, shift = cursor.varint(), cursor.varint(), cursor.varint()
        contexts = [top - (turned(their, bits) >> shift) for their in theirs]
    contexts = [min(max(context, 0), tables - 1) for context in contexts]
    words, place = [0] * count, bits
    for _ in range(cursor.take(1)[0]):
        mark = cursor.take(1)[0]
        place -= mark & 31
        if mark >> 5 & 3 == 1:
            values = raw_values(cursor.take((count * (mark & 31) + 7) // 8), count, mark & 31)
        elif mark >> 5 & 3 == 2:
            values = coded_values(cursor, contexts if mark >> 7 else [0] * count, tables if mark >> 7 else 1)
        else:
            values = [0] * count
        words = [word | value << place for word, value in zip(words, values, strict=True)]
    found = [entry_of(word, their, head & 3, bits) for word, their in zip(words, theirs or words, strict=True)]
    return b"".join(entry.to_bytes(width, "little") for entry in found)


def turned(entry: int, bits: int) -> int:
    return (entry << 1 | entry >> (bits - 1)) & ((1 << bits) - 1)


def entry_of(word: int, their: int, residue: int, bits: int) -> int:
    everything, half = (1 << bits) - 1, (1 << (bits - 1)) - 1
    if residue == 1:
        difference = -(word + 1 >> 1) if word & 1 else word >> 1
        order = ((their ^ half if their > half else their) + difference) & everything
        return order ^ half if order > half else order
    return (word >> 1 | (word & 1) << (bits - 1)) ^ (their if residue == 2 else 0)


def raw_values(data: bytes, count: int, bits: int) -> list[int]:
    found: list[int] = []
    for first in range(0, count, 4096):
        size = min(4096, count - first)
        stride = (size * bits + 7) // 8
        block = data[first * bits // 8 :][:stride]
        found += [block[i % stride] >> i // stride * bits & (1 << bits) - 1 for i in range(size)]
    return found


def coded_values(cursor: Bytes, contexts: list[int], tables: int) -> list[int]:
    lanes, offset = 1 << cursor.take(1)[0], cursor.varint()
    escaped = np.frombuffer(cursor.take(2 * cursor.varint()), "<u2").tolist()
    first, last, step = cursor.take(3)
    extent = last + 1
    bins = [s * 16 // extent for s in range(extent)]
    numbers = integers(cursor.take(cursor.varint()), bins + [16 + one for one in bins] * (tables - 1))
    rows = [np.cumsum(numbers[:extent]).tolist()]
    for t in range(1, tables):
        above = [0] * step + rows[-1]
        rows.append([numbers[t * extent + s] + above[s] for s in range(extent)])
    lookups = [[(first + s, f, i) for s, f in enumerate(row) for i in range(f)] for row in rows]
    words = np.frombuffer(cursor.take(cursor.varint()), "<u2").tolist()
    states = [words[2 * lane] | words[2 * lane + 1] << 16 for lane in range(lanes)]
    rest, found, escapes = iter(words[2 * lanes :]), [], iter(escaped)
    for i, context in enumerate(contexts):
        x = states[i % lanes]
        symbol, frequency, above = lookups[context][x & 4095]
        x = frequency * (x >> 12) + above
        states[i % lanes] = x << 16 | next(rest) if x < 1 << 16 else x
        found.append(next(escapes) if escaped and symbol == 255 else offset + symbol)
    assert set(states) == {1 << 16}
    assert not [*rest, *escapes]
    return found


class Oracle:
    """Decodes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header, model, extents, self.fingerprint = read_shards(path)
        found = records(model)
        self.tables = next((read_tables(payload) for kind, payload, _ in found if kind == TABLES), None)
        self.streams = [payload for kind, payload, _ in found if kind == STREAM]
        self.shapes = {name: (tuple(shape), dtype) for name, shape, dtype, _ in self.header["tensors"]}
        self.records = {
            name: [(kind, payload) for kind, payload, _ in records(extent)]
            for name, extent in zip(self.shapes, extents, strict=True)
        }
        self.functions: dict[tuple[str, int], bytes] = {}
        self.matrices = {name: self._matrices(name) for name in self.shapes}

    def _matrices(self, name: str) -> list[tuple[list[bytes], Coded, str]]:
        """(transforms, residual, whether it is the left or right factor of a product) of every slice."""
        rows, columns = self.shapes[name][0][-2:] if len(self.shapes[name][0]) > 1 else (0, 0)
        rows = columns if self.records[name][0][0] == ALIAS else rows
        found: list[tuple[list[bytes], Coded, str]] = []
        turns: list[bytes] = []
        rank = 0
        for kind, payload in self.records[name]:
            if kind == TRANSFORM:
                turns.append(payload)
            elif kind == RESIDUAL:
                m, n = (columns, rows) if turns[:1] == [b"\0"] else (rows, columns)
                if rank and (not found or found[-1][2] != "left"):
                    found.append((turns, read_residual(payload, m, rank), "left"))
                    continue
                found.append((turns, read_residual(payload, rank or m, n), "right" if rank else ""))
                turns, rank = [], 0
            elif kind == FUNCTION:
                if payload[0] == 1:
                    self.functions[name, len(found)] = payload
                    continue
                assert payload[0] == 0
                rank = Bytes(payload[1:]).varint()
        return found

    def _indices(self) -> dict[tuple[str, int], Array]:
        """k of every matrix."""
        assert self.tables is not None
        found, members = {}, [[] for _ in self.streams]
        for name, parts in self.matrices.items():
            for number, (_, coded, _) in enumerate(parts):
                if coded.shared is None:
                    found[name, number] = own_indices(coded, self.tables)
                else:
                    members[coded.shared].append((name, number, coded))
        for payload, shared in zip(self.streams, members, strict=True):
            decoded = shared_indices(payload, [coded for *_, coded in shared], self.tables)
            found |= {(name, number): k for (name, number, _), k in zip(shared, decoded, strict=True)}
        return found

    def _values(self, name: str, indices: dict[tuple[str, int], Array]) -> list[Array]:
        """float32 values of every slice."""
        parts = self.matrices[name]
        values = [values_of(coded, indices[name, number], self.tables) for number, (_, coded, _) in enumerate(parts)]
        for number, found in enumerate(values):
            if (name, number) in self.functions:
                values[number] = found + term(self.functions[name, number], *found.shape, self._holders)
        return [
            transformed(product(*values[number : number + 1 + (side == "left")]), turns)
            for number, (turns, _, side) in enumerate(parts)
            if side != "right"
        ]

    @cached_property
    def _holders(self) -> dict[str, Array]:
        """Matrices that tensors hold for others."""
        found = {}
        for (name, number), payload in self.functions.items():
            if payload[1] == 3 and number == 0:
                own = shared_matrices(payload[2:], *self.matrices[name][0][1].shape)[2]
                if own is not None:
                    found[name] = own
        return found

    def _base(self, name: str) -> bytes:
        """Bits of the base's tensor, proved by their hash."""
        found = self._base_tensors[name]
        assert hashlib.blake2b(found, digest_size=16).digest() == self.records[name][0][1]
        return found

    @cached_property
    def _base_tensors(self) -> dict[str, bytes]:
        return Oracle(self._beside / self.header["base"]).tensors()

    @property
    def _beside(self) -> Path:
        """Where base and directions lie."""
        above = self.path.parents
        return next((folder for folder in above[:2] if (folder / "family.json").is_file()), above[0])

    def _taken(self, name: str, shape: tuple[int, ...]) -> Array:
        """Σ θ J of a tensor, float32, flat."""
        total = np.zeros(math.prod(shape))
        if self.records[name][1][0] == TANGENT:
            bits, payload = self.records[name][1][1][0], self.records[name][1][1][1:]
            for q, direction in zip(integers(payload, [0] * len(self._directions)), self._directions, strict=True):
                if q:
                    total = total + q / 2**bits * direction[name].astype(np.float64)
        return total.astype(np.float32)

    @cached_property
    def _directions(self) -> list[dict[str, Array]]:
        """float32 values of every tensor of every direction, flat."""
        found = []
        for number, expected in enumerate(self.header["tangent"]):
            direction = Oracle(self._beside / "tangent" / str(number + 1))
            assert direction.fingerprint == expected
            assert all(dtype == "F32" for _, dtype in direction.shapes.values())
            found.append({name: floats(bits, "F32") for name, bits in direction.tensors().items()})
        return found

    def tensors(self) -> dict[str, bytes]:
        """The bits of every tensor, little-endian, in row-major order."""
        indices = self._indices() if self.tables else {}
        found = {}
        for name, (shape, dtype) in self.shapes.items():
            kind, payload = self.records[name][-1]
            if kind == PLANES:
                base = self._base(name) if self.records[name][0][0] == BASE else b""
                found[name] = read_planes(payload, math.prod(shape), WIDTH[dtype], base)
            elif kind == RESIDUAL:
                values = self._values(name, indices)
                if self.records[name][0][0] == ALIAS:
                    values = [multiplied(self._values(self.records[name][0][1].decode(), indices)[0], values[0])]
                if self.records[name][0][0] == BASE:
                    theirs = (floats(self._base(name), dtype) + self._taken(name, shape)).reshape(-1, *values[0].shape)
                    values = [part + their for part, their in zip(values, theirs, strict=True)]
                found[name] = b"".join(rounded(part, dtype) for part in values)
        aliases = {name: found_[-1][1].decode() for name, found_ in self.records.items() if found_[-1][0] == ALIAS}
        return found | {name: found[target] for name, target in aliases.items()}
