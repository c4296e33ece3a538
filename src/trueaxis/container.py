"""Container: records to shards of safetensors and back, every byte of them covered by a checksum or a hash.

    shard = safetensors file with one tensor `trueaxis.NNNNN` of bytes = record*
    record = [type u16 | version u8 | flags u8 | crc32 u32 | length u64] payload        little-endian, 16 bytes of frame

The first record of the first shard is the `model` record: a zlib-compressed JSON header that lists every tensor, its
extent, and a hash of all the bytes that no checksum covers. The specification is docs/format.md.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from trueaxis.types import FormatError

VERSION = 0
FRAME = struct.Struct("<HBBIQ")
REQUIRED = 1  # flag: a reader that does not know the record must refuse
HEADER_LIMIT = 1 << 26  # bytes of the JSON header after decompression
HASH_BYTES = 16
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


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


KNOWN = {
    RecordType.MODEL,
    RecordType.TABLES,
    RecordType.STREAM,
    RecordType.RESIDUAL,
    RecordType.PLANES,
    RecordType.ALIAS,
}


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


@dataclass(frozen=True)
class Entry:
    """One tensor of the original checkpoint and its records."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    records: tuple[Record, ...]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all its records."""
        return sum(record.stored_bytes for record in self.records)


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    shard: int
    offset: int
    length: int


def pack_record(record: Record) -> bytes:
    """Frame and payload; the checksum covers both, itself excepted."""
    frame = FRAME.pack(record.type, record.version, record.flags, 0, len(record.payload))
    crc = zlib.crc32(record.payload, zlib.crc32(frame))
    return FRAME.pack(record.type, record.version, record.flags, crc, len(record.payload)) + record.payload


def parse_records(data: bytes, where: str) -> Iterator[Record]:
    """Records of a run of bytes, each checked.

    Raises:
        FormatError: Truncated, damaged, or an unknown required record.
    """
    position = 0
    while position < len(data):
        record, position = parse_record(data, position, where)
        if record.type not in KNOWN or record.version > VERSION:
            if record.flags & REQUIRED:
                raise FormatError(
                    f"{where}: needs record type {record.type} version {record.version}, which this trueaxis cannot "
                    "read; install a newer version"
                )
            continue
        yield record


def parse_record(data: bytes, position: int, where: str) -> tuple[Record, int]:
    """The record at `position` and the position after it."""
    if position + FRAME.size > len(data):
        raise FormatError(f"{where}: truncated inside a record frame")
    kind, version, flags, crc, length = FRAME.unpack_from(data, position)
    start = position + FRAME.size
    if length > len(data) - start:
        raise FormatError(f"{where}: a record claims {length} bytes, {len(data) - start} are left; the file is damaged")
    payload = data[start : start + length]
    if zlib.crc32(payload, zlib.crc32(FRAME.pack(kind, version, flags, 0, length))) != crc:
        raise FormatError(f"{where}: checksum mismatch; the file is damaged, download it again")
    return Record(kind, payload, version, flags), start + length


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of a config.json's content, independent of its formatting."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=HASH_BYTES).hexdigest()


def pack_shards(
    header: Mapping[str, Any], model_records: list[Record], entries: list[Entry], shard_bytes: int
) -> dict[str, bytes]:
    """All weight files of a compressed model, by file name.

    Args:
        header: JSON-compatible facts of the model; `tensors`, `model_bytes` and `version` are added here.
        model_records: Tables and shared streams, stored after the `model` record.
        entries: Every tensor, in order; shared streams are read in this order.
        shard_bytes: A new shard starts before this many bytes of records are exceeded.
    """
    groups = _split(entries, shard_bytes)
    tensors: list[Any] = []
    areas = []
    for number, group in enumerate(groups):
        area = b"".join(map(pack_record, model_records)) if number == 0 else b""
        for entry in group:
            data = b"".join(map(pack_record, entry.records))
            tensors.append([entry.name, list(entry.shape), entry.dtype, number, len(area), len(data)])
            area += data
        areas.append(area)
    model_bytes = sum(record.stored_bytes for record in model_records)
    facts = {**header, "version": VERSION, "model_bytes": model_bytes, "tensors": tensors}
    first = _model_record(facts, ["0" * 2 * HASH_BYTES] * len(areas))
    heads = [_safetensors_head(n, len(a) + (len(first) if n == 0 else 0)) for n, a in enumerate(areas)]
    hashes = [_hash(head, area) for head, area in zip(heads, areas, strict=True)]
    first = _model_record(facts, hashes)
    names = shard_names(len(areas))
    files = {
        name: head + (first if number == 0 else b"") + area
        for number, (name, head, area) in enumerate(zip(names, heads, areas, strict=True))
    }
    if len(areas) > 1:
        files[INDEX] = index_file(names, sum(map(len, areas)) + len(first))
    return files


def shard_names(count: int) -> list[str]:
    """File names of the shards, as Hugging Face has them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]


def index_file(names: list[str], total: int) -> bytes:
    """model.safetensors.index.json of a sharded model."""
    weight_map = {_tensor_name(number): name for number, name in enumerate(names)}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, separators=(",", ":")).encode()


def _split(entries: list[Entry], shard_bytes: int) -> list[list[Entry]]:
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        if groups[-1] and filled + entry.stored_bytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += entry.stored_bytes
    return groups


def _tensor_name(number: int) -> str:
    return f"trueaxis.{number + 1:05d}"


def _model_record(facts: Mapping[str, Any], hashes: list[str]) -> bytes:
    """The model record: count of shards, their raw hashes, compressed JSON; its size does not depend on the hashes."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    raw = b"".join(map(bytes.fromhex, hashes))
    return pack_record(Record(RecordType.MODEL, struct.pack("<I", len(hashes)) + raw + zlib.compress(text, 9)))


def _safetensors_head(number: int, length: int) -> bytes:
    """Length prefix and header of a safetensors file with one U8 tensor, padded as the library pads."""
    document = {
        "__metadata__": {"format": "pt"},
        _tensor_name(number): {"dtype": "U8", "shape": [length], "data_offsets": [0, length]},
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _hash(head: bytes, area: bytes) -> str:
    return hashlib.blake2b(head + area, digest_size=HASH_BYTES).hexdigest()


class Container:
    """A compressed directory opened for reading.

    Args:
        path: The directory.

    Raises:
        FormatError: config.json or a shard is missing, truncated, or does not match the header.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = read_config(self.path)
        self._heads: list[bytes] = []
        self._files: list[Path] = []
        first = self._open_shard(self._first_shard(), 0)
        record, self._model_end = parse_record(first, 0, f"{self._files[0]}: model header")
        if record.type != RecordType.MODEL or record.version > VERSION:
            raise FormatError(f"{self._files[0]}: not a trueaxis model of version {VERSION} or older")
        self.header, hashes = _parse_header(record.payload, str(self._files[0]))
        self._hashes = hashes
        self._areas = [first[self._model_end :]]
        names = shard_names(len(hashes))
        if names[0] != self._files[0].name:
            raise FormatError(f"{self._files[0]}: the header counts {len(hashes)} shards, the file name says otherwise")
        for number, name in enumerate(names[1:], start=1):
            self._areas.append(self._open_shard(self.path / name, number))
        self._check_frame(names)
        self.tensors = {info.name: info for info in self._tensor_list()}

    def _first_shard(self) -> Path:
        single = self.path / shard_names(1)[0]
        if single.is_file():
            return single
        found = sorted(self.path.glob("model-00001-of-*.safetensors"))
        if len(found) != 1:
            raise FormatError(f"{self.path}: no model.safetensors; is this a directory written by trueaxis?")
        return found[0]

    def _open_shard(self, file: Path, number: int) -> bytes:
        from safetensors import SafetensorError, safe_open

        if not file.is_file():
            raise FormatError(f"{file}: shard is missing")
        try:
            with safe_open(str(file), framework="numpy") as shard:
                if list(shard.keys()) != [_tensor_name(number)]:
                    raise FormatError(f"{file}: header lists {list(shard.keys())[:3]}, expected {_tensor_name(number)}")
                data = shard.get_tensor(_tensor_name(number)).tobytes()
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{file}: not a complete safetensors file (header): {error}") from error
        head = _safetensors_head(number, len(data))
        with open(file, "rb") as stream:
            if stream.read(len(head)) != head or file.stat().st_size != len(head) + len(data):
                raise FormatError(
                    f"{file}: safetensors header differs from the one trueaxis writes; the file is damaged"
                )
        self._heads.append(head)
        self._files.append(file)
        return data

    def _check_frame(self, names: list[str]) -> None:
        if config_hash(self.config) != self.header.get("config"):
            raise FormatError(
                f"{self.path / CONFIG}: content differs from what was compressed; restore the original file"
            )
        if len(names) > 1:
            index = self.path / INDEX
            total = sum(map(len, self._areas)) + self._model_end
            if not index.is_file() or index.read_bytes() != index_file(names, total):
                raise FormatError(f"{index}: missing or damaged")

    def _tensor_list(self) -> list[TensorInfo]:
        infos = []
        try:
            for name, shape, dtype, shard, offset, length in self.header["tensors"]:
                info = TensorInfo(
                    str(name), tuple(int(s) for s in shape), str(dtype), int(shard), int(offset), int(length)
                )
                if min((*info.shape, info.shard, info.offset, info.length), default=0) < 0:
                    raise ValueError(f"{name}: a negative number")
                if info.offset + info.length > len(self._areas[info.shard]):
                    raise ValueError(f"{name}: extent lies outside its shard")
                infos.append(info)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            raise FormatError(f"{self._files[0]}: model header: bad tensor list: {error}") from error
        return infos

    def records(self, name: str) -> list[Record]:
        """The checked records of one tensor."""
        info = self.tensors[name]
        area = self._areas[info.shard][info.offset : info.offset + info.length]
        return list(parse_records(area, f"{self._files[info.shard]}: {name}"))

    def model_records(self) -> list[Record]:
        """Tables and shared streams."""
        length = self.header.get("model_bytes")
        if not isinstance(length, int) or not 0 <= length <= len(self._areas[0]):
            raise FormatError(f"{self._files[0]}: model header: bad extent of the model records")
        return list(parse_records(self._areas[0][:length], f"{self._files[0]}: model records"))

    def check_hashes(self) -> None:
        """Compares every shard's header and record area with the hashes of the model record.

        Raises:
            FormatError: Names the shard.
        """
        for file, head, area, expected in zip(self._files, self._heads, self._areas, self._hashes, strict=True):
            if _hash(head, area) != expected:
                raise FormatError(f"{file}: hash of header and records differs; the file is damaged")


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a compressed directory.

    Raises:
        FormatError: Missing, not JSON, or not compressed by trueaxis.
    """
    file = path / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{file}: missing; is this a directory written by trueaxis?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{file}: not readable JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("quantization_config"), dict):
        raise FormatError(f"{file}: no quantization_config; this checkpoint is not compressed by trueaxis")
    if config["quantization_config"].get("quant_method") != "trueaxis":
        raise FormatError(
            f"{file}: quant_method is {config['quantization_config'].get('quant_method')!r}, not 'trueaxis'"
        )
    return config


def is_compressed(path: str | Path) -> bool:
    """Whether a directory says that trueaxis wrote it; damaged and foreign ones do not."""
    try:
        read_config(Path(path))
    except FormatError:
        return False
    return True


def _parse_header(payload: bytes, where: str) -> tuple[dict[str, Any], list[str]]:
    """The JSON header and the shard hashes in front of it."""
    count = struct.unpack_from("<I", payload)[0] if len(payload) >= 4 else 0
    start = 4 + count * HASH_BYTES
    if count < 1 or start >= len(payload):
        raise FormatError(f"{where}: model header claims {count} shards; the file is damaged")
    hashes = [payload[4 + i * HASH_BYTES : 4 + (i + 1) * HASH_BYTES].hex() for i in range(count)]
    return _inflate(payload[start:], where), hashes


def _inflate(data: bytes, where: str) -> dict[str, Any]:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, HEADER_LIMIT)
        if not inflater.eof or inflater.unused_data:
            raise ValueError("truncated, or larger than 64 MiB")
        document = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise FormatError(f"{where}: model header: {error}; the file is damaged") from error
    if not isinstance(document, dict):
        raise FormatError(f"{where}: model header is not a JSON object; the file is damaged")
    return document
