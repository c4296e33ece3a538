"""Held: a decoder that keeps the coded weights in memory, checked and parsed once.

Container ─▶ every record read, checksum compared, side information decoded ─▶ any tensor, without the files
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from trueaxis.entropy.stream import ResidualHeader, decode_shared_values, decode_values, fine_grid
from trueaxis.header import TensorInfo
from trueaxis.record import Record, RecordType
from trueaxis.runtime.decode import Decoder, check_finite, is_bounded
from trueaxis.runtime.matrices import Matrix
from trueaxis.types import FormatError

OWN_BITS = {torch.float32: torch.float32, torch.bfloat16: torch.uint16}  # what the core writes, by dtype


@dataclass(frozen=True, eq=False)
class Filling:
    """Tensors to be decoded into memory, whenever it is called.

    Attributes:
        decoder: Decodes them.
        wanted: Names, and where each goes.
        is_queued: Whether a call returns before the work is done, by a device that does it.
    """

    decoder: HeldDecoder
    wanted: Sequence[tuple[str, torch.Tensor]]
    is_queued: ClassVar[bool] = False

    def __call__(self) -> None:
        self.decoder.fill_all(self.wanted)


class HeldDecoder(Decoder):
    """A decoder that reads its files when it is made and never again.

    Args:
        path, threads, base: As for `Decoder`.
        device: Where what `fill_all` fills lies.

    Raises:
        FormatError: A checksum differs, or a tensor's records are damaged.

    Example:
        >>> decoder = HeldDecoder("model-3bit")                       # doctest: +SKIP
        >>> decoder.fill("model.embed_tokens.weight", buffer)         # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        base: str | Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(path, threads, base)
        self.device = torch.device(device)
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

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """As of a `Decoder`, on the device."""
        return super().tensor(name, dtype).to(self.device)

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """All tensors, on the device; tied ones share storage."""
        found = super().tensors(dtype)
        moved = {id(value): value.to(self.device) for value in found.values()}
        return {name: moved[id(value)] for name, value in found.items()}

    def fine_grid(self, name: str) -> torch.Tensor:
        """u, float32 [m, n], of a tensor that has a plain header.

        Raises:
            FormatError: It is damaged; the message names the tensor.
        """
        name = self.alias(name) or name
        header = self._parsed[name][0].header
        try:
            if header.shared is None:
                found = decode_values(header, self.tables, False, self._threads, describe=fine_grid)
                return torch.from_numpy(found)
            members = self._members[header.shared]
            headers = [self._parsed[member][index].header for member, index in members]
            grids = decode_shared_values(self._shared[header.shared], headers, self.tables, False, fine_grid)
        except (FormatError, ValueError) as error:
            raise FormatError(f"{name}: {error}") from error
        return torch.from_numpy(grids[members.index((name, 0))])

    def fill_all(self, wanted: Sequence[tuple[str, torch.Tensor]]) -> None:
        """Decodes tensors into memory on the device, each contiguous and of its shape, in its dtype.

        Raises:
            FormatError: One is damaged; the message names it.
        """
        for name, out in wanted:
            if out.device.type == "cpu":
                self.fill(name, out)
            else:
                out.copy_(self.tensor(name, out.dtype))

    def filling(self, wanted: Sequence[tuple[str, torch.Tensor]]) -> Filling:
        """What does `fill_all` again and again, always into the same memory."""
        return Filling(self, wanted)

    @contextmanager
    def ahead(self, after: Any) -> Iterator[None]:
        """Work on the device inside runs beside what is queued there, but after a mark."""
        if self.device.type != "cuda":
            yield
            return
        with torch.cuda.stream(self._beside_stream):
            self._beside_stream.wait_event(after)
            yield

    @cached_property
    def _beside_stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    def mark(self) -> Any:
        """A point in the work that is queued on the device by now; on the CPU, where all of it is done, None."""
        return torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None

    def join(self, mark: Any) -> None:
        """What is queued from now on waits for a mark."""
        if mark is not None:
            torch.cuda.current_stream(self.device).wait_event(mark)

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
