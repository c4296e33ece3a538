"""Right checksums around hostile numbers: every field of every record ends in FormatError or in a decoded tensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forge import Parts, dismantle, forge, memory_limit, residual_fields, residual_payload, write_specimen
from trueaxis import _core
from trueaxis.entropy.model import CLASSES, _body_contexts, _shape_contexts
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.inspection import inspect
from trueaxis.record import Record, RecordType
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.load import verify
from trueaxis.types import FormatError

LIMIT = 200 << 20
numbers = st.sampled_from([0, 1, 2, 31, 32, 33, 127, 128, 1 << 16, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1])
numbers |= st.integers(0, 40)
hostile = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return dismantle(write_specimen(tmp_path_factory.mktemp("specimen") / "out"))


def read_all(path: Path) -> str | None:
    """The refusal of a directory, or None if every tensor decodes; anything else fails the test."""
    with memory_limit(LIMIT):
        try:
            decoder = Decoder(path)
            for name, value in decoder.tensors().items():
                info = decoder.container.tensors[name]
                assert tuple(value.shape) == info.shape
                assert bool(torch.isfinite(value.float()).all())
            verify(path)
            inspect(path)
        except FormatError as error:
            assert len(str(error)) < 2000
            return str(error)
    return None


def test_the_specimen_itself_decodes(parts: Parts, tmp_path: Path) -> None:
    assert read_all(forge(tmp_path, parts)) is None


def changed_record(parts: Parts, name: str, payload: bytes, kind: RecordType | None = None) -> Parts:
    changed = parts.copy()
    (record,) = changed.records[name]
    changed.records[name] = [Record(record.type if kind is None else kind, payload)]
    return changed


@hostile
@given(st.sampled_from(["large", "first", "second"]), st.data())
def test_any_number_in_a_residual(parts: Parts, tmp_path: Path, name: str, data: st.DataObject) -> None:
    fields = residual_fields(parts.records[name][0].payload)
    for key in data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3)):
        if key in ("side", "rest"):
            fields[key] = data.draw(st.binary(max_size=60))
        else:
            small = key in ("trellis", "resolution", "shift", "modes")
            fields[key] = data.draw(st.integers(0, 255) if small else numbers)
    message = read_all(forge(tmp_path, changed_record(parts, name, residual_payload(fields))))
    assert message is None or any(tensor in message for tensor in ("large", "first", "second"))


@hostile
@given(st.integers(0, 3), st.integers(0, 8), st.integers(-(1 << 30) + 1, (1 << 30) - 1), st.booleans())
def test_any_code_in_the_side_information(
    parts: Parts, tmp_path: Path, array: int, entry: int, value: int, differences: bool
) -> None:
    fields = residual_fields(parts.records["large"][0].payload)
    lengths = [10, 19, 10, 7]
    contexts = np.repeat(np.arange(8, dtype=np.uint8), [n for length in lengths for n in (1, length - 1)])
    values = _core.decode_integers(fields["side"], contexts).copy()
    values[sum(lengths[:array]) + entry % lengths[array]] = value
    fields["modes"] = fields["modes"] ^ (differences << array)
    fields["side"] = _core.encode_integers(values, contexts)
    fields["side_bytes"] = len(fields["side"])
    message = read_all(forge(tmp_path, changed_record(parts, "large", residual_payload(fields))))
    assert message is None or "large" in message or "product" in message  # finite values may have an infinite product


@hostile
@given(st.data())
def test_any_number_in_the_tables(parts: Parts, tmp_path: Path, data: st.DataObject) -> None:
    payload = parts.model_records[0].payload
    length, start = unpack_varint(payload, 1)
    shape = _core.decode_integers(payload[start : start + length], _shape_contexts()).copy()
    used = shape[: 2 * CLASSES].reshape(2, CLASSES).astype(np.int64)
    body = _core.decode_integers(payload[start + length :], _body_contexts(used)).copy()
    alphabet = data.draw(st.sampled_from([payload[0]] * 3 + list(range(256))))
    victim = data.draw(st.sampled_from([shape, body]))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, victim.size - 1))
        near = int(victim[at]) + data.draw(st.integers(-3, 3))
        victim[at] = data.draw(st.just(near) | st.integers(-5000, 5000) | st.integers(-(1 << 30) + 1, (1 << 30) - 1))
    head = _core.encode_integers(shape, _shape_contexts())
    claim = data.draw(st.just(len(head)) | numbers)
    coded = _core.encode_integers(body, _body_contexts(used))
    changed = parts.copy()
    changed.model_records[0] = Record(RecordType.TABLES, bytes([alphabet]) + pack_varint(claim) + head + coded)
    read_all(forge(tmp_path, changed))


@hostile
@given(numbers, numbers, st.binary(max_size=80) | st.none())
def test_any_number_in_a_shared_stream(
    parts: Parts, tmp_path: Path, lanes: int, length: int, rest: bytes | None
) -> None:
    payload = parts.model_records[1].payload
    _, position = unpack_varint(payload, 0)
    _, position = unpack_varint(payload, position)
    rest = payload[position:] if rest is None else rest
    changed = parts.copy()
    changed.model_records[1] = Record(RecordType.STREAM, pack_varint(lanes) + pack_varint(length) + rest)
    message = read_all(forge(tmp_path, changed))
    assert (message is None) == (changed.model_records[1] == parts.model_records[1])
    assert message is None or "first" in message


@hostile
@given(
    st.sampled_from(["large", "first", "second", "norm", "tied"]),
    st.lists(st.sampled_from([0, 1, 2, 5, 6, 9, 4096, 1 << 20, 1 << 24, 1 << 40]), max_size=9),
    st.sampled_from(["F64", "F32", "F16", "BF16", "I8"]),
)
def test_any_shape_and_dtype(parts: Parts, tmp_path: Path, name: str, shape: list[int], dtype: str) -> None:
    changed = parts.copy()
    for row in changed.header["tensors"]:
        if row[0] == name:
            row[1:3] = shape, dtype
    message = read_all(forge(tmp_path, changed))
    # the two that share a stream no longer fit it together, whichever of them is read first
    named = ("first", "second") if name in ("first", "second") else (name,)
    assert message is None or any(one in message for one in named)


@hostile
@given(st.sampled_from(["large", "first", "norm", "tied"]), st.sampled_from(list(RecordType)), st.binary(max_size=40))
def test_any_bytes_in_any_type_of_record(
    parts: Parts, tmp_path: Path, name: str, kind: RecordType, payload: bytes
) -> None:
    message = read_all(forge(tmp_path, changed_record(parts, name, payload, kind)))
    # a tensor tied to it, or that shares its stream, may be what is read first
    named = ("tied", *(("first", "second") if name in ("first", "second") else (name,)))
    assert message is None or any(one in message for one in named)


@hostile
@given(st.sampled_from(["reflected", "product"]), st.data())
def test_any_transform(parts: Parts, tmp_path: Path, name: str, data: st.DataObject) -> None:
    """Any bytes in a transform, and transforms in any number and order."""
    changed = parts.copy()
    records = changed.records[name]
    place = data.draw(st.integers(0, len(records) - 1))
    known = st.sampled_from([record.payload for record in records[:-1] if record.type == RecordType.TRANSFORM])
    mixed = st.builds(lambda kind, rest: bytes([kind]) + rest, st.integers(0, 4), st.binary(max_size=12))
    drawn = data.draw(st.lists(known | mixed | st.binary(max_size=40), max_size=12))
    end = data.draw(st.sampled_from([place, place + 1]))
    records[place:end] = [Record(RecordType.TRANSFORM, payload) for payload in drawn]
    message = read_all(forge(tmp_path, changed))
    assert message is None or name in message


@pytest.mark.parametrize("name", ["reflected", "product"])
def test_transforms_are_what_the_format_says(parts: Parts, tmp_path: Path, name: str) -> None:
    decoder, changed = Decoder(forge(tmp_path / "own", parts)), parts.copy()
    bare = [record for record in parts.records[name] if record.type == RecordType.RESIDUAL]
    changed.records[name] = bare
    changed.header["tensors"] = [
        [row[0], [9, 9], "F32", *row[3:]] if row[0] == name == "product" else row for row in changed.header["tensors"]
    ]
    coded = Decoder(forge(tmp_path / "bare", changed)).tensor(name).double()
    for reflection in (lambda w: w @ mirror(w.shape[1]), lambda w: mirror(w.shape[0]) @ w):
        coded = reflection(coded)
    if name == "product":
        coded = decoder.tensor("large", torch.float32).double() @ (coded + 0.5 * torch.eye(9, dtype=torch.float64))
    assert torch.allclose(decoder.tensor(name, torch.float32).double(), coded, rtol=1e-4, atol=1e-4)


def mirror(size: int) -> torch.Tensor:
    v = torch.full((size,), 1 / size**0.5, dtype=torch.float64)
    v[-1] += 1
    return torch.eye(size, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v)


def copy_of_product(parts: Parts) -> None:
    """A second tensor that is a product."""
    parts.records["more"] = parts.records["product"]
    row = next(row for row in parts.header["tensors"] if row[0] == "product")
    parts.header["tensors"].append(["more", *row[1:]])


def inserted(name: str, place: int, kind: int, payload: bytes) -> Callable[[Parts], None]:
    return lambda parts: parts.records[name].insert(place, Record(kind, payload))


def restream(edit: Callable[[list[Record]], None]) -> Callable[[Parts], None]:
    return lambda parts: edit(parts.model_records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (restream(lambda records: records.clear()), "large: the file holds no tables"),
        (restream(lambda records: records.reverse()), "expected tables, then streams"),
        (restream(lambda records: records.insert(1, records[0])), "expected tables, then streams"),
        (restream(lambda records: records.pop()), "first: shared stream 0 is missing"),
        (lambda parts: parts.records["norm"].clear(), "norm: length 0"),
        (lambda parts: parts.records["norm"].extend(parts.records["norm"]), "norm: record type 19 is out of place"),
        (lambda parts: parts.records.update(norm=[Record(99, b"", required=False)]), "norm: expected a record"),
        (lambda parts: parts.records.update(norm=[Record(RecordType.BASE, b"")]), "norm: record type 22 is"),
        (lambda parts: parts.records.update(norm=[Record(24, b"")]), "norm: needs record type 24"),
        (lambda parts: parts.records.update(norm=[Record(23, b"")]), "norm: record type 23 is out of place"),
        (lambda parts: parts.records.update(tied=[Record(RecordType.ALIAS, b"tied")]), "tied: tied to tied"),
        (lambda parts: parts.records.update(tied=[Record(RecordType.ALIAS, b"first")]), "tied: tied to 'first'"),
        (lambda parts: parts.records.update(tied=[Record(RecordType.ALIAS, b"\xff/x")]), "tied: tied to"),
        (lambda parts: parts.records.update(large=[Record(RecordType.ALIAS, b"tied")]), "large: tied to tied"),
        (lambda parts: parts.records.update(norm=[Record(RecordType.PLANES, b"\0" + b"\xff" * 20)]), "norm.*NaN"),
        (lambda parts: parts.records.update(norm=[Record(RecordType.PLANES, b"\1" + bytes(20))]), "norm: planes"),
        (copy_of_product, "product: one tensor may be a product, not product and more"),
        (lambda parts: parts.records.update(large=parts.records["product"]), "tied itself"),
        (inserted("product", 0, 21, b"\0"), "product: record type 20 is out of place"),
        (inserted("product", 5, 20, b"large"), "product: expected a matrix to multiply"),
        (inserted("product", 1, 21, b"\0"), "product: expected a matrix to multiply"),
        (inserted("reflected", 1, 16, b"\0"), "reflected: transform 00 is damaged"),
        (inserted("reflected", 1, 16, b"\2abcd"), "reflected: transform .* for a square"),
        (inserted("reflected", 1, 16, b"\xc8"), "reflected: transform of kind c8 is unknown"),
        (inserted("reflected", 3, 16, b"\1\1"), "reflected: 1 matrices do not make"),
        (lambda parts: parts.overrides.update(model_bytes=1 << 62), "large: its records pass"),
        (lambda parts: parts.overrides.update(model_bytes=0), "records fill"),
    ],
)  # fmt: skip
def test_wrong_structure_is_refused_by_name(
    parts: Parts, tmp_path: Path, change: Callable[[Parts], Any], message: str
) -> None:
    changed = parts.copy()
    change(changed)
    path = forge(tmp_path, changed)
    assert read_all(path) is not None
    with pytest.raises(FormatError, match=message):
        verify(path)


def test_optional_records_of_later_versions_are_skipped(parts: Parts, tmp_path: Path) -> None:
    changed = parts.copy()
    changed.records["norm"].insert(0, Record(99, b"hint", required=False))
    changed.model_records.append(Record(98, b"hint", required=False))
    assert read_all(forge(tmp_path, changed)) is None


def test_step_that_overflows_is_refused(parts: Parts, tmp_path: Path) -> None:
    """Column and row step are both in range, their product is not."""
    header = Decoder(forge(tmp_path, parts)).residuals("first")[0]
    assert header is not None
    assert (header.rows, header.columns, header.grid.resolution) == (3, 5, 8)
    scales = header.contexts.column_codes + 126 * 4  # less what the step predicts
    values = np.array([126 * 8, *[0] * 5, 126 * 8, *[0] * 3, 0, *scales, 0, *[0] * 3], np.int32)
    contexts = np.repeat(np.arange(8, dtype=np.uint8), [1, 5, 1, 3, 1, 5, 1, 3])
    fields = residual_fields(parts.records["first"][0].payload)
    fields["side"] = _core.encode_integers(values, contexts)
    fields["side_bytes"], fields["modes"] = len(fields["side"]), 16
    message = read_all(forge(tmp_path, changed_record(parts, "first", residual_payload(fields))))
    assert message is not None
    assert "first: decodes to NaN or Inf" in message


def test_reading_needs_only_what_is_asked_for(parts: Parts, tmp_path: Path) -> None:
    changed = changed_record(parts, "large", b"")
    decoder = Decoder(forge(tmp_path, changed))
    assert decoder.tensor("norm").tolist() == [1, 2, 3, 4, 5]
    for name in ("large", "tied"):
        with pytest.raises(FormatError, match="large: residual record"):
            decoder.tensor(name)
