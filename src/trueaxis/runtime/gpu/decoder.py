"""Decoder on a GPU: streams uploaded once, and any number of tensors decoded there by one launch.

    HeldDecoder ─▶ coded bytes of plain matrices on the device ─▶ plan per set of tensors ─▶ kernels ─▶ tensors there
                └▶ everything else, exact, transformed, summed or multiplied: decoded by the CPU and copied

Every stream's status is looked at the first time a plan runs; the bytes in memory do not change afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from trueaxis.entropy.stream import Describe, described, fine_grid, parts, unpack_shared
from trueaxis.record import RecordType
from trueaxis.runtime.decode import check_finite, is_bounded
from trueaxis.runtime.gpu.launch import Placed, decode, new_scratch, place, told
from trueaxis.runtime.gpu.plan import Coded, Described, DeviceTables, Plan, Work
from trueaxis.runtime.gpu.recorded import Recorded
from trueaxis.runtime.held import Filling, HeldDecoder
from trueaxis.types import FormatError

MOST_SCRATCH = 1 << 27  # bytes, unless one matrix needs more
DIRECT = (torch.bfloat16, torch.float32)  # what the kernels write
Member = tuple[str, int]  # a tensor, and the number of one of its matrices


class GpuDecoder(HeldDecoder):
    """A decoder that holds coded weights on a device and decodes them there.

    Args:
        path, threads, base, device: As for `HeldDecoder`.

    Raises:
        FormatError: The file is damaged.

    Example:
        >>> decoder = GpuDecoder("model-3bit", device="cuda")          # doctest: +SKIP
        >>> decoder.tensor("model.embed_tokens.weight").device.type    # doctest: +SKIP
        'cuda'
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        base: str | Path | None = None,
        device: torch.device | str = "cuda",
    ) -> None:
        super().__init__(path, threads, base, device)
        self._plans: dict[tuple[tuple[str, ...], bool, Describe], _Prepared] = {}
        self._making = threading.Lock()
        self._work: dict[Member | int, list[Work]] = {}
        names = [name for name in self.names() if self._is_plain(name)]
        if names:
            self._device_tables = DeviceTables(self.tables, self.device)
            self._upload(names)

    @property
    def held_bytes(self) -> int:
        """Bytes of coded weights in memory, of either side, without the parsed side information."""
        return super().held_bytes + (self._coded.size_bytes if self._work else 0)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """As of a `Decoder`, on the device."""
        dtype = dtype or self.dtype(name)
        out = torch.empty(self.container.tensors[name].shape, dtype=dtype, device=self.device)
        self.fill_all([(name, out)])
        return out

    def tensors(self, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
        """All tensors, on the device; tied ones share storage."""
        targets = {name: self.alias(name) or name for name in self.names()}
        own = {
            name: torch.empty(self.container.tensors[name].shape, dtype=dtype or self.dtype(name), device=self.device)
            if self._is_plain(name)
            else super(GpuDecoder, self).tensor(name, dtype).to(self.device)
            for name in dict.fromkeys(targets.values())
        }
        self.fill_all([(name, value) for name, value in own.items() if self._is_plain(name)])
        return {name: own[target] for name, target in targets.items()}

    def fill_all(self, wanted: Sequence[tuple[str, torch.Tensor]], describe: Describe = described) -> None:
        """Decodes tensors into contiguous memory of their shapes on the device, by the stream that is current.

        Raises:
            FormatError: One is damaged; the message names it.
        """
        wanted = [(self.alias(name) or name, out) for name, out in wanted]
        for name, out in wanted:
            if not self._is_plain(name):
                out.copy_(super().tensor(name, out.dtype))
        for wave, wide in self._waves([(name, out) for name, out in wanted if self._is_plain(name)]):
            self._run(wave, wide, describe)

    def filling(self, wanted: Sequence[tuple[str, torch.Tensor]]) -> Filling | Recorded:
        """As of a `HeldDecoder`, recorded where the device does all of it, without a look at the values."""
        own = [(self.alias(name) or name, out) for name, out in wanted]
        if not all(self._is_plain(name) and self._is_bounded(name) and out.dtype in DIRECT for name, out in own):
            return super().filling(wanted)
        launches = [
            self._prepared(tuple(name for name, _ in wave), wide, described).launching(dict(wave))
            for wave, wide in self._waves(own)
        ]
        return Recorded(launches, self._graph_pool)

    @cached_property
    def _graph_pool(self) -> Any:
        return torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    def fine_grid(self, name: str) -> torch.Tensor:
        """As of a `HeldDecoder`, on the device."""
        name = self.alias(name) or name
        out = torch.empty(self.container.tensors[name].shape, dtype=torch.float32, device=self.device)
        self._run([(name, out)], True, fine_grid)
        return out

    def _is_plain(self, name: str) -> bool:
        """Whether a tensor consists of matrices that the kernels decode to the end."""
        found = self._parsed[name]
        beside = self._held[name][0].type == RecordType.BASE
        return (
            bool(found)
            and not beside
            and not any(part.transforms or part.factor or part.function or part.source is not None for part in found)
        )

    def _upload(self, names: Sequence[str]) -> None:
        """Streams of these tensors to the device; what the CPU needs no more is forgotten."""
        streams: list[tuple[bytes, bytes]] = []
        layout: list[tuple[Member | int, int, list[tuple[tuple[int, int, int], ...]]]] = []
        shared: dict[int, None] = {}
        for name in names:
            for index, part in enumerate(self._parsed[name]):
                header = part.header
                if header.shared is not None:
                    shared[header.shared] = None
                    continue
                ranges = parts(header.columns, header.lanes, header.strips_per_stream)
                layout.append(
                    ((name, index), header.lanes, [((0, one.start, one.stop - one.start),) for one in ranges])
                )
                streams += header.streams
                part.__dict__["header"] = replace(header, streams=())
        for number in shared:
            lanes, words, escapes = unpack_shared(self._shared[number])
            members = self._members[number]
            whole = tuple((at, 0, self._parsed[name][index].columns) for at, (name, index) in enumerate(members))
            layout.append((number, lanes, [whole]))
            streams.append((words, escapes))
        self._coded = Coded(streams, self.device)
        spans = iter(self._coded.spans)
        for key, lanes, ranges in layout:
            self._work[key] = [Work(next(spans), lanes, one) for one in ranges]

    def _is_bounded(self, name: str) -> bool:
        return all(map(is_bounded, self._parsed[name]))

    def _waves(self, wanted: Sequence[tuple[str, torch.Tensor]]) -> list[tuple[list[tuple[str, torch.Tensor]], bool]]:
        """Tensors that are decoded together, as many as the scratch holds, and whether as float32."""
        waves: list[tuple[list[tuple[str, torch.Tensor]], bool]] = []
        for wide in (False, True):
            left = -1
            for name, out in wanted:
                if (out.dtype != DIRECT[0]) != wide:
                    continue
                size = out.numel() * (4 if wide else 2)
                if left < size:
                    waves.append(([], wide))
                    left = MOST_SCRATCH
                waves[-1][0].append((name, out))
                left -= size
        return waves

    def _run(self, wanted: Sequence[tuple[str, torch.Tensor]], wide: bool, describe: Describe) -> None:
        prepared = self._prepared(tuple(name for name, _ in wanted), wide, describe)
        targets = [out if out.dtype in DIRECT else torch.empty_like(out, dtype=torch.float32) for _, out in wanted]
        prepared.launching(dict(zip((name for name, _ in wanted), targets, strict=True)))()
        for (name, out), target in zip(wanted, targets, strict=True):
            if target is not out:
                out.copy_(target)
            if not self._is_bounded(name):
                check_finite(name, out)

    def _prepared(self, names: tuple[str, ...], wide: bool, describe: Describe) -> _Prepared:
        with self._making:
            key = (names, wide, describe)
            if key not in self._plans:
                self._plans[key] = self._prepare(names, wide, describe)
            return self._plans[key]

    def _prepare(self, names: tuple[str, ...], wide: bool, describe: Describe) -> _Prepared:
        """A plan for these tensors, and for whatever shares streams with them."""
        members: list[Member] = []
        work: list[Work] = []
        shared: dict[int, None] = {}
        for name in dict.fromkeys(names):
            for index, part in enumerate(self._parsed[name]):
                if part.header.shared is not None:
                    shared[part.header.shared] = None
                    continue
                work += [_numbered(one, len(members)) for one in self._work[name, index]]
                members.append((name, index))
        for number in shared:
            work += [_numbered(one, len(members)) for one in self._work[number]]
            members += self._members[number]
        name = names[0]
        try:
            matrices = []
            for name, index in members:
                matrices.append(Described(*describe(self._parsed[name][index].header, self.tables)))
            plan = Plan(self._device_tables, work, matrices, wide, self.device)
        except FormatError as error:
            raise FormatError(f"{name}: {error}") from error
        return _Prepared(self, plan, work, members)


def _numbered(work: Work, first: int) -> Work:
    """The same stream, its matrices counted from `first`."""
    return replace(work, ranges=tuple((number + first, start, count) for number, start, count in work.ranges))


class _Prepared:
    """A plan, and the tensors that its matrices belong to."""

    def __init__(self, decoder: GpuDecoder, plan: Plan, work: Sequence[Work], members: Sequence[Member]) -> None:
        self._plan, self._coded, self._is_checked = plan, decoder._coded, False
        self._names = [members[work[number].ranges[0][0]][0] for number in plan.order]
        self._members = list(members)
        self._transposed = [decoder._parsed[name][index].transposed for name, index in members]

    def launching(self, outs: dict[str, torch.Tensor]) -> Callable[[], None]:
        """What decodes these tensors of the plan to where they belong.

        Raises:
            FormatError: When it is called for the first time: a stream is damaged.
        """
        return partial(self._launch, self._placings(outs))

    def _launch(self, placings: Sequence[Placed]) -> None:
        scratch = new_scratch(self._plan)
        statuses = torch.empty(len(self._plan.order), dtype=torch.int32, device=self._plan.device)
        decode(self._plan, self._coded, scratch, statuses)
        for one in placings:
            place(self._plan, scratch, one)
        if not self._is_checked:
            self._check(statuses)

    def _placings(self, outs: dict[str, torch.Tensor]) -> list[Placed]:
        found = []
        for transposed in (False, True):
            chosen = [
                (number, outs[name] if outs[name].ndim == 2 else outs[name][index])
                for number, (name, index) in enumerate(self._members)
                if name in outs and self._transposed[number] == transposed
            ]
            if chosen:
                found.append(Placed.on(self._plan, chosen, transposed))
        return found

    def _check(self, statuses: torch.Tensor) -> None:
        for name, status in zip(self._names, statuses.tolist(), strict=True):
            if status:
                raise FormatError(f"{name}: stream: {told(status)}; the file is damaged")
        self._is_checked = True
