"""Residual records: quantized matrices to bytes and back.

    Quantized ─▶ side information (steps, scale codes) ─┐
              ─▶ columns in file order ─▶ rANS streams ─┴─▶ payload of a `residual` record

A strip is up to `lanes` adjacent columns in file order, (scale code, decoded step, index); the side information is
decoded first in the original order, so no permutation is stored. Strips are chained into streams, and small matrices
share streams with their neighbours. The byte layout is in docs/format.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from trueaxis import _core
from trueaxis.entropy.model import Tables
from trueaxis.entropy.side import INTEGERS_PER_BYTE, pack_side, side_lengths, unpack_side
from trueaxis.entropy.varint import pack_varint, unpack_varint
from trueaxis.quantize.grid import OCTAVE, column_groups, steps
from trueaxis.types import Array, Contexts, FormatError, Grid, Quantized

SHARED_BELOW = 1 << 18  # matrices with fewer weights share streams
SHORT_STREAM, FEW_LANES = 10_000, 16  # bytes below which a lane's three bytes of flushing matter, and lanes for them

Segment = tuple[Array, Array, Array, int, int]


@dataclass(frozen=True, eq=False)
class ResidualHeader:
    """A residual record up to its streams.

    Attributes:
        rows, columns: m and n.
        grid, contexts: As in `Quantized`.
        trellis: Trellis identifier.
        centroids: Whether the tables' reconstruction offsets apply.
        lanes: Columns side by side.
        strips_per_stream: Strips chained into one stream.
        shared: Number of the shared stream that holds the indices, or None.
        streams: (stream bytes, escape bytes) of each own stream, in file order.
    """

    rows: int
    columns: int
    grid: Grid
    contexts: Contexts
    trellis: int
    centroids: bool
    lanes: int
    strips_per_stream: int
    shared: int | None
    streams: tuple[tuple[bytes, bytes], ...] = ()


Describe = Callable[[ResidualHeader, Tables], tuple]


def file_order(grid: Grid, contexts: Contexts) -> Array:
    """Columns in the order of the file: by scale code, then step, then index."""
    return np.lexsort((grid.column_codes, contexts.column_codes))


def segment(quantized: Quantized, part: slice = slice(None)) -> Segment:
    """The coder's view of (a range of columns in file order of) a matrix."""
    order = file_order(quantized.grid, quantized.contexts)[part]
    contexts = quantized.contexts
    return (
        np.ascontiguousarray(quantized.indices[order]),
        contexts.row_codes,
        np.ascontiguousarray(contexts.column_codes[order]),
        contexts.shift,
        quantized.trellis,
    )


def parts(columns: int, lanes: int, strips_per_stream: int) -> list[slice]:
    """Ranges of columns in file order, one per stream."""
    width = lanes * strips_per_stream
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def pack_residual(quantized: Quantized, tables: Tables, lanes: int, chain: int, shared: int | None = None) -> bytes:
    """Payload of a `residual` record; with `shared` the indices are left to that shared stream.

    Args:
        quantized: The matrix.
        tables: The model's tables.
        lanes: Columns side by side, 1 to 32.
        chain: Weights that a stream should hold at least.
        shared: Number of a shared stream, or None to code the indices here.
    """
    lanes = min(lanes, quantized.indices.shape[0])
    coded, strips_per_stream = [], 1
    if shared is None:
        coded, strips_per_stream = _encode_parts(quantized, tables, lanes, chain)
        if lanes > FEW_LANES and sum(len(stream) for stream, _ in coded) < SHORT_STREAM * len(coded):
            lanes = FEW_LANES
            coded, strips_per_stream = _encode_parts(quantized, tables, lanes, chain)
    side, modes = pack_side(quantized.grid, quantized.contexts)
    head = bytes(
        [quantized.trellis, quantized.grid.resolution, quantized.contexts.shift, modes | quantized.centroids << 4]
    )
    numbers = (quantized.grid.group, lanes, strips_per_stream, 0 if shared is None else shared + 1, len(side))
    payload = head + b"".join(map(pack_varint, numbers)) + side
    lengths = b"".join(pack_varint(len(data)) for pair in coded for data in pair)
    return payload + lengths + b"".join(data for pair in coded for data in pair)


def _encode_parts(
    quantized: Quantized, tables: Tables, lanes: int, chain: int
) -> tuple[list[tuple[bytes, bytes]], int]:
    """(stream, escapes) of every range of columns, and the strips chained into each."""
    columns, rows = quantized.indices.shape
    strips_per_stream = max(1, chain // (lanes * rows))
    ranges = parts(columns, lanes, strips_per_stream)
    coded = [_core.encode_stream(tables.coder, [segment(quantized, part)], lanes) for part in ranges]
    return coded, strips_per_stream


def unpack_residual(payload: bytes, rows: int, columns: int) -> ResidualHeader:
    """Parses a `residual` record for a matrix [rows, columns]; the indices stay coded.

    Raises:
        FormatError: The payload is damaged or claims more than it can hold.
    """
    try:
        return _unpack_residual(payload, rows, columns)
    except (ValueError, IndexError) as error:
        raise FormatError(f"residual record: {error}; the file is damaged") from error


def shared_stream(payload: bytes) -> int | None:
    """Number of the shared stream that holds the indices of a `residual` record, or None.

    Raises:
        ValueError, IndexError: The payload is damaged.
    """
    shared = _numbers(payload)[0][3]
    return shared - 1 if shared else None


def _numbers(payload: bytes) -> tuple[list[int], int]:
    """(group, lanes, strips per stream, shared stream + 1, bytes of side information), and the position after them."""
    numbers, position = [], 4
    for _ in range(5):
        number, position = unpack_varint(payload, position)
        numbers.append(number)
    return numbers, position


def _unpack_residual(payload: bytes, rows: int, columns: int) -> ResidualHeader:
    trellis, resolution, shift, modes = payload[:4]
    (group, lanes, strips_per_stream, shared, side_bytes), position = _numbers(payload)
    if (
        modes > 63
        or resolution == 0
        or OCTAVE % resolution
        or shift > 7
        or not 1 <= lanes <= 32
        or group < 1
        or strips_per_stream < 1
    ):
        raise ValueError("a field of the header is out of range")
    side = payload[position : position + side_bytes]
    if len(side) != side_bytes:
        raise ValueError("the side information is truncated")
    if sum(side_lengths(rows, columns, group)) > (side_bytes + 8) * INTEGERS_PER_BYTE:
        raise ValueError(f"{side_bytes} bytes of side information are too few for [{rows}, {columns}]")
    grid, contexts = unpack_side(side, rows, columns, group, resolution, shift, modes)
    position += side_bytes
    count = 0 if shared else len(parts(columns, lanes, strips_per_stream))
    lengths = []
    for _ in range(2 * count):
        number, position = unpack_varint(payload, position)
        lengths.append(number)
    if position + sum(lengths) != len(payload):
        raise ValueError(f"expected {position + sum(lengths)} bytes, found {len(payload)}")
    bounds = position + np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    blobs = [payload[a:b] for a, b in pairwise(bounds)]
    streams = tuple(zip(blobs[::2], blobs[1::2], strict=True))
    return ResidualHeader(
        rows,
        columns,
        grid,
        contexts,
        trellis,
        bool(modes >> 4 & 1),
        lanes,
        strips_per_stream,
        shared - 1 if shared else None,
        streams,
    )


def decode_indices(header: ResidualHeader, tables: Tables) -> Array:
    """k, int32 [n, m] in file order, of a matrix with its own streams.

    Raises:
        FormatError: A stream does not decode.
    """
    ranges = parts(header.columns, header.lanes, header.strips_per_stream)
    whole = _description(header)
    decoded = [
        _decode(tables, stream, escapes, [(whole[0], whole[1][part], *whole[2:])], header.lanes)[0]
        for part, (stream, escapes) in zip(ranges, header.streams, strict=True)
    ]
    return np.concatenate(decoded)


def pack_shared(matrices: list[Quantized], tables: Tables, lanes: int) -> bytes:
    """Payload of a `stream` record: the indices of several matrices in one chain."""
    lanes = min(lanes, max(matrix.indices.shape[0] for matrix in matrices))
    segments = [segment(matrix) for matrix in matrices]
    stream, escapes = _core.encode_stream(tables.coder, segments, lanes)
    if lanes > FEW_LANES and len(stream) < SHORT_STREAM:
        lanes = FEW_LANES
        stream, escapes = _core.encode_stream(tables.coder, segments, lanes)
    return pack_varint(lanes) + pack_varint(len(stream)) + stream + escapes


def decode_shared(payload: bytes, headers: list[ResidualHeader], tables: Tables) -> list[Array]:
    """Inverse of `pack_shared`: k [n, m] in file order of every matrix in the chain.

    Raises:
        FormatError: The stream does not decode.
    """
    lanes, stream, escapes = unpack_shared(payload)
    return _decode(tables, stream, escapes, [_description(header) for header in headers], lanes)


def unpack_shared(payload: bytes) -> tuple[int, bytes, bytes]:
    """(lanes, stream, escapes) of a `stream` record.

    Raises:
        FormatError: It is damaged.
    """
    try:
        lanes, position = unpack_varint(payload, 0)
        length, position = unpack_varint(payload, position)
        if not 1 <= lanes <= 32 or position + length > len(payload):
            raise ValueError("a field of the header is out of range")
    except ValueError as error:
        raise FormatError(f"stream record: {error}; the file is damaged") from error
    return lanes, payload[position : position + length], payload[position + length :]


def decode_values(
    header: ResidualHeader,
    tables: Tables,
    bfloat16: bool,
    threads: int,
    out: Array | None = None,
    describe: Describe | None = None,
) -> Array:
    """Ŵ [m, n] of a matrix with its own streams: float32, or the bits of bfloat16 as uint16.

    The same values as `dequantize` of `decode_indices`, in one pass; streams are decoded in parallel. With `out`, an
    array of that shape and dtype, they are written there; with `describe` they have the steps that it gives.

    Raises:
        FormatError: A stream does not decode.
    """
    ranges = parts(header.columns, header.lanes, header.strips_per_stream)
    streams = [
        (stream, escapes, [(0, part.start, part.stop - part.start)])
        for part, (stream, escapes) in zip(ranges, header.streams, strict=True)
    ]
    outputs = [] if out is None else [out]
    return _decode_values(streams, [header], tables, header.lanes, bfloat16, threads, outputs, describe)[0]


def decode_shared_values(
    payload: bytes,
    headers: list[ResidualHeader],
    tables: Tables,
    bfloat16: bool,
    describe: Describe | None = None,
) -> list[Array]:
    """Ŵ [m, n] of every matrix in a shared stream, as `decode_values`.

    Raises:
        FormatError: The stream does not decode.
    """
    lanes, stream, escapes = unpack_shared(payload)
    whole = [(number, 0, header.columns) for number, header in enumerate(headers)]
    return _decode_values([(stream, escapes, whole)], headers, tables, lanes, bfloat16, 1, describe=describe)


def _decode_values(
    streams: list[tuple[bytes, bytes, list[tuple[int, int, int]]]],
    headers: list[ResidualHeader],
    tables: Tables,
    lanes: int,
    bfloat16: bool,
    threads: int,
    outputs: Sequence[Array] = (),
    describe: Describe | None = None,
) -> list[Array]:
    """Streams hold (number of the matrix, first column, columns) each."""
    for stream, _, ranges in streams:
        weights = sum(headers[number].rows * count for number, _, count in ranges)
        _check_length(stream, weights, tables, lanes)
    decode, describe = _core.decode_bfloat16 if bfloat16 else _core.decode_float32, describe or described
    matrices = [describe(header, tables) for header in headers]
    try:
        return decode(tables.coder, streams, matrices, lanes, threads, outputs)
    except ValueError as error:
        raise FormatError(f"stream: {error}; the file is damaged") from error


def described(header: ResidualHeader, tables: Tables) -> tuple:
    """What the core is told of a matrix, columns in file order, and where each of its columns stands there."""
    order = file_order(header.grid, header.contexts)
    places = np.empty(header.columns, np.uint32)
    places[order] = np.arange(header.columns, dtype=np.uint32)
    return (
        header.contexts.row_codes,
        np.ascontiguousarray(header.contexts.column_codes[order]),
        header.contexts.shift,
        header.trellis,
        tables.offsets if header.centroids else np.zeros_like(tables.offsets),
        steps(header.grid.column_codes[order], header.grid.resolution),
        steps(header.grid.row_codes, header.grid.resolution),
        np.ascontiguousarray(column_groups(header.grid)[order]),
        places,
    )


def fine_grid(header: ResidualHeader, tables: Tables) -> tuple:
    """As `described`, for values that are the integers u: 2k or 2k − sgn k, by the state of a column's trellis."""
    *codes, offsets, column_steps, row_steps, groups, places = described(header, tables)
    ones = (np.zeros_like(offsets), np.ones_like(column_steps), np.ones_like(row_steps))
    return (*codes, *ones, groups, places)


def dequantize(header: ResidualHeader, indices: Array, tables: Tables) -> Array:
    """Ŵ, float32 [m, n], from k in file order."""
    *description, places = described(header, tables)
    return np.ascontiguousarray(_core.reconstruct(indices, *description)[places].T)


Description = tuple[Array, Array, int, int]


def _decode(tables: Tables, stream: bytes, escapes: bytes, descriptions: list[Description], lanes: int) -> list[Array]:
    _check_length(stream, sum(rows.size * columns.size for rows, columns, *_ in descriptions), tables, lanes)
    try:
        return _core.decode_stream(tables.coder, stream, escapes, descriptions, lanes)
    except ValueError as error:
        raise FormatError(f"stream: {error}; the file is damaged") from error


def _check_length(stream: bytes, weights: int, tables: Tables, lanes: int) -> None:
    if weights > (len(stream) // 2 - lanes) * tables.weights_per_word:
        raise FormatError(f"stream: {len(stream)} bytes are too few for {weights} weights; the file is damaged")


def _description(header: ResidualHeader) -> Description:
    """The coder's view of a matrix that is still coded: its columns in file order."""
    codes = np.ascontiguousarray(header.contexts.column_codes[file_order(header.grid, header.contexts)])
    return header.contexts.row_codes, codes, header.contexts.shift, header.trellis
