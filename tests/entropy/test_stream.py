"""Residual records and shared streams: round trips over every layout, and how close they come to their ideal."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueaxis import _core
from trueaxis.assemble import count_symbols
from trueaxis.entropy.model import CODES_PER_OCTAVE, ZERO_CLASS, Tables, fit_tables, pack_tables, unpack_tables
from trueaxis.entropy.stream import (
    decode_indices,
    decode_shared,
    dequantize,
    file_order,
    pack_residual,
    pack_shared,
    parts,
    segment,
    unpack_residual,
)
from trueaxis.quantize.grid import column_groups, steps
from trueaxis.types import Array, Contexts, FormatError, Grid, Quantized
from twins import quantizers


@dataclass(frozen=True)
class Shape:
    rows: int
    columns: int
    group: int
    resolution: int
    shift: int
    trellis: int
    seed: int
    magnitude: float


SHAPES = st.builds(
    Shape,
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    group=st.integers(1, 80),
    resolution=st.sampled_from([1, 2, 4, 8, 16, 32]),
    shift=st.integers(0, 7),
    trellis=st.integers(0, 5),
    seed=st.integers(0, 2**32),
    magnitude=st.sampled_from([0.0, 0.4, 3.0, 300.0]),
)


def make(shape: Shape) -> Quantized:
    """Indices whose scale codes are roughly right, with an outlier in ten thousand."""
    rng = np.random.default_rng(shape.seed)
    octaves = rng.normal(size=shape.columns)
    per_octave = CODES_PER_OCTAVE << shape.shift
    spread = shape.magnitude * 2.0 ** octaves[:, None]
    k = np.rint(rng.laplace(size=(shape.columns, shape.rows)) * spread)
    k[rng.random(k.shape) < 1e-4] = (1 << 24) * rng.choice([-1, 1])
    row_codes = rng.integers(-1, 2, shape.rows) * rng.integers(0, per_octave)
    column_codes = np.rint((np.log2(max(shape.magnitude, 0.1)) + octaves) * per_octave) + (ZERO_CLASS << shape.shift)
    groups = -(-shape.columns // shape.group)
    grid = Grid(
        np.rint(octaves * shape.resolution).astype(np.int32),
        rng.integers(-3, 4, (shape.rows, groups)).astype(np.int32),
        shape.resolution,
        shape.group,
    )
    contexts = Contexts(row_codes.astype(np.int32), column_codes.astype(np.int32), shape.shift)
    return Quantized(k.astype(np.int32), grid, contexts, shape.trellis, bool(shape.seed % 2))


def tables_for(matrices: list[Quantized]) -> Tables:
    rng = np.random.default_rng(0)
    return fit_tables(count_symbols(matrices), rng.integers(-60, 20, (2, 48, 2)).astype(np.int8))


def plain_values(quantized: Quantized, tables: Tables) -> Array:
    """Ŵ [m, n] by docs/format.md, one operation at a time in float32."""
    q = quantizers(quantized.indices, quantized.trellis).T
    k = quantized.indices.T
    contexts, grid = quantized.contexts, quantized.grid
    cls = np.clip((contexts.row_codes[:, None].astype(int) + contexts.column_codes) >> contexts.shift, 0, 47)
    offset = tables.offsets[q, cls, np.clip(np.abs(k), 1, 2) - 1].astype(np.float32) / np.float32(64)
    offset = np.where((k == 0) | (not quantized.centroids), np.float32(0), offset)
    u = (2 * k - np.where(q == 1, np.sign(k), 0)).astype(np.float32)
    step = steps(grid.column_codes, grid.resolution) * steps(grid.row_codes, grid.resolution)[:, column_groups(grid)]
    return (u + np.sign(k).astype(np.float32) * offset) * step


def assert_equal(found: Quantized, header: object, indices: Array) -> None:
    order = file_order(found.grid, found.contexts)
    np.testing.assert_array_equal(indices, found.indices[order])
    for part in ("grid", "contexts"):
        expected, decoded = getattr(found, part), getattr(header, part)
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(getattr(decoded, name), value, err_msg=f"{part}.{name}")
    assert (header.trellis, header.centroids) == (found.trellis, found.centroids)  # type: ignore[attr-defined]


@settings(max_examples=80, deadline=None)
@given(SHAPES, st.integers(1, 32), st.sampled_from([1, 100, 1000, 1 << 20]))
def test_residual_round_trip(shape: Shape, lanes: int, chain: int) -> None:
    quantized = make(shape)
    tables = tables_for([quantized])
    payload = pack_residual(quantized, tables, lanes, chain)
    header = unpack_residual(payload, shape.rows, shape.columns)
    written = unpack_tables(pack_tables(tables))  # as a reader has them
    indices = decode_indices(header, written)
    assert_equal(quantized, header, indices)
    assert header.lanes == min(lanes, shape.columns, 16) and header.shared is None
    np.testing.assert_array_equal(dequantize(header, indices, written), plain_values(quantized, tables))


@settings(max_examples=40, deadline=None)
@given(st.lists(SHAPES, min_size=1, max_size=5), st.integers(1, 32), st.integers(0, 300))
def test_shared_stream_round_trip(shapes: list[Shape], lanes: int, number: int) -> None:
    matrices = [make(shape) for shape in shapes]
    tables = tables_for(matrices)
    headers = [
        unpack_residual(pack_residual(matrix, tables, lanes, 1 << 20, number), shape.rows, shape.columns)
        for matrix, shape in zip(matrices, shapes, strict=True)
    ]
    assert all(header.shared == number and not header.streams for header in headers)
    decoded = decode_shared(pack_shared(matrices, tables, lanes), headers, tables)
    for matrix, header, indices in zip(matrices, headers, decoded, strict=True):
        assert_equal(matrix, header, indices)


def test_columns_lie_by_scale_code_then_step_then_index() -> None:
    grid = Grid(np.array([5, 1, 1, 9, 1], np.int32), np.zeros((1, 1), np.int32), 8, 5)
    contexts = Contexts(np.zeros(1, np.int32), np.array([2, 2, 1, 1, 2], np.int32), 0)
    assert file_order(grid, contexts).tolist() == [2, 3, 1, 4, 0]


@pytest.mark.parametrize(("columns", "lanes", "strips"), [(1, 32, 1), (65, 32, 1), (64, 32, 2), (100, 7, 3)])
def test_parts_cover_all_columns_once(columns: int, lanes: int, strips: int) -> None:
    found = parts(columns, lanes, strips)
    assert np.concatenate([np.arange(columns)[part] for part in found]).tolist() == list(range(columns))
    assert all(part.stop - part.start == lanes * strips for part in found[:-1])


@pytest.mark.parametrize("chain", [1, 1 << 20])
def test_chains_set_the_number_of_streams(chain: int) -> None:
    quantized = make(Shape(40, 70, 70, 8, 0, 0, 1, 3.0))
    payload = pack_residual(quantized, tables_for([quantized]), 16, chain)
    assert len(unpack_residual(payload, 40, 70).streams) == (5 if chain == 1 else 1)


@pytest.mark.parametrize("rows", [256, 1500])
@pytest.mark.parametrize("magnitude", [0.0, 0.1, 0.3, 0.7, 1.2, 3.0, 40.0])
@pytest.mark.parametrize("trellis", [0, 2])
def test_streams_are_close_to_the_ideal_length_of_their_tables(rows: int, magnitude: float, trellis: int) -> None:
    quantized = make(Shape(rows, 256, 256, 8, 0, trellis, 4, magnitude))
    tables = tables_for([quantized])
    ideal = _core.stream_bits(tables.coder, [segment(quantized)]) / 8
    header = unpack_residual(pack_residual(quantized, tables, 32, 1 << 20), rows, 256)
    spent = sum(len(data) for pair in header.streams for data in pair)
    shared = len(pack_shared([quantized], tables, 32))
    assert ideal * 0.999 <= spent <= ideal * 1.005 + 64
    assert shared <= ideal * 1.005 + 64


def test_side_information_is_small_where_scales_follow_steps() -> None:
    """A column's scale code is predicted from its step: constant columns of unequal steps cost almost nothing."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-40, 40, 512)
    grid = Grid(codes.astype(np.int32), np.zeros((64, 1), np.int32), 4, 512)
    contexts = Contexts(np.zeros(64, np.int32), (20 - codes).astype(np.int32), 0)
    quantized = Quantized(np.zeros((512, 64), np.int32), grid, contexts)
    payload = pack_residual(quantized, tables_for([quantized]), 32, 1 << 20, shared=0)
    assert len(payload) < 512 * 7 / 8 + 40


@pytest.mark.parametrize(
    ("position", "value"), [(1, 0), (1, 3), (1, 64), (2, 8), (3, 32), (4, 0), (5, 0), (5, 33), (6, 0)]
)
def test_headers_out_of_range_are_refused(position: int, value: int) -> None:
    quantized = make(Shape(5, 9, 9, 8, 0, 0, 1, 3.0))
    payload = bytearray(pack_residual(quantized, tables_for([quantized]), 4, 1))
    payload[position] = value
    with pytest.raises(FormatError, match="residual record"):
        unpack_residual(bytes(payload), 5, 9)


def test_sizes_that_a_payload_cannot_hold_are_refused() -> None:
    quantized = make(Shape(5, 9, 9, 8, 0, 0, 1, 3.0))
    payload = pack_residual(quantized, tables_for([quantized]), 4, 1)
    for shape in ((1 << 30, 1 << 30), (1 << 40, 9), (5, 1 << 40)):
        with pytest.raises(FormatError, match="cannot hold"):
            unpack_residual(payload, *shape)


@pytest.mark.parametrize("shared", [None, 3])
def test_truncation_at_any_byte_is_refused(shared: int | None) -> None:
    quantized = make(Shape(5, 9, 2, 8, 0, 1, 1, 3.0))
    payload = pack_residual(quantized, tables_for([quantized]), 4, 1, shared)
    for length in range(len(payload)):
        with pytest.raises(FormatError, match="residual record"):
            header = unpack_residual(payload[:length], 5, 9)
            if header.shared is not None and header.grid.column_codes.tolist() != quantized.grid.column_codes.tolist():
                raise FormatError("residual record: other numbers")
    with pytest.raises(FormatError, match="stream record"):
        decode_shared(b"", [], tables_for([quantized]))


def test_damaged_streams_name_themselves() -> None:
    quantized = make(Shape(30, 20, 20, 8, 0, 1, 2, 3.0))
    tables = tables_for([quantized])
    header = unpack_residual(pack_residual(quantized, tables, 8, 1 << 20), 30, 20)
    stream, escapes = header.streams[0]
    with pytest.raises(FormatError, match="stream: truncated"):
        decode_indices(replace(header, streams=((stream[:-2], escapes),)), tables)
    payload = pack_shared([quantized], tables, 8)
    for bad in (b"\x21" + payload[1:], b"\x00" + payload[1:], payload[:10]):
        with pytest.raises(FormatError, match="stream"):
            decode_shared(bad, [header], tables)
