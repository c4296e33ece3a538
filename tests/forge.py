"""Compressed directories made by hand: a small good one, and others with right checksums and any numbers in them.

specimen ─▶ directory ─▶ dismantle ─▶ Parts ─▶ (change anything) ─▶ forge ─▶ directory
"""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trueaxis import _core
from trueaxis.container import CONFIG, Container, Entry, _digest, pack_shards, safetensors_head
from trueaxis.entropy.model import CLASSES, MAGNITUDES, ZERO_CLASS, Tables, fit_tables, pack_tables
from trueaxis.entropy.stream import pack_residual, pack_shared, segment
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.header import HASH_BYTES, config_hash
from trueaxis.record import VERSION, Record, RecordType, pack_record
from trueaxis.runtime.matrices import matrix_records
from trueaxis.runtime.transforms import COLUMNS, ROWS, Diagonal, Reflection
from trueaxis.types import Contexts, Grid, Quantized

LANES = 4
SPECIMEN_CONFIG = {"model_type": "none", "quantization_config": {"quant_method": "trueaxis", "version": VERSION}}


def make_quantized(rng: np.random.Generator, rows: int, columns: int, trellis: int = 0, group: int = 0) -> Quantized:
    """A matrix of Laplacian indices whose columns differ in scale."""
    octaves = rng.integers(-2, 5, columns)
    indices = np.rint(rng.laplace(size=(columns, rows)) * 2.0 ** octaves[:, None]).astype(np.int32)
    group = group or columns
    row_codes = rng.integers(-3, 4, (rows, -(-columns // group))).astype(np.int32)
    grid = Grid(rng.integers(-40, 9, columns).astype(np.int32), row_codes, 8, group)
    contexts = Contexts(np.zeros(rows, np.int32), (ZERO_CLASS + 4 * octaves).astype(np.int32), 0)
    return Quantized(indices, grid, contexts, trellis)


def make_tables(matrices: list[Quantized]) -> Tables:
    """Tables fitted to these matrices, with offsets that are not zero."""
    counts = _core.count_symbols(CLASSES, MAGNITUDES[-1], [segment(matrix) for matrix in matrices])
    return fit_tables(counts, np.full((2, CLASSES, 2), 3, np.int8))


def write_specimen(path: Path, shard_bytes: int = 10**9) -> Path:
    """One tensor of every kind: own streams, two in a shared stream, exact, tied, reflected, another times a matrix."""
    rng = np.random.default_rng(5)
    large, *small = make_quantized(rng, 6, 9, 2, 4), make_quantized(rng, 3, 5), make_quantized(rng, 4, 2, 1)
    turned = [make_quantized(rng, 4, 3, 1), make_quantized(rng, 9, 9)]
    tables = make_tables([large, *small, *turned])
    norm = np.arange(1, 6, dtype="<f4").tobytes()
    residuals = [pack_residual(large, tables, LANES, 24), *(pack_residual(m, tables, LANES, 24, 0) for m in small)]
    entries = [
        Entry(name, shape, "BF16", (Record(RecordType.RESIDUAL, payload),))
        for name, shape, payload in zip(("large", "first", "second"), ((6, 9), (3, 5), (4, 2)), residuals, strict=True)
    ]
    entries.append(Entry("norm", (5,), "F32", (Record(RecordType.PLANES, b"\0" + norm),)))
    entries.append(Entry("tied", (6, 9), "BF16", (Record(RecordType.ALIAS, b"large"),)))
    reflected, factor = (pack_residual(matrix, tables, LANES, 24) for matrix in turned)
    steps = (Reflection(COLUMNS), Reflection(ROWS), Diagonal(0.5))
    entries.append(Entry("reflected", (4, 3), "F32", matrix_records(reflected, None, False, steps[:2])))
    entries.append(Entry("product", (6, 9), "BF16", matrix_records(factor, None, False, steps, "large")))
    model_records = [
        Record(RecordType.TABLES, pack_tables(tables)),
        Record(RecordType.STREAM, pack_shared(small, tables, LANES)),
    ]
    facts = {
        "parameters": 148, "config": config_hash(SPECIMEN_CONFIG), "config_bytes": 2, "copied": [],
        "gauge": [], "recipe": {}, "sketch": [7, 1 << 20],
    }  # fmt: skip
    path.mkdir()
    for name, data in pack_shards(facts, model_records, entries, shard_bytes).items():
        (path / name).write_bytes(b"".join(data))
    (path / CONFIG).write_text(json.dumps(SPECIMEN_CONFIG))
    return path


@dataclass
class Parts:
    """A compressed directory of one shard taken apart; `overrides` of the header win over what is computed."""

    config: dict[str, Any]
    header: dict[str, Any]
    model_records: list[Record]
    records: dict[str, list[Record]]
    overrides: dict[str, Any] = field(default_factory=dict)

    def copy(self) -> Parts:
        """Changes of the copy leave this one alone."""
        return copy.deepcopy(self)


def dismantle(path: Path) -> Parts:
    """Inverse of `forge`."""
    container = Container(path)
    records = {name: container.records(name) for name in container.tensors}
    return Parts(container.config, container.header, container.model_records(), records)


def tensor_rows(parts: Parts) -> list[list[Any]]:
    """The header's list of tensors with lengths that fit the records."""
    return [
        [name, shape, dtype, sum(record.stored_bytes for record in parts.records[name])]
        for name, shape, dtype, _ in parts.header["tensors"]
    ]


def forge(path: Path, parts: Parts) -> Path:
    """Writes the parts with right lengths, checksums and hashes; nothing in them is checked."""
    model = b"".join(map(pack_record, parts.model_records))
    area = model + b"".join(pack_record(record) for records in parts.records.values() for record in records)
    header = {**parts.header, "model_bytes": len(model), "tensors": tensor_rows(parts)}
    header = {**header, "config": config_hash(parts.config), **parts.overrides}
    text = zlib.compress(json.dumps(header).encode(), 9)
    length = len(pack_record(Record(RecordType.MODEL, bytes(4 + HASH_BYTES) + text))) + len(area)
    head = safetensors_head(0, length)
    first = pack_record(Record(RecordType.MODEL, struct.pack("<I", 1) + _digest(head, area) + text))
    path.mkdir(exist_ok=True)
    (path / "model.safetensors").write_bytes(head + first + area)
    (path / CONFIG).write_text(json.dumps(parts.config))
    return path


RESIDUAL_BYTES = ("trellis", "resolution", "shift", "modes")
RESIDUAL_NUMBERS = ("group", "lanes", "strips", "shared", "side_bytes")


def residual_fields(payload: bytes) -> dict[str, Any]:
    """Every field of a residual record by name; `lengths` and `rest` are what follows the side information."""
    fields: dict[str, Any] = dict(zip(RESIDUAL_BYTES, payload[:4], strict=True))
    position = 4
    for name in RESIDUAL_NUMBERS:
        fields[name], position = unpack_varint(payload, position)
    fields["side"], position = payload[position : position + fields["side_bytes"]], position + fields["side_bytes"]
    return {**fields, "rest": payload[position:]}


def residual_payload(fields: Mapping[str, Any]) -> bytes:
    """Inverse of `residual_fields`."""
    head = bytes(fields[name] for name in RESIDUAL_BYTES)
    return head + b"".join(pack_varint(fields[name]) for name in RESIDUAL_NUMBERS) + fields["side"] + fields["rest"]


@contextmanager
def memory_limit(extra_bytes: int) -> Iterator[None]:
    """Within, the process may map this much more memory than now; beyond, allocations fail."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
