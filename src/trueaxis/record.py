"""Records: typed, checksummed pieces of a file, each in a frame of 16 bytes.

    record = [type u16 | version u8 | flags u8 | crc32 u32 | length u64] payload        little-endian

A run of records is self-delimiting. What a reader does not know it skips if the record is optional and refuses if it is
required, so that a file written by a newer version is either read right or not at all.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from trueaxis.types import FormatError

VERSION = 0
FRAME = struct.Struct("<HBBIQ")
REQUIRED = 1  # flag: a reader that does not know the record must refuse


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


MODEL_TYPES = frozenset({RecordType.TABLES, RecordType.STREAM})
TENSOR_TYPES = frozenset(
    {RecordType.TRANSFORM, RecordType.RESIDUAL, RecordType.PLANES, RecordType.ALIAS, RecordType.SLICE}
)


@dataclass(frozen=True)
class Record:
    """A typed, checksummed piece of a file."""

    type: int
    payload: bytes
    version: int = VERSION
    flags: int = REQUIRED

    @property
    def stored_bytes(self) -> int:
        """Bytes in the file, frame included."""
        return FRAME.size + len(self.payload)


def pack_record(record: Record) -> bytes:
    """Frame and payload; the checksum covers both, itself excepted.

    Example:
        >>> pack_record(Record(RecordType.ALIAS, b"w")).hex()
        '14000001a55ea3e9010000000000000077'
    """
    frame = FRAME.pack(record.type, record.version, record.flags, 0, len(record.payload))
    crc = zlib.crc32(record.payload, zlib.crc32(frame))
    return FRAME.pack(record.type, record.version, record.flags, crc, len(record.payload)) + record.payload


def parse_record(data: bytes | memoryview, position: int, where: str) -> tuple[Record, int]:
    """The record at `position` and the position after it.

    Raises:
        FormatError: Truncated or damaged; the message begins with `where`.
    """
    if position + FRAME.size > len(data):
        raise FormatError(f"{where}: truncated inside a record frame")
    kind, version, flags, crc, length = FRAME.unpack_from(data, position)
    start = position + FRAME.size
    if length > len(data) - start:
        raise FormatError(f"{where}: a record claims {length} bytes, {len(data) - start} are left; the file is damaged")
    payload = bytes(data[start : start + length])
    if zlib.crc32(payload, zlib.crc32(FRAME.pack(kind, version, flags, 0, length))) != crc:
        raise FormatError(f"{where}: checksum mismatch; the file is damaged, download it again")
    return Record(kind, payload, version, flags), start + length


def parse_records(data: bytes | memoryview, known: frozenset[RecordType], where: str) -> Iterator[Record]:
    """Records of a run of bytes, each checked; optional ones outside `known` are skipped.

    Raises:
        FormatError: Truncated, damaged, an unknown required record, or unknown flags.
    """
    position = 0
    while position < len(data):
        record, position = parse_record(data, position, where)
        if record.flags & ~REQUIRED:
            raise FormatError(f"{where}: unknown flags {record.flags:#x}; install a newer version of trueaxis")
        if record.type in known and record.version <= VERSION:
            yield record
        elif record.flags & REQUIRED:
            raise FormatError(
                f"{where}: needs record type {record.type} version {record.version}, which this trueaxis cannot read "
                "here; install a newer version"
            )
