"""Header: what a compressed model says of itself, packed into the `model` record and checked when it is read back.

    facts, hashes of the shards ─▶ payload of the model record ─▶ header (a dict whose known keys are checked), hashes
                                                                      └─▶ TensorInfo per tensor

Everything here is read before any checksum of a tensor is, and a file can carry valid checksums and hostile numbers, so
every number has a limit: sizes before they are allocated, names before they are printed or used as keys. The layout
is in docs/format.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trueaxis.record import DRAFT, SMALLEST_FRAME, VERSION, Record, RecordType
from trueaxis.types import FormatError, TrueaxisError

HASH_BYTES = 16
TEXT_LIMIT = 1 << 25  # bytes of the JSON text
TEXT_FREE = 1 << 16  # bytes of text that any header may have; beyond, it must be backed by compressed bytes
TEXT_RATIO = 32  # bytes of text per compressed byte; lists of tensors reach 10 to 20
NAME_LIMIT = 512  # characters
DIMENSION_LIMIT = 8
SIZE_LIMIT = 1 << 48  # weights of one tensor
MOST_DIRECTIONS = 16  # of a family that one member is coded with
DTYPES = ("F32", "F16", "BF16", "F64")  # of what may be quantized
EXACT_DTYPES = ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "U16", "I16", "U32", "I32", "U64", "I64")


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor: its shape and dtype in the original, and where its records lie."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    shard: int
    offset: int
    length: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of a config.json's content, independent of its formatting."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=HASH_BYTES).hexdigest()


def pack_model_record(facts: Mapping[str, Any], hashes: Sequence[bytes]) -> Record:
    """The model record: count of shards, their hashes, compressed JSON; its size does not depend on the hashes.

    Raises:
        TrueaxisError: A fact is one that `parse_model_record` would refuse.
    """
    for key, check in _checks(facts):
        if not check(facts.get(key)):
            raise TrueaxisError(f"header: {key!r} cannot be written: {str(facts.get(key))[:80]}")
    for name, *_ in facts["tensors"]:
        if not is_tensor_name(name):
            raise TrueaxisError(f"{name!r}: names must be printable, at most {NAME_LIMIT} characters, without / \\ ..")
    text = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    compressed = zlib.compress(text, 9)
    if len(text) > _text_limit(compressed):
        raise TrueaxisError(f"the header of {len(facts['tensors'])} tensors takes {len(text)} bytes, more than fit")
    return Record(RecordType.MODEL, struct.pack("<I", len(hashes)) + b"".join(hashes) + compressed)


def parse_model_record(record: Record, where: str) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the hash of each shard.

    Raises:
        FormatError: Not a model record of a version that is known, or a field of it is out of range.
    """
    if record.type != RecordType.MODEL:
        raise FormatError(f"{where}: the first record has type {record.type}, expected the model header")
    check_version(record.version, where)
    payload = record.payload
    count = struct.unpack_from("<I", payload)[0] if len(payload) >= 4 else 0
    start = 4 + count * HASH_BYTES
    if count < 1 or start >= len(payload):
        raise FormatError(f"{where}: claims {count} shards; the file is damaged")
    hashes = [payload[at : at + HASH_BYTES] for at in range(4, start, HASH_BYTES)]
    header = _inflate(payload[start:], where)
    for key, check in _checks(header):
        if not check(header.get(key)):
            raise FormatError(f"{where}: {key!r} is missing or out of range; the file is damaged")
    return header, hashes


def check_version(version: Any, where: str) -> None:
    """Refuses every format version but those that this trueaxis reads.

    Raises:
        FormatError: Says whether the file or the reader is too old.
    """
    if version == VERSION and type(version) is int:
        return
    if version == DRAFT and type(version) is int:
        raise FormatError(
            f"{where}: format version {DRAFT} was a draft, which this trueaxis no longer reads; compress the original "
            "again"
        )
    raise FormatError(f"{where}: format version {str(version)[:80]}; install a newer version of trueaxis")


def tensor_list(header: Mapping[str, Any], area_bytes: Sequence[int], where: str) -> dict[str, TensorInfo]:
    """Every tensor by name; their records follow each other and fill one shard after the other exactly.

    Args:
        header: From `parse_model_record`.
        area_bytes: Bytes of records per shard, the model record not counted.
        where: Begins every message.

    Raises:
        FormatError: A field is out of range, a name occurs twice, or records cross the end of a shard or leave a gap.
    """
    found: dict[str, TensorInfo] = {}
    shard, end = 0, header["model_bytes"]
    for row in header["tensors"]:
        if end == area_bytes[shard] and shard + 1 < len(area_bytes):
            shard, end = shard + 1, 0
        info = _tensor_info(row, shard, end, where)
        if info.name in found:
            raise FormatError(f"{where}: {info.name} is listed twice; the file is damaged")
        found[info.name] = info
        end += info.length
        if end > area_bytes[shard]:
            raise FormatError(f"{where}: {info.name}: its records pass the end of shard {shard + 1}")
    if end != area_bytes[shard] or shard + 1 != len(area_bytes):
        raise FormatError(
            f"{where}: records fill {end} bytes of shard {shard + 1}, which has {area_bytes[shard]}; there are "
            f"{len(area_bytes)} shards"
        )
    return found


def _tensor_info(row: Any, shard: int, offset: int, where: str) -> TensorInfo:
    if not isinstance(row, list) or len(row) != 4:
        raise FormatError(f"{where}: an entry of the tensor list is not [name, shape, dtype, length]")
    name, shape, dtype, length = row
    if not is_tensor_name(name):
        raise FormatError(f"{where}: {str(name)[:80]!r} is no tensor name; the file is damaged")
    if not _is_shape(shape):
        raise FormatError(f"{where}: {name}: shape {str(shape)[:80]} is out of range; the file is damaged")
    if dtype not in DTYPES + EXACT_DTYPES:
        known = ", ".join(DTYPES + EXACT_DTYPES)
        raise FormatError(f"{where}: {name}: dtype {str(dtype)[:80]!r} is not one of: {known}")
    if not (_is_count(length) and length >= SMALLEST_FRAME):
        raise FormatError(f"{where}: {name}: length {str(length)[:80]} is out of range; the file is damaged")
    return TensorInfo(name, tuple(shape), dtype, shard, offset, length)


def is_tensor_name(name: Any) -> bool:
    """Whether a name can be printed, is no path, and may be a key of a safetensors file."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= NAME_LIMIT
        and name.isprintable()
        and not set(name) & set("/\\")
        and ".." not in name
        and name != "__metadata__"
    )


def _is_file_name(name: Any) -> bool:
    """Whether a copied file can be what the name says: it stays in its directory and holds no weights or code."""
    reserved = name == "config.json" or str(name).endswith((".safetensors", ".safetensors.index.json", ".py"))
    return is_tensor_name(name) and not name.startswith(".") and not reserved


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, list) or len(shape) > DIMENSION_LIMIT or not all(map(_is_count, shape)):
        return False
    return math.prod(max(extent, 1) for extent in shape) <= SIZE_LIMIT


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_sketch(value: Any) -> bool:
    """Whether these can be the differences of sorted 32-bit hashes."""
    return isinstance(value, list) and all(map(_is_count, value)) and sum(value) < 1 << 32


def _is_tangent(value: Any) -> bool:
    """Whether these can be the fingerprints of directions."""
    return isinstance(value, list) and 1 <= len(value) <= MOST_DIRECTIONS and all(map(_is_fingerprint, value))


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 2 * HASH_BYTES and not set(value) - set("0123456789abcdef")


_CHECKS = {
    "version": lambda value: type(value) is int and value == VERSION,
    "parameters": lambda value: _is_count(value) and value > 0,
    "model_bytes": _is_count,
    "config": lambda value: isinstance(value, str) and len(value) == 2 * HASH_BYTES,
    "config_bytes": _is_count,
    "copied": lambda value: isinstance(value, list) and all(map(_is_file_name, value)),
    "gauge": lambda value: isinstance(value, list),
    "recipe": lambda value: isinstance(value, dict),
    "sketch": _is_sketch,
    "tensors": lambda value: isinstance(value, list),
}
_OPTIONAL_CHECKS = {"base": is_tensor_name, "tangent": _is_tangent}


def _checks(header: Mapping[str, Any]) -> Iterator[tuple[str, Callable[[Any], bool]]]:
    """What must hold of every key that is needed or there."""
    yield from _CHECKS.items()
    yield from ((key, check) for key, check in _OPTIONAL_CHECKS.items() if key in header)


def _text_limit(compressed: bytes) -> int:
    """Bytes of text that so many compressed bytes may stand for: less than what zlib could, to stop bombs."""
    return min(TEXT_LIMIT, TEXT_FREE + TEXT_RATIO * len(compressed))


def _inflate(data: bytes, where: str) -> dict[str, Any]:
    inflater = zlib.decompressobj()
    limit = _text_limit(data)
    try:
        text = inflater.decompress(data, limit + 1)
        if len(text) > limit:
            raise ValueError(f"the text is larger than {limit} bytes")
        if not inflater.eof or inflater.unused_data:
            raise ValueError("the text is truncated or has bytes after its end")
        document = json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise FormatError(f"{where}: {error}; the file is damaged") from error
    if not isinstance(document, dict):
        raise FormatError(f"{where}: not a JSON object; the file is damaged")
    return document
