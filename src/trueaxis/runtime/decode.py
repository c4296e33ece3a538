"""Decode: a compressed directory to named tensors, without calibration, alignment, or transformers.

Container ─▶ records of a tensor ─▶ indices (own streams or a shared one) ─▶ float32 values ─▶ dtype, rounded once
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.container import Container, Record, RecordType, TensorInfo
from trueaxis.entropy.model import Tables, unpack_tables
from trueaxis.entropy.stream import ResidualHeader, decode_indices, decode_shared, dequantize, unpack_residual
from trueaxis.types import Array, FormatError

if TYPE_CHECKING:
    import torch

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


class Decoder:
    """Decodes the tensors of one container.

    Args:
        path: Directory written by `trueaxis.compress`.

    Example:
        >>> decoder = Decoder("model-3bit")                       # doctest: +SKIP
        >>> decoder.tensor("model.layers.0.mlp.up_proj.weight")   # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.container = Container(path)
        self._tables: Tables | None = None
        self._shared: list[bytes] = []
        for record in self.container.model_records():
            if record.type == RecordType.TABLES:
                self._tables = unpack_tables(record.payload)
            elif record.type == RecordType.STREAM:
                self._shared.append(record.payload)
        self._cached: tuple[int, dict[str, Array]] | None = None

    def names(self) -> list[str]:
        """Names of all tensors, in the order of the file."""
        return list(self.container.tensors)

    def tensors(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """All tensors; tied ones share storage."""
        done: dict[str, torch.Tensor] = {}
        for name in self.names():
            target = self.alias(name)
            done[name] = done[target] if target in done else self.tensor(name, dtype)
            yield name, done[name]

    def alias(self, name: str) -> str | None:
        """Name of the tensor that `name` is tied to, or None."""
        record = self._main_record(self.container.tensors[name])
        if record.type != RecordType.ALIAS:
            return None
        target = record.payload.decode("utf-8", errors="replace")
        if (
            target not in self.container.tensors
            or self._main_record(self.container.tensors[target]).type == RecordType.ALIAS
        ):
            raise FormatError(f"{name}: tied to {target!r}, which the file does not hold")
        return target

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """One tensor in `dtype`, by default that of the original checkpoint.

        Raises:
            FormatError: Names the tensor.
        """
        import torch

        info = self.container.tensors[self.alias(name) or name]
        record = self._main_record(info)
        own = _torch_dtype(info)
        if record.type == RecordType.PLANES:
            value = _planes(info, record, own)
        else:
            value = torch.from_numpy(self._matrix(info, record)).to(own if dtype is None else dtype)
        return value if dtype is None else value.to(dtype)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor in the original checkpoint."""
        return _torch_dtype(self.container.tensors[name])

    def residual(self, name: str) -> ResidualHeader | None:
        """Parsed side information of a quantized tensor; None for one that is stored exactly or tied."""
        info = self.container.tensors[name]
        record = self._main_record(info)
        return _residual_header(info, record) if record.type == RecordType.RESIDUAL else None

    def _main_record(self, info: TensorInfo) -> Record:
        records = self.container.records(info.name)
        if len(records) != 1:
            raise FormatError(f"{info.name}: expected one record, found {len(records)}; the file is damaged or newer")
        return records[0]

    def _matrix(self, info: TensorInfo, record: Record) -> Array:
        if self._tables is None:
            raise FormatError(f"{info.name}: the file holds no tables")
        header = _residual_header(info, record)
        try:
            if header.shared is None:
                indices = decode_indices(header, self._tables)
            else:
                indices = self._shared_indices(header.shared)[info.name]
            return dequantize(header, indices, self._tables).reshape(info.shape)
        except (FormatError, ValueError) as error:
            raise FormatError(f"{info.name}: {error}") from error

    def _shared_indices(self, number: int) -> dict[str, Array]:
        if self._cached is None or self._cached[0] != number:
            if number >= len(self._shared) or self._tables is None:
                raise FormatError(f"shared stream {number} is missing")
            found = {name: self.residual(name) for name in self.names()}
            members = {name: header for name, header in found.items() if header is not None and header.shared == number}
            decoded = decode_shared(self._shared[number], list(members.values()), self._tables)
            self._cached = number, dict(zip(members, decoded, strict=True))
        return self._cached[1]


def _residual_header(info: TensorInfo, record: Record) -> ResidualHeader:
    if record.type != RecordType.RESIDUAL or len(info.shape) != 2 or 0 in info.shape:
        raise FormatError(f"{info.name}: record type {record.type} does not fit shape {list(info.shape)}")
    try:
        return unpack_residual(record.payload, *info.shape)
    except FormatError as error:
        raise FormatError(f"{info.name}: {error}") from error


def _torch_dtype(info: TensorInfo) -> torch.dtype:
    import torch

    known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
    if info.dtype not in known:
        raise FormatError(f"{info.name}: unknown dtype {info.dtype!r}")
    return known[info.dtype]


def _planes(info: TensorInfo, record: Record, dtype: torch.dtype) -> torch.Tensor:
    """An exact tensor: mode byte 0, then its bytes."""
    import torch

    count = 1
    for size in info.shape:
        count *= size
    expected = 1 + count * ITEM_BYTES[info.dtype]
    if len(record.payload) != expected or record.payload[0] != 0:
        raise FormatError(f"{info.name}: planes record has {len(record.payload)} bytes, expected {expected}")
    raw = np.frombuffer(record.payload, np.uint8, offset=1).copy()
    return torch.from_numpy(raw).view(dtype).reshape(info.shape)
