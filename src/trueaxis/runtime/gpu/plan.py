"""Plans: what one launch of the kernels is told, as tables on the device.

    streams, matrices ─▶ checked against each other ─▶ one row per stream, strip, matrix; arrays of rows and columns

    stream   first strip, last strip, lanes, words at, words, escapes at, bytes of escapes
    strip    first column, columns, rows, row codes at, row steps at, groups, shift, parity's and state's share in the
             next state, set of values, where column 0 goes in the scratch, entries from column to column there
    matrix   first tile, rows, columns, places at, scratch at, stride, address of its values

A plan holds no coded bytes; those are uploaded once, as `Coded`, and plans say where in it their streams lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch

from trueaxis.entropy.model import TOTAL, Tables
from trueaxis.types import Array, FormatError

# (h0, h1) of every trellis, as in docs/format.md.
TRELLISES = ((0, 0), (0o5, 0o2), (0o13, 0o4), (0o23, 0o4), (0o45, 0o10), (0o103, 0o24), (0o327, 0o124), (0o753, 0o304))
ESCAPE = -64  # k that marks an escape in the tables
REACH = 128  # k = −64 … 63 in the table of values
ALIGNMENT = 8  # 16-bit words between streams
ROWS = 8  # of a column that the kernel writes at once
TILE = 64  # rows and columns that a program of the second launch places


@dataclass(frozen=True)
class Span:
    """Where a stream's bytes lie in what was uploaded: its words, initial states first, and its escapes."""

    word: int
    words: int
    escape: int
    escape_bytes: int


@dataclass(frozen=True)
class Work:
    """A stream and the columns that it holds.

    Attributes:
        span: Its bytes.
        lanes: Columns side by side.
        ranges: (number of the matrix in the plan, first column, columns), in file order.
    """

    span: Span
    lanes: int
    ranges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, eq=False)
class Described:
    """A matrix [rows, columns] as `entropy.stream.described` tells it."""

    row_codes: Array
    column_codes: Array
    shift: int
    trellis: int
    offsets: Array
    column_steps: Array
    row_steps: Array
    groups: Array
    places: Array

    @property
    def rows(self) -> int:
        """m."""
        return self.row_codes.size

    @property
    def columns(self) -> int:
        """n."""
        return self.column_codes.size

    @property
    def stride(self) -> int:
        """Entries from column to column in the scratch."""
        return -(-self.rows // ROWS) * ROWS


class Coded:
    """Streams' bytes on a device.

    Args:
        streams: (words, escapes) of each; lengths of words are even.
        device: Where they go.
    """

    def __init__(self, streams: Sequence[tuple[bytes, bytes]], device: torch.device) -> None:
        starts = [0, *accumulate(-(-len(words) // 2 // ALIGNMENT) * ALIGNMENT for words, _ in streams)]
        escapes = [0, *accumulate(len(data) for _, data in streams)]
        self.spans = [
            Span(start, len(words) // 2, escape, len(data))
            for start, escape, (words, data) in zip(starts[:-1], escapes[:-1], streams, strict=True)
        ]
        whole = np.zeros(max(starts[-1], 1), np.int16)
        for span, (words, _) in zip(self.spans, streams, strict=True):
            if len(words) % 2:
                raise FormatError("stream: truncated; the file is damaged")
            whole[span.word : span.word + span.words] = np.frombuffer(words, "<i2")
        data = np.frombuffer(b"".join(data for _, data in streams) or b"\0", np.uint8).copy()
        self.words = torch.from_numpy(whole).to(device).view(torch.uint16)
        self.escapes = torch.from_numpy(data).to(device)

    @property
    def size_bytes(self) -> int:
        """On the device."""
        return 2 * self.words.numel() + self.escapes.numel()


class DeviceTables:
    """A model's tables as the kernel reads them.

    Args:
        tables: Of the file.
        device: Where they go.
    """

    def __init__(self, tables: Tables, device: torch.device) -> None:
        self.classes = tables.frequencies.shape[1]
        self.largest = tables.largest_magnitude
        self.tables = tables
        self.entries = _entries(tables)
        self.symbols = torch.from_numpy(_symbols(tables)).to(device)
        self.orders = torch.from_numpy(tables.escape_orders.astype(np.int32)).to(device)


class Plan:
    """One launch.

    Args:
        tables: Of the model.
        work: Streams.
        matrices: What they hold; every column of each exactly once.
        wide: Whether values are float32 and not bfloat16.
        device: Where the tables go.

    Raises:
        FormatError: Streams and matrices do not fit each other.
    """

    def __init__(
        self,
        tables: DeviceTables,
        work: Sequence[Work],
        matrices: Sequence[Described],
        wide: bool,
        device: torch.device,
    ) -> None:
        self.tables, self.wide, self.device = tables, wide, device
        self.matrices = list(matrices)
        self.order = sorted(range(len(work)), key=lambda number: -_steps(work[number], matrices))  # longest first
        self._sets: list[Array] = []
        strips, streams = self._rows([work[number] for number in self.order])
        self.streams, self.strips = self._upload(streams), self._upload(strips)
        kinds = (np.int32, np.float32, np.int32, np.int32, np.float32, np.int32)
        names = ("column_codes", "column_steps", "groups", "row_codes", "row_steps", "places")
        joined = [
            np.concatenate([getattr(one, name).reshape(-1) for one in matrices]).astype(kind)
            for name, kind in zip(names, kinds, strict=True)
        ]
        self.column_codes, self.column_steps, self.groups, self.row_codes, self.row_steps, self.places = map(
            self._upload, joined
        )
        sets = np.stack([_values(one) for one in self._sets]).view(np.int32).astype(np.int64)
        self.info = self._upload(sets << 32 | tables.entries)

    @property
    def scratch_entries(self) -> int:
        """Values that the first launch writes."""
        return self._scratch[-1]

    @cached_property
    def _scratch(self) -> list[int]:
        return [0, *accumulate(one.columns * one.stride for one in self.matrices)]

    @cached_property
    def tile_counts(self) -> list[int]:
        """Programs of the second launch, by matrix."""
        return [-(-one.rows // TILE) * -(-one.columns // TILE) for one in self.matrices]

    def placing(self, numbers: Sequence[int], addresses: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tables of a second launch: tiles and matrices.

        Args:
            numbers: Matrices that are wanted.
            addresses: Where the values of each go.
        """
        columns = [0, *accumulate(one.columns for one in self.matrices)]
        rows, tiles, first = [], [], 0
        for number, address in zip(numbers, addresses, strict=True):
            one = self.matrices[number]
            rows.append((first, one.rows, one.columns, columns[number], self._scratch[number], one.stride, address, 0))
            tiles.append(np.full(self.tile_counts[number], len(rows) - 1, np.int32))
            first += self.tile_counts[number]
        return self._upload(np.concatenate(tiles)), self._upload(np.array(rows, np.int64))

    def _upload(self, values: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _rows(self, work: Sequence[Work]) -> tuple[Array, Array]:
        """Rows of all strips and of all streams."""
        columns = [0, *accumulate(one.columns for one in self.matrices)]
        codes = [0, *accumulate(one.rows for one in self.matrices)]
        steps = [0, *accumulate(one.row_steps.size for one in self.matrices)]
        missing = [one.columns for one in self.matrices]
        strips: list[tuple[int, ...]] = []
        streams = []
        for one in work:
            first = len(strips)
            self._check(one)
            for number, start, count in one.ranges:
                matrix = self.matrices[number]
                missing[number] -= count
                shares = self._shares(matrix)
                for column in range(start, start + count, one.lanes):
                    width = min(one.lanes, start + count - column)
                    scratch = self._scratch[number] + column * matrix.stride
                    place = (columns[number] + column, width, matrix.rows, codes[number], steps[number])
                    strips.append((*place, matrix.row_steps.shape[1], *shares, scratch, matrix.stride))
            span = one.span
            body = span.words - 2 * one.lanes
            streams.append((first, len(strips), one.lanes, span.word, body, span.escape, span.escape_bytes, 0))
        if any(missing):
            raise FormatError("stream: columns of a matrix are missing or there twice; the file is damaged")
        return np.array(strips, np.int64).reshape(-1, 12), np.array(streams, np.int64).reshape(-1, 8)

    def _check(self, work: Work) -> None:
        """What a stream can hold at most, as `entropy.stream` checks it."""
        words = work.span.words - 2 * work.lanes
        weights = sum(self.matrices[number].rows * count for number, _, count in work.ranges)
        if words < 0:
            raise FormatError("stream: truncated; the file is damaged")
        if weights > (work.span.words - work.lanes) * self.tables.tables.weights_per_word:
            raise FormatError(f"stream: {2 * work.span.words} bytes are too few for {weights} weights; it is damaged")

    def _shares(self, matrix: Described) -> tuple[int, int, int, int]:
        """Shift, parity's and state's share in the next state, set of values."""
        if matrix.trellis >= len(TRELLISES):
            raise FormatError(f"stream: trellis {matrix.trellis} is unknown; the file is damaged or newer")
        number = next((at for at, one in enumerate(self._sets) if np.array_equal(one, matrix.offsets)), None)
        if number is None:
            self._sets.append(matrix.offsets)
            number = len(self._sets) - 1
        h0, h1 = TRELLISES[matrix.trellis]
        return matrix.shift, h1 >> 1, h0 >> 1, number


def _steps(work: Work, matrices: Sequence[Described]) -> int:
    """Rows that a stream's warp goes through."""
    return sum(-(-count // work.lanes) * matrices[number].rows for number, _, count in work.ranges)


def _alphabet(tables: Tables) -> tuple[Array, Array, Array]:
    """k of every symbol; frequencies and starts int64 [2, classes, 2K + 2]."""
    largest = tables.largest_magnitude
    k = np.arange(-largest, largest + 1)
    frequencies = tables.frequencies[:, :, [*np.abs(k), largest + 1]].astype(np.int64)
    return np.append(k, ESCAPE), frequencies, np.cumsum(frequencies, axis=2) - frequencies


def _symbols(tables: Tables) -> Array:
    """uint8 [2, classes, 4096]: k + 64 at every slot; that of an escape where a table is absent."""
    k, frequencies, _ = _alphabet(tables)
    found = np.zeros((*frequencies.shape[:2], TOTAL), np.uint8)
    for cell in np.argwhere(frequencies.any(axis=2)):
        found[*cell] = np.repeat(k - ESCAPE, frequencies[*cell])
    return found


def _entries(tables: Tables) -> Array:
    """int64 [2, classes, 128]: frequency | start << 12 of k = −64 … 63; the escape stands at −64."""
    k, frequencies, starts = _alphabet(tables)
    found = np.zeros((*frequencies.shape[:2], REACH), np.int64)
    found[:, :, k - ESCAPE] = frequencies | (starts & TOTAL - 1) << 12
    return found


def _values(offsets: Array) -> Array:
    """float32 [2, classes, 128]: reconstruction of k = −64 … 63 before scaling."""
    k = np.arange(-REACH // 2, REACH // 2)
    sign = np.sign(k)
    quantizer = np.arange(2)[:, None, None]
    shift = offsets[:, :, np.minimum(np.abs(k), 2) - 1].astype(np.float32) / np.float32(64)
    fine = np.broadcast_to(2 * k - quantizer * sign, shift.shape)
    return np.where(k == 0, np.float32(0), fine.astype(np.float32) + sign.astype(np.float32) * shift)
