"""The model record: golden text, and a limit on every number, before anything is allocated."""

from __future__ import annotations

import json
import struct
import tracemalloc
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueaxis.header import (
    DTYPES,
    EXACT_DTYPES,
    TensorInfo,
    config_hash,
    is_tensor_name,
    pack_model_record,
    parse_model_record,
    tensor_list,
)
from trueaxis.record import Record, RecordType
from trueaxis.types import FormatError, TrueaxisError

FACTS: dict[str, Any] = {
    "version": 1, "parameters": 12, "model_bytes": 20, "config": "0" * 32, "config_bytes": 9, "copied": ["a.json"],
    "gauge": [], "recipe": {"version": 0}, "sketch": [5], "tensors": [["w", [3, 4], "F32", 30]],
}  # fmt: skip
HASHES = [bytes(range(16))]
GOLDEN_TEXT = (
    b'{"config":"00000000000000000000000000000000","config_bytes":9,"copied":["a.json"],"gauge":[],"model_bytes":20,'
    b'"parameters":12,"recipe":{"version":0},"sketch":[5],"tensors":[["w",[3,4],"F32",30]],"version":1}'
)
ABSURD = [None, True, -1, 1.5, "", "x", [], {}, [1], 1 << 63, 1 << 64, 10**400, float("nan"), float("inf")]
json_values = st.recursive(
    st.sampled_from(ABSURD) | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=9,
)


def record_of(text: bytes, count: int = 1, hashes: list[bytes] = HASHES) -> Record:
    return Record(RecordType.MODEL, struct.pack("<I", count) + b"".join(hashes) + zlib.compress(text, 9))


def parse(facts: Any) -> dict[str, TensorInfo]:
    header, hashes = parse_model_record(record_of(json.dumps(facts).encode()), "h")
    assert hashes == HASHES
    return tensor_list(header, [50], "h")


def with_row(**changes: Any) -> dict[str, Any]:
    row = dict(zip(("name", "shape", "dtype", "length"), FACTS["tensors"][0], strict=True))
    return {**FACTS, "tensors": [list({**row, **changes}.values())]}


def test_golden_bytes() -> None:
    record = pack_model_record(FACTS, HASHES)
    assert record.payload[:20] == struct.pack("<I", 1) + HASHES[0]
    assert zlib.decompress(record.payload[20:]) == GOLDEN_TEXT
    assert parse_model_record(record, "h") == (FACTS, HASHES)
    assert tensor_list(FACTS, [50], "h") == {"w": TensorInfo("w", (3, 4), "F32", 0, 20, 30)}


def test_config_hash_is_of_the_content() -> None:
    assert config_hash({"b": 1, "a": [1e-6, "é"]}) == config_hash({"a": [1e-06, "é"], "b": 1})
    assert config_hash({"a": 1}) == "2c6b113b8dd15ffbded9860b43eb0c6c"
    assert len({config_hash(c) for c in ({"a": 1}, {"a": 1.0}, {"a": True}, {"a": "1"}, {"a": None}, {})}) == 6


@pytest.mark.parametrize("key", sorted(FACTS))
def test_missing_field_is_refused(key: str) -> None:
    rest = {name: value for name, value in FACTS.items() if name != key}
    with pytest.raises(FormatError, match=f"^h: '{key}' is missing"):
        parse(rest)
    with pytest.raises(TrueaxisError, match=key):
        pack_model_record({**rest, "tensors": rest.get("tensors")}, HASHES)


@given(st.sampled_from(sorted(FACTS)), json_values)
def test_any_value_of_any_field_is_read_or_refused(key: str, value: Any) -> None:
    try:
        found = parse({**FACTS, key: value})
    except FormatError as error:
        assert str(error).startswith("h: ")
    else:
        assert found == parse(FACTS)


@given(st.sampled_from(["name", "shape", "dtype", "length"]), json_values)
def test_any_value_in_a_tensor_is_read_or_refused(key: str, value: Any) -> None:
    try:
        (info,) = parse(with_row(**{key: value})).values()
    except FormatError as error:
        assert str(error).startswith("h: ")
    else:
        assert is_tensor_name(info.name)
        assert info.size < 1 << 49
        assert info.dtype in DTYPES + EXACT_DTYPES
        assert (info.shard, info.offset, info.length) == (0, 20, 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [2**40, 2**40]}, "w: shape"),
        ({"shape": [2**40, 2**40, 0]}, "w: shape"),
        ({"shape": [-1]}, "w: shape"),
        ({"shape": [1] * 9}, "w: shape"),
        ({"shape": "12"}, "w: shape"),
        ({"dtype": "C64"}, "w: dtype"),
        ({"dtype": ["F32"]}, "w: dtype"),
        ({"length": 6}, "w: length 6"),
        ({"length": 30.0}, r"w: length 30\.0"),
        ({"length": 2**60}, "w: its records pass the end of shard 1"),
        ({"length": 31}, "w: its records pass the end of shard 1"),
        ({"length": 29}, "records fill 49 bytes of shard 1"),
    ],
)
def test_absurd_tensor_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse(with_row(**changes))


@pytest.mark.parametrize(
    "name",
    ["", "..", "../w", "a/../b", "a..b", "/etc/passwd", "a/b", "a\\b", "a\nb", "a\0b", "\x1b[31mred", "\x7f", "\u202ew",
     "\ud800", "__metadata__", "x" * 513, 7, None, ["w"]],
)  # fmt: skip
def test_names_that_are_paths_or_unprintable_are_refused(name: Any) -> None:
    with pytest.raises(FormatError, match="is no tensor name") as caught:
        parse(with_row(name=name))
    assert str(caught.value).isprintable()
    if name not in ("__metadata__",):
        with pytest.raises(FormatError, match="'copied'"):
            parse({**FACTS, "copied": [name]})
    if isinstance(name, str):
        with pytest.raises(TrueaxisError, match="names must be printable"):
            pack_model_record(with_row(name=name), HASHES)


@pytest.mark.parametrize("name", ["config.json", "m.safetensors", "m.safetensors.index.json", "code.py", ".hidden"])
def test_copied_files_hold_no_weights_or_code(name: str) -> None:
    with pytest.raises(FormatError, match="'copied'"):
        parse({**FACTS, "copied": [name]})


def test_tensors_fill_one_shard_after_the_other() -> None:
    rows = [["a", [1], "F32", 16], ["b", [1], "F32", 17], ["c", [1], "F32", 30]]
    found = tensor_list({**FACTS, "tensors": rows}, [53, 30], "h")
    assert [(info.shard, info.offset) for info in found.values()] == [(0, 20), (0, 36), (1, 0)]
    for bad in ([*rows, rows[0]], rows[:2], rows[::-1], [*rows, ["d", [1], "F32", 7]], []):
        with pytest.raises(FormatError, match=r"^h: "):
            tensor_list({**FACTS, "tensors": bad}, [53, 30], "h")
    for areas in ([53], [52, 31], [54, 29], [53, 30, 0], [53, 30, 1], [0, 83]):
        with pytest.raises(FormatError, match=r"^h: "):
            tensor_list({**FACTS, "tensors": rows}, areas, "h")


@pytest.mark.parametrize("count", [0, 2, 1 << 28, (1 << 32) - 1])
def test_absurd_count_of_shards_is_refused(count: int) -> None:
    with pytest.raises(FormatError, match=r"^h: "):
        parse_model_record(record_of(GOLDEN_TEXT, count), "h")
    with pytest.raises(FormatError, match="claims 0 shards"):
        parse_model_record(Record(RecordType.MODEL, b"\1\0"), "h")


@pytest.mark.parametrize(
    "text",
    [b" " * (1 << 27), b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b'"\xff"', b"[]", b"null", b"", b"{}{}"],
    ids=["bomb", "brackets", "objects", "digits", "utf8", "list", "null", "empty", "two"],
)
def test_hostile_text_takes_no_memory(text: bytes) -> None:
    record = record_of(text)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=r"^h: "):
            parse_model_record(record, "h")
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_damaged_compression_is_refused() -> None:
    payload = record_of(GOLDEN_TEXT).payload
    for damaged in (*(payload[:length] for length in range(len(payload))), payload + b"\0"):
        with pytest.raises(FormatError, match=r"^h: "):
            parse_model_record(Record(RecordType.MODEL, damaged), "h")


def test_other_record_or_newer_version_is_refused() -> None:
    good = record_of(GOLDEN_TEXT)
    with pytest.raises(FormatError, match="first record has type 19"):
        parse_model_record(Record(RecordType.PLANES, good.payload), "h")
    with pytest.raises(FormatError, match="format version 2; install a newer version"):
        parse_model_record(Record(RecordType.MODEL, good.payload, version=2), "h")
    with pytest.raises(FormatError, match=r"format version 0 was a draft.*compress the original again"):
        parse_model_record(Record(RecordType.MODEL, good.payload, version=0), "h")
