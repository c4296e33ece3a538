"""The records of one tensor: which matrices it is made of.

    tensor = planes | alias | matrix | (slice matrix)+        matrix = transform? residual

Slices come in order, one for every index of a 3-D tensor's first dimension. The only transform so far is the transpose:
what is coded is [n, m], and the tensor (or slice) is its transpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trueaxis.entropy.stream import ResidualHeader, unpack_residual
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.header import TensorInfo
from trueaxis.record import Record, RecordType
from trueaxis.types import FormatError

TRANSPOSE = b"\0"
CONSTANT_LIMIT = 1 << 22  # entries of a tensor that one value stands for


@dataclass(frozen=True)
class Matrix:
    """One matrix of a tensor.

    Attributes:
        rows, columns: As it is coded.
        transposed: Whether the tensor holds its transpose.
        payload: Of its residual record.
    """

    rows: int
    columns: int
    transposed: bool
    payload: bytes

    def header(self) -> ResidualHeader:
        """The residual record up to its streams.

        Raises:
            FormatError: It is damaged.
        """
        return unpack_residual(self.payload, self.rows, self.columns)


def matrix_records(payload: bytes, index: int | None, transposed: bool) -> tuple[Record, ...]:
    """Records of one matrix: what `matrices` reads.

    Args:
        payload: Of its residual.
        index: Of its slice, or None where it is the whole tensor.
        transposed: Whether the tensor holds its transpose.
    """
    place = () if index is None else (Record(RecordType.SLICE, pack_varint(index)),)
    turn = (Record(RecordType.TRANSFORM, TRANSPOSE),) if transposed else ()
    return (*place, *turn, Record(RecordType.RESIDUAL, payload))


def matrices(info: TensorInfo, records: Sequence[Record]) -> list[Matrix]:
    """Matrices of a tensor, one or one per slice; none for a tensor that is stored exactly or tied.

    Raises:
        FormatError: The records are out of order, or do not fit the tensor's shape.
    """
    if len(records) == 1 and records[0].type in (RecordType.PLANES, RecordType.ALIAS):
        return []
    found: list[Matrix] = []
    slices, transposed = 0, False
    for record in records:
        if record.type == RecordType.SLICE and slices == len(found) and not transposed:
            if record.payload != pack_varint(slices):
                raise FormatError(f"{info.name}: expected slice {slices}, found {_slice(record)}; the file is damaged")
            slices += 1
        elif record.type == RecordType.TRANSFORM and not transposed:
            if record.payload != TRANSPOSE:
                raise FormatError(
                    f"{info.name}: transform of kind {record.payload[:1].hex() or 'none'} is unknown to this trueaxis; "
                    "install a newer version"
                )
            transposed = True
        elif record.type == RecordType.RESIDUAL and len(found) == max(slices - 1, 0):
            rows, columns = _sides(info, bool(slices), transposed)
            found.append(Matrix(rows, columns, transposed, record.payload))
            transposed = False
        else:
            raise FormatError(f"{info.name}: record type {record.type} is out of place; the file is damaged or newer")
    if not found or transposed or len(found) != (info.shape[0] if slices else 1):
        raise FormatError(f"{info.name}: {len(found)} matrices do not make a tensor {list(info.shape)}")
    return found


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
