"""Decode: a compressed directory to named tensors, without calibration, alignment, or transformers.

Container ─▶ records of a tensor ─▶ streams (its own or a shared one) ─▶ float32 values ─▶ dtype, rounded once
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.container import Container
from trueaxis.entropy.model import Tables, unpack_tables
from trueaxis.entropy.stream import (
    ResidualHeader,
    decode_indices,
    decode_shared,
    decode_shared_values,
    decode_values,
    shared_stream,
)
from trueaxis.header import DTYPES, TensorInfo
from trueaxis.parallel import default_threads, ordered_map
from trueaxis.quantize.grid import steps
from trueaxis.record import Record, RecordType
from trueaxis.runtime.base_model import BaseModel, find_base
from trueaxis.runtime.bitplanes import needs_base
from trueaxis.runtime.factors import product
from trueaxis.runtime.matrices import Matrix, alias_name, matrices, tangent_payload
from trueaxis.runtime.planes import BITPLANES, unpack_planes
from trueaxis.runtime.tangent import Directions
from trueaxis.runtime.terms import Shared, read_term
from trueaxis.runtime.transforms import decoded, exact_product
from trueaxis.types import Array, FormatError

if TYPE_CHECKING:
    import torch


TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16",
    "U32": "uint32", "I32": "int32", "U64": "uint64", "I64": "int64",
}  # fmt: skip
LARGEST_VALUE = 1 << 27  # above |u| + |o|, with room for rounding to bfloat16


class Decoder:
    """Decodes the tensors of one container.

    Args:
        path: Directory written by `trueaxis.compress`.
        threads: Workers, over tensors and inside a matrix; all processors by default.
        base: Where the base of tensors that go beside one lies; by default next to `path`, under the name in the file.

    Example:
        >>> decoder = Decoder("model-3bit")                       # doctest: +SKIP
        >>> decoder.tensor("model.layers.0.mlp.up_proj.weight")   # doctest: +SKIP
    """

    def __init__(self, path: str | Path, threads: int | None = None, base: str | Path | None = None) -> None:
        self._given_base = base
        self._threads = threads or default_threads()
        self.container = Container(path)
        records = self.container.model_records()
        kinds = [record.type for record in records]
        if RecordType.TABLES in kinds[1:] or (kinds and kinds[0] != RecordType.TABLES):
            raise FormatError(f"{path}: model records: expected tables, then streams, found types {kinds[:8]}")
        self._tables: Tables | None = None
        if records:
            try:
                self._tables = unpack_tables(records[0].payload)
            except FormatError as error:
                raise FormatError(f"{path}: model records: {error}") from error
        self._lock = threading.Lock()  # on the shared stream decoded last
        self._shared = [record.payload for record in records[1:]]
        self._cached: dict[tuple[int, bool], dict[tuple[str, int], Array]] = {}

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return list(self.container.tensors)

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """All tensors, decoded side by side; tied ones share storage."""

        def read(name: str) -> tuple[str, torch.Tensor | None]:
            records = self._records(name)
            if _is_alias(records):
                return str(self.alias(name)), None
            return name, self._decoded(name, records, dtype)

        read_by_name = dict(zip(self.names(), ordered_map(read, self.names(), self._threads), strict=True))
        own = {name: value for name, value in read_by_name.values() if value is not None}
        return {name: own[target] for name, (target, _) in read_by_name.items()}

    def alias(self, name: str) -> str | None:
        """Name of the tensor that `name` is tied to, or None.

        Raises:
            FormatError: The other one is missing, of another shape or dtype, or tied itself.
        """
        records = self._records(name)
        if not _is_alias(records):
            return None
        target = str(alias_name(records))
        self._check_tied(self.container.tensors[name], target)
        return target

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor in `dtype`, by default that of the original checkpoint; several threads may ask at once.

        Raises:
            FormatError: Its records are damaged or decode to NaN or Inf; the message names the tensor.
        """
        records = self._records(name)
        if _is_alias(records):
            name = str(self.alias(name))
            records = self._records(name)
        return self._decoded(name, records, dtype)

    def _decoded(self, name: str, records: Sequence[Record], dtype: torch.dtype | None) -> torch.Tensor:
        import torch

        info = self.container.tensors[name]
        own = _torch_dtype(info)
        parts = self._matrices(info, records)
        if not parts:
            return _cast(self._planes(info, records, own), dtype)
        base = self._beside(info, records)
        exact = torch.float32 if base is not None else dtype or own
        if parts[0].source is not None:
            value = self._product(info, parts, parts[0].source)
        elif len(info.shape) == 2:
            value = self._matrix(info, parts, 0, exact)
        else:
            value = torch.empty(info.shape, dtype=exact)
            firsts = [index for index, part in enumerate(parts) if part.factor != "right"]
            for index, first in enumerate(firsts):
                value[index] = self._matrix(info, parts, first, exact)
        if base is not None:
            theirs = torch.from_numpy(base).view(own).reshape(info.shape).float()
            turned = tangent_payload(records)
            value = value + (theirs if turned is None else theirs + self.directions.added(name, info.shape, turned))
        if base is not None or not all(map(is_bounded, parts)):
            check_finite(info.name, value)
        return value.to(dtype or own)

    def _planes(self, info: TensorInfo, records: Sequence[Record], dtype: torch.dtype) -> torch.Tensor:
        """A tensor that is kept bit for bit; one of planes of bits may hold NaN and infinities."""
        import torch

        if info.size == 0:
            return torch.empty(info.shape, dtype=dtype)
        payload, base = records[-1].payload, self._beside(info, records)
        try:
            if payload[:1] == bytes([BITPLANES]) and needs_base(payload[1:2]) != (base is not None):
                raise ValueError("a base record belongs before planes that go beside one, and before no others")
            entries = unpack_planes(payload, info.size, dtype.itemsize, base)
        except ValueError as error:
            raise FormatError(f"{info.name}: {error}; the file is damaged") from error
        writable = np.require(entries.reshape(-1), requirements="W")  # a copy where it is a view of the payload
        value = torch.from_numpy(writable).view(dtype).reshape(info.shape)
        if payload[:1] != bytes([BITPLANES]) and info.dtype in DTYPES:
            check_finite(info.name, value)
        return value

    def _beside(self, info: TensorInfo, records: Sequence[Record]) -> Array | None:
        """The bits that a tensor goes beside, uint8, or None."""
        return self.base.entries(info, records[0].payload) if records[0].type == RecordType.BASE else None

    @cached_property
    def base(self) -> BaseModel:
        """The checkpoint that tensors of this one go beside.

        Raises:
            TrueaxisError: It is not found.
        """
        return BaseModel(find_base(self.container, self._given_base))

    @cached_property
    def directions(self) -> Directions:
        """What tensors beside the base take shares of."""
        return Directions.of(self.container, self.base.path)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor in the original checkpoint."""
        return _torch_dtype(self.container.tensors[name])

    def residuals(self, name: str) -> list[ResidualHeader]:
        """Parsed side information of every matrix of a quantized tensor; none for one stored exactly or tied."""
        info = self.container.tensors[name]
        parts = self._matrices(info, self._records(name))
        try:
            return [part.header for part in parts]
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from error

    @property
    def tables(self) -> Tables:
        """The model's tables.

        Raises:
            FormatError: The file holds none, because nothing in it is quantized.
        """
        if self._tables is None:
            raise FormatError(f"{self.container.path}: the file holds no tables")
        return self._tables

    def coded_groups(self) -> Iterator[tuple[int, list[tuple[str, ResidualHeader, Array]]]]:
        """Matrices that are coded together: bytes of their streams, and (tensor, header, k [n, m] in file order).

        Raises:
            FormatError: A stream does not decode.
        """
        for number, members in enumerate(self._members):
            headers = [self.residuals(name)[index] for name, index in members]
            indices = decode_shared(self._shared[number], headers, self.tables)
            names = [name for name, _ in members]
            yield len(self._shared[number]), list(zip(names, headers, indices, strict=True))
        for name in self.names():
            for header in self.residuals(name):
                if header.shared is None:
                    size = sum(len(data) for pair in header.streams for data in pair)
                    yield size, [(name, header, decode_indices(header, self.tables))]

    def _records(self, name: str) -> list[Record]:
        """Records of a tensor; the last one says how it is stored."""
        records = self.container.records(name)
        if not records:
            raise FormatError(f"{name}: expected a record, found none; the file is damaged or newer")
        return records

    def _matrices(self, info: TensorInfo, records: Sequence[Record]) -> list[Matrix]:
        """Matrices of a tensor with these records."""
        return matrices(info, records)

    def source(self, name: str) -> str | None:
        """Name of the tensor that is multiplied by a matrix to give this one, or None.

        Raises:
            FormatError: The records of `name` are damaged.
        """
        parts = self._matrices(self.container.tensors[name], self._records(name))
        return parts[0].source if parts else None

    def _check_tied(self, info: TensorInfo, target: str) -> None:
        other = self.container.tensors.get(target)
        if other is None or (other.shape, other.dtype) != (info.shape, info.dtype):
            raise FormatError(
                f"{info.name}: tied to {target[:80]!r}, which the file does not hold in this shape and dtype"
            )
        if alias_name(self._records(target)) is not None:
            raise FormatError(f"{info.name}: tied to {target}, which is tied itself; the file is damaged")

    def _product(self, info: TensorInfo, parts: Sequence[Matrix], source: str) -> torch.Tensor:
        """The source, not yet rounded to its dtype, times the matrix: float32."""
        import torch

        self._check_tied(info, source)
        if len(self._products) > 1:  # each takes few bytes and much memory, and a model has one head
            raise FormatError(f"{info.name}: one tensor may be a product, not {' and '.join(self._products[:2])} too")
        factor = self._matrix(info, parts, 0, torch.float32)
        return torch.from_numpy(exact_product(self.tensor(source, torch.float32).cpu().numpy(), factor.numpy()))

    @cached_property
    def _products(self) -> list[str]:
        """Names of all tensors that are another one times a matrix."""
        kinds = {name: [kind for kind, _ in self.container.outline(name)] for name in self.names()}
        return [name for name, found in kinds.items() if len(found) > 1 and found[0] == RecordType.ALIAS]

    def _matrix(self, info: TensorInfo, parts: Sequence[Matrix], index: int, dtype: torch.dtype) -> torch.Tensor:
        """The matrix, or product of two, that starts at a part, oriented as the tensor (or its slice) is; bfloat16 if
        that is wanted and nothing multiplied or transformed, else float32."""
        import torch

        part = parts[index]
        bfloat16 = dtype == torch.bfloat16 and not part.transforms and not part.factor and not part.function
        values = self._values(info, part, index, bfloat16)
        if part.factor:
            values = product(values, self._values(info, parts[index + 1], index + 1, False))
        if part.function:
            with np.errstate(over="ignore", invalid="ignore"):  # found out by the check for NaN and Inf
                values = values + self._function(info, part)  # a copy: values of a shared stream are kept
        values = decoded(values, part.transforms)
        weight = torch.from_numpy(values).view(torch.bfloat16) if bfloat16 else torch.from_numpy(values)
        return weight.T.contiguous() if part.transposed else weight

    def _function(self, info: TensorInfo, part: Matrix) -> Array:
        """What is added to the values of a matrix: float32 [rows, columns]."""
        try:
            return read_term(part.function, part.rows, part.columns).values(self._bases)
        except (ValueError, IndexError) as error:
            raise FormatError(f"{info.name}: {error}; the file is damaged") from error

    def _bases(self, name: str) -> Array:
        """Matrices that a tensor's function record holds for others."""
        if name in self.container.tensors:
            for part in matrices(self.container.tensors[name], self._records(name))[:1]:
                term = read_term(part.function, part.rows, part.columns) if part.function else None
                if isinstance(term, Shared) and term.own is not None:
                    return term.matrices()
        raise ValueError(f"{name[:80]!r} holds no matrices for others")

    def _values(self, info: TensorInfo, part: Matrix, index: int, bfloat16: bool) -> Array:
        """What is coded: float32, or the bits of bfloat16."""
        if self._tables is None:
            raise FormatError(f"{info.name}: the file holds no tables")
        try:
            header = part.header
            if header.shared is None:
                return decode_values(header, self._tables, bfloat16, self._threads)
            return self._shared_values(header.shared, self._tables, bfloat16)[info.name, index]
        except (FormatError, ValueError) as error:
            raise FormatError(f"{info.name}: {error}") from error

    def _shared_values(self, number: int, tables: Tables, bfloat16: bool) -> dict[tuple[str, int], Array]:
        with self._lock:
            if (number, bfloat16) not in self._cached:
                members = self._members[number]
                parsed = {name: self.residuals(name) for name in dict.fromkeys(name for name, _ in members)}
                headers = [parsed[name][index] for name, index in members]
                try:
                    decoded = decode_shared_values(self._shared[number], headers, tables, bfloat16)
                except FormatError:
                    self._check_records()
                    raise
                self._cached = {key: found for key, found in self._cached.items() if key[0] == number}
                self._cached[number, bfloat16] = dict(zip(members, decoded, strict=True))
            return self._cached[number, bfloat16]

    @cached_property
    def _members(self) -> list[list[tuple[str, int]]]:
        """(Tensor, matrix) of each shared stream; streams follow each other in the order of these."""
        members: list[list[tuple[str, int]]] = [[] for _ in self._shared]
        latest = 0
        for name in self.names():
            found = (head for kind, head in self.container.outline(name) if kind == RecordType.RESIDUAL)
            for index, head in enumerate(found):
                if (shared := _shared(name, head)) is None:
                    continue
                if not latest <= shared < len(members):
                    self._check_records()
                    raise FormatError(f"{name}: shared stream {shared} is missing or out of order")
                latest = shared
                members[latest].append((name, index))
        return members

    def _check_records(self) -> None:
        """Looks at every record: one that is damaged or misplaced may have hidden a member of a shared stream."""
        for name, info in self.container.tensors.items():
            self._matrices(info, self._records(name))


def _is_alias(records: Sequence[Record]) -> bool:
    return len(records) == 1 and records[0].type == RecordType.ALIAS


def _shared(name: str, head: bytes) -> int | None:
    """Number of the shared stream that holds the indices of a residual record of which this is the beginning."""
    try:
        return shared_stream(head)
    except (ValueError, IndexError) as error:
        raise FormatError(f"{name}: residual record: {error}; the file is damaged") from error


def _cast(value: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Floats in a dtype; other numbers stay what they are."""
    return value.to(dtype) if dtype is not None and value.is_floating_point() else value


def is_bounded(part: Matrix) -> bool:
    """Whether no index of the format can make a value infinite: what needs no look at the values."""
    if part.transforms or part.factor or part.function or part.source is not None:
        return False
    grid = part.header.grid
    with np.errstate(over="ignore"):
        largest = steps(grid.column_codes.max(), grid.resolution) * steps(grid.row_codes.max(), grid.resolution)
        return bool(np.isfinite(largest * np.float32(LARGEST_VALUE)))


def check_finite(name: str, value: torch.Tensor) -> None:
    import torch

    if value.numel() and not all(math.isfinite(end) for end in torch.aminmax(value)):  # NaN is both ends
        raise FormatError(f"{name}: decodes to NaN or Inf; the file is damaged")


def _torch_dtype(info: TensorInfo) -> torch.dtype:
    import torch

    return getattr(torch, TORCH_NAMES[info.dtype])
