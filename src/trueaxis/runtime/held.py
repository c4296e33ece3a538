"""Held: a decoder that keeps the coded weights in memory, checked and parsed once.

Container ─▶ every record read, checksum compared, side information decoded ─▶ any tensor, without the files
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from trueaxis.entropy.stream import ResidualHeader, decode_shared_values, decode_values, fine_grid
from trueaxis.header import TensorInfo
from trueaxis.record import Record, RecordType
from trueaxis.runtime.decode import Decoder, check_finite, is_bounded
from trueaxis.runtime.matrices import Matrix
from trueaxis.types import Array, FormatError

OWN_BITS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16}  # what the core writes, by dtype


class HeldDecoder(Decoder):
    """A decoder that reads its files when it is made and never again.

    Args:
        path, threads, base: As for `Decoder`.

    Raises:
        FormatError: A checksum differs, or a tensor's records are damaged.

    Example:
        >>> decoder = HeldDecoder("model-3bit")                       # doctest: +SKIP
        >>> decoder.fill("model.embed_tokens.weight", buffer)         # doctest: +SKIP
    """

    def __init__(self, path: str | Path, threads: int | None = None, base: str | Path | None = None) -> None:
        super().__init__(path, threads, base)
        self._held: dict[str, list[Record]] = {}
        self._parsed: dict[str, list[Matrix]] = {}
        _ = self._members, self._products  # found by a look at the files, now
        for name in self.names():
            records = super()._records(name)
            self._parsed[name] = [self._without_payload(name, part) for part in self._matrices_of(name, records)]
            coded = (RecordType.RESIDUAL, RecordType.TRANSFORM)
            self._held[name] = [replace(one, payload=b"") if one.type in coded else one for one in records]

    @property
    def held_bytes(self) -> int:
        """Bytes of coded weights in memory, without the parsed side information."""
        own = sum(len(record.payload) for records in self._held.values() for record in records)
        streams = (pair for parts in self._parsed.values() for part in parts for pair in part.header.streams)
        return own + sum(map(len, self._shared)) + sum(len(data) for pair in streams for data in pair)

    def is_quantized(self, name: str) -> bool:
        """Whether a tensor is made of matrices of its own, and not another one times a matrix."""
        return bool(self._parsed[name]) and self._parsed[name][0].source is None

    def plain_header(self, name: str) -> ResidualHeader | None:
        """Side information of a tensor, or the one it is tied to, that is one matrix, neither turned nor multiplied."""
        name = self.alias(name) or name
        alone = len(self._parsed[name]) == 1 and self._held[name][0].type == RecordType.RESIDUAL
        return self._parsed[name][0].header if alone else None

    def fine_grid(self, name: str) -> Array:
        """u, float32 [m, n], of a tensor that has a plain header.

        Raises:
            FormatError: It is damaged; the message names the tensor.
        """
        name = self.alias(name) or name
        header = self._parsed[name][0].header
        try:
            if header.shared is None:
                return decode_values(header, self.tables, False, self._threads, describe=fine_grid)
            members = self._members[header.shared]
            headers = [self._parsed[member][index].header for member, index in members]
            found = decode_shared_values(self._shared[header.shared], headers, self.tables, False, fine_grid)
        except (FormatError, ValueError) as error:
            raise FormatError(f"{name}: {error}") from error
        return found[members.index((name, 0))]

    def fill(self, name: str, out: torch.Tensor) -> None:
        """Decodes a tensor into `out`, contiguous and of its shape, in the dtype of `out`.

        Raises:
            FormatError: It is damaged; the message names the tensor.
        """
        name = self.alias(name) or name
        parts = self._parsed[name]
        header = self.plain_header(name)
        if header is None or header.shared is not None or out.dtype not in OWN_BITS:
            out.copy_(self.tensor(name, out.dtype))
            return
        bits = out.view(OWN_BITS[out.dtype]).numpy()
        try:
            decode_values(header, self.tables, out.dtype == torch.bfloat16, self._threads, bits)
        except (FormatError, ValueError) as error:
            raise FormatError(f"{name}: {error}") from error
        if not is_bounded(parts[0]):
            check_finite(name, out)

    def _records(self, name: str) -> list[Record]:
        return self._held[name]

    def _matrices(self, info: TensorInfo, records: Sequence[Record]) -> list[Matrix]:
        return self._parsed[info.name]

    def _matrices_of(self, name: str, records: Sequence[Record]) -> list[Matrix]:
        return super()._matrices(self.container.tensors[name], records)

    def _without_payload(self, name: str, part: Matrix) -> Matrix:
        """The same matrix; its header, which has a copy of the streams, is parsed and the payload forgotten."""
        try:
            header = part.header
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from error
        parsed = replace(part, payload=b"")
        parsed.__dict__["header"] = header
        return parsed
