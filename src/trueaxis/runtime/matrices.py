"""The records of one tensor: which matrices it is made of.

    tensor = planes | alias | matrix | (slice matrix)+
    matrix = transpose? reflection? (residual | function residual residual)

Slices come in order, one for every index of a 3-D tensor's first dimension. With a transpose what is coded is [n, m],
and the tensor (or slice) is its transpose; a reflection acts on what is coded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from trueaxis.entropy.stream import ResidualHeader, unpack_residual
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.header import TensorInfo
from trueaxis.record import Record, RecordType
from trueaxis.runtime.factors import read_rank
from trueaxis.runtime.transforms import COLUMNS, ROWS, TRANSPOSE, reflection
from trueaxis.types import FormatError

REFLECTIONS = tuple(reflection(sides) for sides in (COLUMNS, ROWS, COLUMNS | ROWS))


@dataclass(frozen=True)
class Matrix:
    """One matrix of a tensor.

    Attributes:
        rows, columns: As it is coded.
        transposed: Whether the tensor holds its transpose.
        reflected: Sides that are reflected, see transforms.py.
        payload: Of its residual record.
        factor: "left" or "right" where it is a factor of the matrix, see factors.py; what is transposed or reflected
            is their product.
    """

    rows: int
    columns: int
    transposed: bool
    reflected: int
    payload: bytes
    factor: Literal["", "left", "right"] = ""

    def header(self) -> ResidualHeader:
        """The residual record up to its streams.

        Raises:
            FormatError: It is damaged.
        """
        return unpack_residual(self.payload, self.rows, self.columns)


def matrix_records(
    payload: bytes, index: int | None, transposed: bool, transforms: Sequence[bytes] = ()
) -> tuple[Record, ...]:
    """Records of one matrix: what `matrices` reads.

    Args:
        payload: Of its residual.
        index: Of its slice, or None where it is the whole tensor.
        transposed: Whether the tensor holds its transpose.
        transforms: Payloads of the transforms of what is coded.
    """
    place = () if index is None else (Record(RecordType.SLICE, pack_varint(index)),)
    turns = (TRANSPOSE, *transforms) if transposed else transforms
    return (*place, *(Record(RecordType.TRANSFORM, turn) for turn in turns), Record(RecordType.RESIDUAL, payload))


def matrices(info: TensorInfo, records: Sequence[Record]) -> list[Matrix]:
    """Matrices of a tensor, one or one per slice, or their factors; none for a tensor stored exactly or tied.

    Raises:
        FormatError: The records are out of order, or do not fit the tensor's shape.
    """
    if len(records) == 1 and records[0].type in (RecordType.PLANES, RecordType.ALIAS):
        return []
    found: list[Matrix] = []
    slices, done, turns = 0, 0, _Turns()
    for record in records:
        if record.type == RecordType.SLICE and slices == done and turns == _Turns():
            if record.payload != pack_varint(slices):
                raise FormatError(f"{info.name}: expected slice {slices}, found {_slice(record)}; the file is damaged")
            slices += 1
        elif record.type == RecordType.TRANSFORM and not turns.rank:
            turns = _turned(info, turns, record.payload)
        elif record.type == RecordType.FUNCTION and not turns.rank:
            turns = turns._replace(rank=_rank(info, record.payload, *_sides(info, bool(slices), turns.transposed)))
        elif record.type == RecordType.RESIDUAL and done == max(slices - 1, 0):
            rows, columns = _sides(info, bool(slices), turns.transposed)
            found.append(_matrix(rows, columns, turns, record.payload))
            if turns.rank and not turns.left:
                turns = turns._replace(left=True)
                continue
            done, turns = done + 1, _Turns()
        else:
            raise FormatError(f"{info.name}: record type {record.type} is out of place; the file is damaged or newer")
    if not found or turns != _Turns() or done != (info.shape[0] if slices else 1):
        raise FormatError(f"{info.name}: {done} matrices do not make a tensor {list(info.shape)}")
    return found


class _Turns(NamedTuple):
    transposed: bool = False
    reflected: int = 0
    rank: int = 0
    left: bool = False  # whether the left factor was there


def _matrix(rows: int, columns: int, turns: _Turns, payload: bytes) -> Matrix:
    if not turns.rank:
        return Matrix(rows, columns, turns.transposed, turns.reflected, payload)
    if not turns.left:
        return Matrix(rows, turns.rank, turns.transposed, turns.reflected, payload, "left")
    return Matrix(turns.rank, columns, turns.transposed, turns.reflected, payload, "right")


def _rank(info: TensorInfo, payload: bytes, rows: int, columns: int) -> int:
    try:
        return read_rank(payload, rows, columns)
    except (ValueError, IndexError) as error:
        raise FormatError(f"{info.name}: {error}") from error


def _turned(info: TensorInfo, turns: _Turns, payload: bytes) -> _Turns:
    """Transforms of a matrix with one more."""
    if turns == _Turns() and payload == TRANSPOSE:
        return _Turns(transposed=True)
    if not turns.reflected and payload in REFLECTIONS:
        return turns._replace(reflected=payload[1])
    if payload[:1] in (TRANSPOSE, REFLECTIONS[0][:1]):
        raise FormatError(f"{info.name}: transform {payload[:8].hex()} is damaged or out of place")
    raise FormatError(
        f"{info.name}: transform of kind {payload[:1].hex() or 'none'} is unknown to this trueaxis; "
        "install a newer version"
    )


def _sides(info: TensorInfo, sliced: bool, transposed: bool) -> tuple[int, int]:
    if len(info.shape) != (3 if sliced else 2) or 0 in info.shape:
        raise FormatError(f"{info.name}: a {'slice' if sliced else 'residual'} does not fit shape {list(info.shape)}")
    rows, columns = info.shape[-2:]
    return (columns, rows) if transposed else (rows, columns)


def _slice(record: Record) -> str:
    try:
        return str(unpack_varint(record.payload, 0)[0])
    except (ValueError, IndexError):
        return "none"
