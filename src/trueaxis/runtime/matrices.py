"""The records of one tensor: which matrices it is made of.

    tensor = base? planes | alias | beside? matrix | beside? (slice matrix)+ | alias matrix
    beside = base tangent?
    matrix = transpose? transform* (residual | function residual | function residual residual)

Slices come in order, one for every index of a 3-D tensor's first dimension. With a transpose what is coded is [n, m],
and the tensor (or slice) is its transpose; other transforms act on what is coded. With an alias before it the matrix is
[n, n], and the tensor is the one that the alias names times that matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from trueaxis.entropy.stream import ResidualHeader, unpack_residual
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.header import DTYPES, TensorInfo
from trueaxis.record import Record, RecordType
from trueaxis.runtime.factors import read_rank
from trueaxis.runtime.terms import SUM
from trueaxis.runtime.transforms import LARGEST_PRODUCT, TRANSPOSE, parse_transform
from trueaxis.types import FormatError, Transform

MOST_TRANSFORMS = 8  # of a matrix, the transpose aside


@dataclass(frozen=True)
class Matrix:
    """One matrix of a tensor.

    Attributes:
        rows, columns: As it is coded.
        transposed: Whether the tensor holds its transpose.
        transforms: Of what is coded; the last one is decoded first.
        payload: Of its residual record.
        source: Name of the tensor that is multiplied by this matrix, or None.
        factor: "left" or "right" where it is a factor of the matrix, see factors.py; what is transposed or transformed
            is their product.
        function: Payload of the record of what is added to it before its transforms, see terms.py; b"" for none.
    """

    rows: int
    columns: int
    transposed: bool
    transforms: tuple[Transform, ...]
    payload: bytes
    source: str | None = None
    factor: Literal["", "left", "right"] = ""
    function: bytes = b""

    @cached_property
    def header(self) -> ResidualHeader:
        """The residual record up to its streams.

        Raises:
            FormatError: It is damaged.
        """
        return unpack_residual(self.payload, self.rows, self.columns)


def matrix_records(
    payload: bytes,
    index: int | None,
    transposed: bool,
    transforms: Sequence[Transform] = (),
    source: str | None = None,
    function: bytes = b"",
) -> tuple[Record, ...]:
    """Records of one matrix: what `matrices` reads.

    Args:
        payload: Of its residual.
        index: Of its slice, or None where it is the whole tensor.
        transposed: Whether the tensor holds its transpose.
        transforms: Of what is coded.
        source: Name of the tensor that is multiplied by it, or None.
        function: Payload of the record of what is added to it, or b"".
    """
    place = () if index is None else (Record(RecordType.SLICE, pack_varint(index)),)
    place += () if source is None else (Record(RecordType.ALIAS, source.encode()),)
    turns = [TRANSPOSE] * transposed + [transform.payload for transform in transforms]
    place += tuple(Record(RecordType.TRANSFORM, turn) for turn in turns)
    place += (Record(RecordType.FUNCTION, function),) if function else ()
    return (*place, Record(RecordType.RESIDUAL, payload))


def alias_name(records: Sequence[Record]) -> str | None:
    """What the first record names if it is an alias."""
    if records and records[0].type == RecordType.ALIAS:
        return records[0].payload.decode("utf-8", errors="replace")
    return None


def tangent_payload(records: Sequence[Record]) -> bytes | None:
    """That of the record of directions after a base record, or None."""
    after = records[1] if len(records) > 1 and records[0].type == RecordType.BASE else None
    return after.payload if after is not None and after.type == RecordType.TANGENT else None


def matrices(info: TensorInfo, records: Sequence[Record]) -> list[Matrix]:
    """Matrices of a tensor, one or one per slice, or their factors; none for a tensor stored exactly or tied.

    Raises:
        FormatError: The records are out of order, or do not fit the tensor's shape.
    """
    records = _beyond_base(info, records)
    if len(records) == 1 and records[0].type in (RecordType.PLANES, RecordType.ALIAS):
        return []
    if info.dtype not in DTYPES:
        raise FormatError(f"{info.name}: expected an exact or tied tensor of {info.dtype}, found others; it is damaged")
    if (source := alias_name(records)) is not None:
        return [_factor(info, source, records[1:])]
    found: list[Matrix] = []
    slices, done, turns = 0, 0, _Turns(info, 2)
    for record in records:
        if record.type == RecordType.SLICE and slices == done and turns.is_new:
            if record.payload != pack_varint(slices):
                raise FormatError(f"{info.name}: expected slice {slices}, found {_slice(record)}; the file is damaged")
            slices, turns = slices + 1, _Turns(info, 3)
        elif record.type == RecordType.TRANSFORM and not turns.is_told:
            turns.payloads.append(record.payload)
        elif record.type == RecordType.FUNCTION and not turns.is_told:
            turns.read_function(record.payload)
        elif record.type == RecordType.RESIDUAL and done == max(slices - 1, 0):
            found.append(turns.matrix(record.payload))
            if found[-1].factor != "left":
                done, turns = done + 1, _Turns(info, turns.dimensions)
        else:
            raise FormatError(f"{info.name}: record type {record.type} is out of place; the file is damaged or newer")
    if not found or not turns.is_new or done != (info.shape[0] if slices else 1):
        raise FormatError(f"{info.name}: {done} matrices do not make a tensor {list(info.shape)}")
    return found


def _beyond_base(info: TensorInfo, records: Sequence[Record]) -> Sequence[Record]:
    """What comes after a base record and one of directions, if they are there."""
    if not records or records[0].type != RecordType.BASE:
        return records
    turned = tangent_payload(records) is not None
    wrong = {RecordType.ALIAS, RecordType.PLANES} if turned else {RecordType.ALIAS}
    rest = records[1 + turned :]
    if not rest or rest[0].type in wrong:
        kind = records[turned].type
        raise FormatError(f"{info.name}: record type {kind} is out of place; the file is damaged or newer")
    return rest


def _factor(info: TensorInfo, source: str, records: Sequence[Record]) -> Matrix:
    """The square matrix that another tensor is multiplied by."""
    *transforms, last = records
    if last.type != RecordType.RESIDUAL or any(record.type != RecordType.TRANSFORM for record in transforms):
        raise FormatError(f"{info.name}: expected a matrix to multiply {source[:80]!r} by; the file is damaged")
    if len(info.shape) != 2 or info.shape[1] > LARGEST_PRODUCT:
        raise FormatError(f"{info.name}: a product does not fit shape {list(info.shape)}")
    square = TensorInfo(info.name, (info.shape[1],) * 2, info.dtype, info.shard, info.offset, info.length)
    return _Turns(square, 2, [record.payload for record in transforms], source).matrix(last.payload)


@dataclass
class _Turns:
    """What comes before a matrix's residual: payloads of its transforms, and of its function, or r of a product.

    `dimensions` are those of the tensor it belongs to; `left` tells whether the left factor was there.
    """

    info: TensorInfo
    dimensions: int
    payloads: list[bytes] = field(default_factory=list)
    source: str | None = None
    rank: int = 0
    left: bool = False
    function: bytes = b""

    @property
    def is_new(self) -> bool:
        """Whether nothing was read yet."""
        return not self.payloads and not self.is_told

    @property
    def is_told(self) -> bool:
        """Whether its function was read."""
        return bool(self.rank or self.function)

    def read_function(self, payload: bytes) -> None:
        """A function record: of a sum, kept for the decoder, or of a product."""
        shape = self._shape()
        if payload[:1] == bytes([SUM]):
            self.function = payload
            return
        try:
            self.rank = read_rank(payload, *shape)
        except (ValueError, IndexError) as error:
            raise FormatError(f"{self.info.name}: {error}") from error

    def matrix(self, residual: bytes) -> Matrix:
        """The matrix that these lead to, or its next factor."""
        rows, columns = self._shape()
        transposed = self.payloads[:1] == [TRANSPOSE]
        turns = self.payloads[transposed:]
        if len(turns) > MOST_TRANSFORMS:
            raise FormatError(f"{self.info.name}: {len(turns)} transforms of one matrix; the file is damaged")
        transforms = tuple(self._parsed(payload, rows, columns) for payload in turns)
        if not self.rank:
            return Matrix(rows, columns, transposed, transforms, residual, self.source, function=self.function)
        if not self.left:
            self.left = True
            return Matrix(rows, self.rank, transposed, transforms, residual, factor="left")
        return Matrix(self.rank, columns, transposed, transforms, residual, factor="right")

    def _shape(self) -> tuple[int, int]:
        return _sides(self.info, self.dimensions, self.payloads[:1] == [TRANSPOSE])

    def _parsed(self, payload: bytes, rows: int, columns: int) -> Transform:
        name = self.info.name
        try:
            found = parse_transform(payload, rows, columns)
        except ValueError as error:
            raise FormatError(f"{name}: transform {payload[:8].hex()} is damaged: {error}") from error
        if found is None and payload[:1] == TRANSPOSE:
            raise FormatError(f"{name}: transform {payload[:8].hex()} is damaged or out of place")
        if found is None:
            kind = payload[:1].hex() or "none"
            raise FormatError(f"{name}: transform of kind {kind} is unknown to this trueaxis; install a newer version")
        return found


def _sides(info: TensorInfo, dimensions: int, transposed: bool) -> tuple[int, int]:
    if len(info.shape) != dimensions or 0 in info.shape:
        what = "slice" if dimensions == 3 else "residual"
        raise FormatError(f"{info.name}: a {what} does not fit shape {list(info.shape)}")
    rows, columns = info.shape[-2:]
    return (columns, rows) if transposed else (rows, columns)


def _slice(record: Record) -> str:
    try:
        return str(unpack_varint(record.payload, 0)[0])
    except (ValueError, IndexError):
        return "none"
