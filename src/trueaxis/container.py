"""Container: records to shards in a directory and back, every byte of them covered by a checksum or a hash.

    entries, facts ─▶ pack_shards ─▶ file name → pieces of bytes, joined where they are written
    directory ─▶ Container ─▶ header, TensorInfo per tensor, checked records on demand

    shard = safetensors file with one tensor `trueaxis.NNNNN` of bytes = record*

Opening reads the model record only; records are read when they are asked for, so that memory follows the largest
tensor. The specification is docs/format.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trueaxis.header import (
    HASH_BYTES,
    check_version,
    config_hash,
    pack_model_record,
    parse_model_record,
    tensor_list,
)
from trueaxis.record import (
    LARGEST_FRAME,
    MODEL_TYPES,
    TENSOR_TYPES,
    VERSION,
    Record,
    pack_frame,
    pack_record,
    parse_frame,
    parse_record,
    parse_records,
)
from trueaxis.remote import place
from trueaxis.types import FormatError

_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
CONFIG_LIMIT = 1 << 24  # bytes of config.json
MODEL_RECORD_LIMIT = 1 << 26  # bytes of the model record
READ_BYTES = 1 << 22
GLANCE = LARGEST_FRAME + 64  # bytes of a record that tell its type and the numbers it begins with
SHARD_BYTES = 5 * 10**9  # a file holds no more records than this, or one tensor

Pieces = tuple[bytes, ...]  # of one file, in order


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


def pack_shards(
    facts: Mapping[str, Any], model_records: Sequence[Record], entries: Sequence[Entry], shard_bytes: int
) -> dict[str, Pieces]:
    """All weight files of a compressed model in pieces, by file name; payloads are pieces as they are, not copied.

    Args:
        facts: JSON-compatible facts of the model; `tensors`, `model_bytes` and `version` are added here.
        model_records: Tables and shared streams, stored after the `model` record.
        entries: Every tensor, in order; shared streams are read in this order.
        shard_bytes: A new shard starts before this many bytes of records are exceeded.
    """
    tensors: list[Any] = []
    areas: list[list[bytes]] = []
    for number, group in enumerate(_split(entries, shard_bytes)):
        records = [*(model_records if number == 0 else ()), *(record for entry in group for record in entry.records)]
        areas.append([piece for record in records for piece in (pack_frame(record), record.payload)])
        tensors += [[entry.name, list(entry.shape), entry.dtype, entry.stored_bytes] for entry in group]
    model_bytes = sum(record.stored_bytes for record in model_records)
    facts = {**facts, "version": VERSION, "model_bytes": model_bytes, "tensors": tensors}
    reserved = pack_model_record(facts, [bytes(HASH_BYTES)] * len(areas)).stored_bytes
    lengths = [sum(map(len, area)) for area in areas]
    heads = [safetensors_head(n, length + (reserved if n == 0 else 0)) for n, length in enumerate(lengths)]
    hashes = [_digest(head, *area) for head, area in zip(heads, areas, strict=True)]
    first = pack_record(pack_model_record(facts, hashes))
    names = shard_names(len(areas))
    files: dict[str, Pieces] = {
        name: (head, *((first,) if number == 0 else ()), *area)
        for number, (name, head, area) in enumerate(zip(names, heads, areas, strict=True))
    }
    if len(areas) > 1:
        files[INDEX] = (index_file(names, sum(lengths) + len(first)),)
    return files


def shard_names(count: int) -> list[str]:
    """File names of the shards, as Hugging Face has them."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number + 1:05d}-of-{count:05d}.safetensors" for number in range(count)]


def index_file(names: Sequence[str], total: int) -> bytes:
    """model.safetensors.index.json of a sharded model."""
    weight_map = {_tensor_name(number): name for number, name in enumerate(names)}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, separators=(",", ":")).encode()


def safetensors_head(number: int, length: int) -> bytes:
    """Length prefix and header of shard `number` (from 0) with `length` bytes of records, padded as the library pads.

    Example:
        >>> safetensors_head(0, 5)[8:].decode().rstrip()
        '{"__metadata__":{"format":"pt"},"trueaxis.00001":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}'
    """
    document = {
        "__metadata__": {"format": "pt"},
        _tensor_name(number): {"dtype": "U8", "shape": [length], "data_offsets": [0, length]},
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _split(entries: Sequence[Entry], shard_bytes: int) -> list[list[Entry]]:
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


def _digest(*pieces: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


@dataclass(frozen=True)
class Shard:
    """One weight file whose safetensors header has been checked; its records are read on demand.

    Attributes:
        file: The file.
        head: Its length prefix and header.
        length: Bytes of records after them.
    """

    file: Path
    head: bytes
    length: int

    @classmethod
    def open(cls, file: Path, number: int) -> Shard:
        """Checks the header of shard `number`: the one form that trueaxis writes for a file of this size.

        Raises:
            FormatError: The file is missing, truncated, or its header is of another form.
        """
        if not file.is_file():
            raise FormatError(f"{file}: shard is missing")
        size = file.stat().st_size
        prefix = _read(file, 0, min(8, size))
        head_bytes = 8 + int.from_bytes(prefix, "little")
        if len(prefix) < 8 or head_bytes > size:
            raise FormatError(f"{file}: truncated inside its safetensors header")
        head = safetensors_head(number, size - head_bytes)
        if head_bytes != len(head) or _read(file, 0, head_bytes) != head:
            raise FormatError(
                f"{file}: its safetensors header is not what trueaxis writes for a file of {size} bytes; the file is "
                "truncated or damaged, download it again"
            )
        return cls(file, head, size - head_bytes)

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes of records from `start`; both within `self.length`."""
        return _read(self.file, len(self.head) + start, length)

    def digest(self, start: int) -> bytes:
        """Hash of the header and of all records from `start` on."""
        digest = hashlib.blake2b(self.head, digest_size=HASH_BYTES)
        for position in range(start, self.length, READ_BYTES):
            digest.update(self.read(position, min(READ_BYTES, self.length - position)))
        return digest.digest()


def _read(file: Path, position: int, length: int) -> bytes:
    try:
        with file.open("rb") as stream:
            stream.seek(position)
            data = stream.read(length)
    except OSError as error:
        raise FormatError(f"{file}: cannot be read: {error}") from error
    if len(data) != length:
        raise FormatError(f"{file}: became shorter while it was read")
    return data


class Container:
    """A compressed directory opened for reading.

    Args:
        path: The directory, or its address; see remote.py.

    Raises:
        FormatError: config.json or a shard is missing, truncated, or does not match the header.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = place(path)
        self.config = read_config(self.path)
        check_version(self.config["quantization_config"].get("version"), str(self.path / CONFIG))
        first = Shard.open(_first_shard(self.path), 0)
        where = f"{first.file}: model header"
        record = _read_model_record(first, where)
        self.header, self._hashes = parse_model_record(record, where)
        names = shard_names(len(self._hashes))
        if names[0] != first.file.name:
            raise FormatError(f"{where}: counts {len(names)} shards, the file's name says otherwise")
        rest = [Shard.open(self.path / name, number) for number, name in enumerate(names[1:], start=1)]
        self._shards = [first, *rest]
        self._starts = [record.stored_bytes] + [0] * len(rest)
        if config_hash(self.config) != self.header["config"]:
            raise FormatError(
                f"{self.path / CONFIG}: content differs from what was compressed; restore the original file"
            )
        if rest:
            _check_index(self.path / INDEX, index_file(names, sum(shard.length for shard in self._shards)))
        areas = [shard.length - start for shard, start in zip(self._shards, self._starts, strict=True)]
        self.tensors = tensor_list(self.header, areas, where)

    @cached_property
    def files(self) -> list[Path]:
        """The weight files and, where there are several, their index: what the rate counts."""
        shards = [shard.file for shard in self._shards]
        return [*shards, self.path / INDEX] if len(shards) > 1 else shards

    @property
    def fingerprint(self) -> str:
        """Of what the records of all shards hold, by the hashes in the header: 32 hex digits."""
        return _digest(*self._hashes).hex()

    @property
    def file_bytes(self) -> int:
        """Bytes that the rate counts: `files` and the growth of config.json."""
        growth = (self.path / CONFIG).stat().st_size - self.header["config_bytes"]
        return sum(file.stat().st_size for file in self.files) + max(0, growth)

    def records(self, name: str) -> list[Record]:
        """The checked records of one tensor."""
        info = self.tensors[name]
        shard = self._shards[info.shard]
        area = shard.read(self._starts[info.shard] + info.offset, info.length)
        return list(parse_records(area, TENSOR_TYPES, f"{shard.file}: {name}"))

    def outline(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Type and first bytes of the payload of each record of one tensor, not checked: a look that reads little."""
        info = self.tensors[name]
        shard, start = self._shards[info.shard], self._starts[info.shard] + info.offset
        position = 0
        while position < info.length:
            data = shard.read(start + position, min(GLANCE, info.length - position))
            frame = parse_frame(data, 0, f"{shard.file}: {name}")
            yield frame.type, data[frame.start : frame.start + frame.length]
            position += frame.start + frame.length

    def model_records(self) -> list[Record]:
        """Tables and shared streams."""
        shard = self._shards[0]
        area = shard.read(self._starts[0], self.header["model_bytes"])
        return list(parse_records(area, MODEL_TYPES, f"{shard.file}: model records"))

    def check_hashes(self) -> None:
        """Compares every shard's header and record area with the hashes of the model record.

        Raises:
            FormatError: Names the shard.
        """
        for shard, start, expected in zip(self._shards, self._starts, self._hashes, strict=True):
            if shard.digest(start) != expected:
                raise FormatError(f"{shard.file}: hash of header and records differs; the file is damaged")


def read_config(path: Path) -> dict[str, Any]:
    """config.json of a compressed directory.

    Raises:
        FormatError: Missing, not JSON, or not compressed by trueaxis.
    """
    file = path / CONFIG
    if path.is_file():
        raise FormatError(f"{path}: is a file; give the directory that it lies in")
    try:
        if file.stat().st_size > CONFIG_LIMIT:
            raise FormatError(f"{file}: larger than {CONFIG_LIMIT} bytes")
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (path / "family.json").is_file():
            raise FormatError(f"{path}: is the root of a family; give a member of it: {path}/members/NAME") from None
        raise FormatError(f"{file}: missing; is this a directory written by trueaxis?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{file}: not readable JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("quantization_config"), dict):
        raise FormatError(f"{file}: no quantization_config; this checkpoint is not compressed by trueaxis")
    method = config["quantization_config"].get("quant_method")
    if method != "trueaxis":
        raise FormatError(f"{file}: quant_method is {str(method)[:80]!r}, not 'trueaxis'")
    return config


def is_compressed(path: str | Path) -> bool:
    """Whether a directory says that trueaxis wrote it; damaged and foreign ones do not."""
    try:
        read_config(Path(path))
    except FormatError:
        return False
    return True


def _first_shard(path: Path) -> Path:
    single = path / shard_names(1)[0]
    if single.is_file():
        return single
    found = sorted(path.glob("model-00001-of-*.safetensors"))
    if len(found) != 1:
        raise FormatError(f"{path}: no model.safetensors; is this a directory written by trueaxis?")
    return found[0]


def _read_model_record(shard: Shard, where: str) -> Record:
    """The first record, read by its own length: what follows it may be large."""
    frame = parse_frame(shard.read(0, min(LARGEST_FRAME, shard.length)), 0, where)
    if frame.length > MODEL_RECORD_LIMIT:
        raise FormatError(f"{where}: claims {frame.length} bytes, at most {MODEL_RECORD_LIMIT} are allowed")
    return parse_record(shard.read(0, min(frame.start + frame.length, shard.length)), 0, where)[0]


def _check_index(file: Path, expected: bytes) -> None:
    if not file.is_file() or file.stat().st_size != len(expected) or file.read_bytes() != expected:
        raise FormatError(f"{file}: missing or damaged")


def with_floats(found: Any) -> Any:
    """JSON in which numbers that JSON has no word for, such as {"__float__": "Infinity"}, are floats."""
    if isinstance(found, dict):
        named = found.get("__float__") if len(found) == 1 else None
        return _FLOATS.get(str(named), found) if named else {key: with_floats(value) for key, value in found.items()}
    return [with_floats(value) for value in found] if isinstance(found, list) else found
