"""Records: golden bytes, and nothing but the exact bytes is accepted."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueaxis.entropy.varint import pack_varint
from trueaxis.record import (
    HEAD,
    MODEL_TYPES,
    REQUIRED,
    TENSOR_TYPES,
    VERSION,
    Record,
    RecordType,
    pack_record,
    parse_record,
    parse_records,
)
from trueaxis.types import FormatError

GOLDEN = "138112b99dbb03000102"
RESERVED = set(RecordType) - MODEL_TYPES - TENSOR_TYPES - {RecordType.MODEL}


def test_golden_bytes() -> None:
    packed = pack_record(Record(RecordType.PLANES, b"\0\1\2"))
    assert packed.hex() == GOLDEN
    crc = zlib.crc32(bytes.fromhex("1381" + "00000000" + "03" + "000102"))
    assert struct.unpack_from("<I", packed, 2)[0] == crc


def test_numbers_of_types_are_part_of_the_format() -> None:
    assert {kind.name.lower(): int(kind) for kind in RecordType} == {
        "model": 1, "tables": 2, "stream": 3, "transform": 16, "function": 17, "residual": 18, "planes": 19,
        "alias": 20, "slice": 21, "base": 22, "tangent": 23,
    }  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(sorted(TENSOR_TYPES)), st.binary(max_size=40)), max_size=5))
def test_round_trip(contents: list[tuple[RecordType, bytes]]) -> None:
    records = [Record(kind, payload) for kind, payload in contents]
    data = b"".join(map(pack_record, records))
    assert sum(record.stored_bytes for record in records) == len(data)
    assert list(parse_records(data, TENSOR_TYPES, "w")) == records


def test_every_truncation_is_refused() -> None:
    data = pack_record(Record(RecordType.ALIAS, b"name"))
    for length in range(1, len(data)):
        with pytest.raises(FormatError, match=r"^w: "):
            list(parse_records(data[:length], TENSOR_TYPES, "w"))


def test_every_flipped_bit_is_refused() -> None:
    data = pack_record(Record(RecordType.ALIAS, b"name"))
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError, match=r"^w: "):
            list(parse_records(bytes(damaged), TENSOR_TYPES, "w"))


@pytest.mark.parametrize("length", [1, 1 << 31, 1 << 60, (1 << 63) - 1])
def test_absurd_length_is_refused(length: int) -> None:
    with pytest.raises(FormatError, match=f"claims {length} bytes, 0 are left"):
        parse_record(HEAD.pack(RecordType.PLANES, REQUIRED | VERSION, 0) + pack_varint(length), 0, "w")


@pytest.mark.parametrize("kind", [*sorted(RESERVED), 0, 24, 255])
def test_unknown_types_are_refused_where_required_and_skipped_where_optional(kind: int) -> None:
    known = Record(RecordType.ALIAS, b"x")
    optional = pack_record(Record(kind, b"later", required=False)) + pack_record(known)
    assert list(parse_records(optional, TENSOR_TYPES, "w")) == [known]
    with pytest.raises(FormatError, match=f"^w: needs record type {kind} version 1.*newer"):
        list(parse_records(pack_record(Record(kind, b"later")), TENSOR_TYPES, "w"))


@pytest.mark.parametrize("version", [0, 2, 127])
def test_other_versions_are_refused(version: int) -> None:
    with pytest.raises(FormatError, match=f"type 18 version {version}.*newer"):
        list(parse_records(pack_record(Record(RecordType.RESIDUAL, b"", version=version)), TENSOR_TYPES, "w"))


def test_length_of_a_payload_has_one_form() -> None:
    """The checksum of a frame with a longer form of its length may be right; it is refused all the same."""
    data = pack_record(Record(RecordType.ALIAS, b"x"))
    with pytest.raises(FormatError, match="longer than it needs to be"):
        parse_record(data[: HEAD.size] + b"\x81\0x", 0, "w")


def test_records_of_the_model_and_of_tensors_do_not_mix() -> None:
    with pytest.raises(FormatError, match="cannot read here"):
        list(parse_records(pack_record(Record(RecordType.TABLES, b"")), TENSOR_TYPES, "w"))
    with pytest.raises(FormatError, match="cannot read here"):
        list(parse_records(pack_record(Record(RecordType.PLANES, b"")), MODEL_TYPES, "w"))
