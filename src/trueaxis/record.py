"""Records: typed, checksummed pieces of a file, each in a frame of 7 bytes or a few more.

    record = [type u8 | 128 · required + version u8 | crc32 u32 | length varint] payload        little-endian

A run of records is self-delimiting. What a reader does not know it skips if the record is optional and refuses if it is
required, so that a file written by a newer version is either read right or not at all.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from trueaxis.entropy.varint import LONGEST, pack_varint, unpack_varint
from trueaxis.types import FormatError

VERSION = 1
DRAFT = 0  # of the version before the first that stays
HEAD = struct.Struct("<BBI")
SMALLEST_FRAME, LARGEST_FRAME = HEAD.size + 1, HEAD.size + LONGEST
USUAL_FRAME = HEAD.size + 2  # bytes beside a payload of 128 to 16,383
REQUIRED = 128  # flag: a reader that does not know the record must refuse


class RecordType(IntEnum):
    """Numbers of record types; 1–15 belong to the model, 16 and up to one tensor."""

    MODEL = 1
    TABLES = 2
    STREAM = 3
    TRANSFORM = 16
    FUNCTION = 17
    RESIDUAL = 18
    PLANES = 19
    ALIAS = 20
    SLICE = 21
    BASE = 22
    TANGENT = 23


MODEL_TYPES = frozenset({RecordType.TABLES, RecordType.STREAM})
TENSOR_TYPES = frozenset(
    {
        RecordType.TRANSFORM,
        RecordType.FUNCTION,
        RecordType.RESIDUAL,
        RecordType.PLANES,
        RecordType.ALIAS,
        RecordType.SLICE,
        RecordType.BASE,
        RecordType.TANGENT,
    }
)


@dataclass(frozen=True)
class Record:
    """A typed, checksummed piece of a file."""

    type: int
    payload: bytes
    version: int = VERSION
    required: bool = True

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file, frame included."""
        return HEAD.size + len(pack_varint(len(self.payload))) + len(self.payload)


@dataclass(frozen=True)
class Frame:
    """What stands before a payload; `mark` is 128 · required + version, `start` where the payload begins."""

    type: int
    mark: int
    crc: int
    length: int
    start: int


def pack_record(record: Record) -> bytes:
    """Frame and payload; the checksum covers both, itself excepted.

    Example:
        >>> pack_record(Record(RecordType.ALIAS, b"w")).hex()
        '148120d4c8640177'
    """
    return pack_frame(record) + record.payload


def pack_frame(record: Record) -> bytes:
    """What stands before the payload."""
    mark = REQUIRED * record.required + record.version
    head = HEAD.pack(record.type, mark, _checksum(record.type, mark, record.payload))
    return head + pack_varint(len(record.payload))


def _checksum(kind: int, mark: int, payload: bytes) -> int:
    """CRC-32 of the frame, a zero in its place, and the payload."""
    return zlib.crc32(payload, zlib.crc32(HEAD.pack(kind, mark, 0) + pack_varint(len(payload))))


def parse_frame(data: bytes | memoryview, position: int, where: str) -> Frame:
    """The frame at `position`.

    Raises:
        FormatError: Truncated or damaged; the message begins with `where`.
    """
    head = bytes(data[position : position + LARGEST_FRAME])
    try:
        kind, mark, crc = HEAD.unpack_from(head)
        length, size = unpack_varint(head, HEAD.size)
    except (struct.error, ValueError) as error:
        raise FormatError(f"{where}: damaged or truncated inside a record frame: {error}") from error
    return Frame(kind, mark, crc, length, position + size)


def parse_record(data: bytes | memoryview, position: int, where: str) -> tuple[Record, int]:
    """The record at `position` and the position after it.

    Raises:
        FormatError: Truncated or damaged; the message begins with `where`.
    """
    frame = parse_frame(data, position, where)
    left = len(data) - frame.start
    if frame.length > left:
        raise FormatError(f"{where}: a record claims {frame.length} bytes, {left} are left; the file is damaged")
    end = frame.start + frame.length
    payload = bytes(data[frame.start : end])
    if _checksum(frame.type, frame.mark, payload) != frame.crc:
        raise FormatError(f"{where}: checksum mismatch; the file is damaged, download it again")
    return Record(frame.type, payload, frame.mark & ~REQUIRED, bool(frame.mark & REQUIRED)), end


def parse_records(data: bytes | memoryview, known: frozenset[RecordType], where: str) -> Iterator[Record]:
    """Records of a run of bytes, each checked; optional ones outside `known` are skipped.

    Raises:
        FormatError: Truncated, damaged, or an unknown required record.
    """
    position = 0
    while position < len(data):
        record, position = parse_record(data, position, where)
        if record.type in known and record.version == VERSION:
            yield record
        elif record.required:
            raise FormatError(
                f"{where}: needs record type {record.type} version {record.version}, which this trueaxis cannot read "
                "here; install a newer version"
            )
