"""Bit planes: large tensors bit for bit, alone or beside a base, through the same rANS as quantized ones.

    entries ─▶ words ─▶ planes from the top: zeros │ raw bits │ symbols with contexts ─▶ payload of mode 3
    word = entry with its sign moved to the lowest bit │ difference from the base's entry │ XOR with it

The top plane of a float is its exponent and a few bits of its mantissa, which are all that is skewed. Contexts are
integers: the sum of a row's and a column's scale code, or the exponent of the base's entry. What to write is chosen in
lossless/; here is what a reader needs. The layout is in docs/format.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from trueaxis import _core
from trueaxis.entropy.varint import pack_varint
from trueaxis.runtime.bitplane_side import SYMBOLS, TOTAL, Cursor, pack_codes, pack_tables, unpack_codes, unpack_tables
from trueaxis.types import Array

MOST_LANES_LOG2 = 6
MOST_CONTEXTS = 64
MOST_PLANES = 16
ZEROS_LIMIT = 1 << 22  # entries that no plane backs with bytes


class Residue(IntEnum):
    """What words are made of."""

    OWN = 0
    DIFFERENCE = 1
    XOR = 2


class Kind(IntEnum):
    """How a plane is stored."""

    ZERO = 0
    RAW = 1
    CODED = 2


@dataclass(frozen=True, eq=False)
class ScaleCodes:
    """Context of entry (i, j) = clamp(rowsᵢ + columnsⱼ, 0, count − 1).

    Attributes:
        rows, columns: int16; their lengths multiply to the number of entries.
        count: Number of contexts.
    """

    rows: Array
    columns: Array
    count: int


@dataclass(frozen=True)
class BaseExponents:
    """Context of an entry = clamp(top − (word of the base's entry >> shift), 0, count − 1)."""

    top: int
    shift: int
    count: int


@dataclass(frozen=True, eq=False)
class Plane:
    """Some bits of every word.

    Attributes:
        bits: 1, 2, 4 or 8 of a raw plane, else 1 to 16.
        kind: How it is stored.
        data: uint8, raw bits, or lane states and words of the coder.
        with_contexts: Whether its tables are chosen by the contexts; else it has one.
        lanes_log2: Lanes of the coder are 2 to this power; 6 is the fast one.
        offset: Value of symbol 0.
        escapes: u16 values of the entries whose symbol is 255; none where 255 is a symbol like others.
        frequencies: uint16 [contexts, 256].
        step: A table is written less the one before it, moved up by so many symbols.
    """

    bits: int
    kind: Kind
    data: Array = field(default_factory=lambda: np.zeros(0, np.uint8))
    with_contexts: bool = False
    lanes_log2: int = 0
    offset: int = 0
    escapes: bytes = b""
    frequencies: Array = field(default_factory=lambda: np.zeros((0, SYMBOLS), np.uint16))
    step: int = 0


@dataclass(frozen=True, eq=False)
class BitPlanes:
    """A tensor as planes, from the most significant bits down."""

    residue: Residue
    contexts: ScaleCodes | BaseExponents | None
    planes: tuple[Plane, ...]

    @property
    def context_count(self) -> int:
        """Tables of a plane with contexts."""
        return 1 if self.contexts is None else self.contexts.count

    def entries(self, count: int, width: int, base: Array | None) -> Array:
        """uint8 [count * width].

        Args:
            count: Number of entries.
            width: Bytes of each.
            base: uint8 [count * width] where the residue needs it.

        Raises:
            ValueError: The planes are damaged.
        """
        nothing = np.zeros(0, np.int16)
        if isinstance(self.contexts, ScaleCodes):
            contexts = (self.contexts.rows, self.contexts.columns, self.contexts.count, 0, 0, False)
        elif isinstance(self.contexts, BaseExponents):
            contexts = (nothing, nothing, self.contexts.count, self.contexts.top, self.contexts.shift, True)
        else:
            contexts = (nothing, nothing, 1, 0, 0, False)
        planes = [
            (
                one.bits,
                int(one.kind),
                one.with_contexts,
                1 << one.lanes_log2,
                one.offset,
                one.data,
                one.escapes,
                one.frequencies,
            )
            for one in self.planes
        ]
        theirs = np.zeros(0, np.uint8) if base is None or self.residue == Residue.OWN else base
        return _core.decode_planes(count, width, int(self.residue), contexts, planes, theirs)


def needs_base(payload: bytes) -> bool:
    """Whether the tensor of a payload, its mode left out, is a difference from another one."""
    return bool(payload[:1]) and payload[0] & 3 != Residue.OWN


def pack_bitplanes(found: BitPlanes) -> bytes:
    """Inverse of `unpack_bitplanes`."""
    contexts = found.contexts
    if isinstance(contexts, ScaleCodes):
        source, side = 1, pack_codes(contexts.rows, contexts.columns)
        side = pack_varint(contexts.count) + pack_varint(contexts.columns.size) + pack_varint(len(side)) + side
    elif isinstance(contexts, BaseExponents):
        source, side = 2, b"".join(map(pack_varint, (contexts.count, contexts.top, contexts.shift)))
    else:
        source, side = 0, b""
    return (
        bytes([found.residue | source << 2])
        + side
        + bytes([len(found.planes)])
        + b"".join(map(_pack_plane, found.planes))
    )


def unpack_bitplanes(payload: bytes | memoryview, count: int, width: int) -> BitPlanes:
    """The planes of `count` ≥ 1 entries of `width` bytes.

    Raises:
        ValueError: The payload is damaged, or its bytes are too few for so many entries.
    """
    cursor = Cursor(payload)
    kinds = cursor.byte()
    if kinds & 3 > Residue.XOR or kinds >> 2 > 2:
        raise ValueError(f"planes of a kind {kinds} that is unknown to this trueaxis; install a newer version")
    contexts: ScaleCodes | BaseExponents | None = None
    if kinds >> 2 == 1:
        contexts = _scale_codes(cursor, count)
    elif kinds >> 2 == 2:
        contexts = BaseExponents(
            count=cursor.varint(MOST_CONTEXTS), top=cursor.varint(1 << 16), shift=cursor.varint(64)
        )
    tables = 1 if contexts is None else contexts.count
    number = cursor.byte()
    if not 1 <= number <= MOST_PLANES or not 1 <= tables <= MOST_CONTEXTS:
        raise ValueError(f"{number} planes and {tables} contexts; expected 1 to {MOST_PLANES} and {MOST_CONTEXTS}")
    planes = tuple(_unpack_plane(cursor, count, tables) for _ in range(number))
    if cursor.left():
        raise ValueError(f"{cursor.left()} bytes are left over after the planes")
    if count > ZEROS_LIMIT and all(plane.kind == Kind.ZERO for plane in planes):
        raise ValueError(f"no bytes stand for {count} entries")
    return BitPlanes(Residue(kinds & 3), contexts, planes)


def _scale_codes(cursor: Cursor, count: int) -> ScaleCodes:
    number, columns, coded = cursor.varint(MOST_CONTEXTS), cursor.varint(count), cursor.run()
    if columns < 1 or count % columns:
        raise ValueError(f"{count} entries do not make rows of {columns}")
    return ScaleCodes(*unpack_codes(coded, count // columns, columns), number)


def _pack_plane(plane: Plane) -> bytes:
    head = bytes([plane.bits | plane.kind << 5 | plane.with_contexts << 7])
    if plane.kind != Kind.CODED:
        return head + plane.data.tobytes()
    tables = pack_tables(plane.frequencies, plane.step)
    escapes = pack_varint(len(plane.escapes) // 2) + plane.escapes
    head += bytes([plane.lanes_log2]) + pack_varint(plane.offset)
    return head + escapes + tables + pack_varint(len(plane.data)) + plane.data.tobytes()


def _unpack_plane(cursor: Cursor, count: int, contexts: int) -> Plane:
    head = cursor.byte()
    bits, kind, with_contexts = head & 31, head >> 5 & 3, bool(head >> 7)
    if kind not in tuple(Kind) or (kind != Kind.CODED and with_contexts):
        raise ValueError(f"a plane of kind {head >> 5} is unknown to this trueaxis; install a newer version")
    if kind != Kind.CODED:
        return Plane(bits, Kind(kind), cursor.view((count * bits + 7) // 8 if kind == Kind.RAW else 0))
    lanes_log2, offset = cursor.byte(), cursor.varint((1 << 16) - 1)
    if lanes_log2 > MOST_LANES_LOG2:
        raise ValueError(f"2^{lanes_log2} lanes of a plane; expected at most 64")
    escapes = cursor.take(2 * cursor.varint(1 << 48))
    frequencies, step = unpack_tables(cursor, contexts if with_contexts else 1)
    data = cursor.view(cursor.varint(1 << 62))
    # a lane's state, and every word, lasts for so many entries of the likeliest symbol
    lasting = 12 * TOTAL // (TOTAL - int(frequencies.max())) + 1
    if count > (len(data) // 2 - (1 << lanes_log2)) * lasting:
        raise ValueError(f"{len(data)} bytes are too few for {count} entries")
    return Plane(bits, Kind.CODED, data, with_contexts, lanes_log2, offset, escapes, frequencies, step)
