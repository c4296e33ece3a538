"""Residual records of matrices of any shape: quantize, pack, unpack, dequantize; the decoder gets what was coded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge import make_quantized, make_tables
from trueaxis import _core
from trueaxis.entropy.model import Tables, first_tables, fit_tables, pack_tables, unpack_tables
from trueaxis.entropy.stream import (
    decode_indices,
    decode_shared,
    dequantize,
    file_order,
    pack_residual,
    pack_shared,
    segment,
    unpack_residual,
)
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.grid import steps
from trueaxis.quantize.plan import Planner
from trueaxis.stages import Feedback, Gptq, GptqUniform, RoundToNearest
from trueaxis.types import Array, FormatError, Metric, Quantized, Weight

SHAPES = [(1, 1), (1, 2), (1, 97), (89, 1), (2, 1), (7, 11), (31, 33), (64, 65), (13, 101), (101, 13), (5, 200)]
STAGES = [Feedback(), RoundToNearest(), Gptq(group=8), GptqUniform()]


def contents(kind: str, rows: int, columns: int) -> Array:
    rng = np.random.default_rng(rows * 1000 + columns)
    weight = rng.normal(size=(rows, columns)).astype(np.float32)
    if kind == "zeros":
        weight[:] = 0
    elif kind == "constant rows":
        weight[:] = weight[:, :1]
    elif kind == "one column 1000 times the others":
        weight[:, columns // 2] *= 1000
    elif kind == "zero rows and columns":
        weight[::2], weight[:, ::3] = 0, 0
    elif kind == "tiny":
        weight *= 1e-30
    elif kind == "huge":
        weight *= 1e30
    return weight


KINDS = [
    "normal", "zeros", "constant rows", "one column 1000 times the others", "zero rows and columns", "tiny", "huge"
]  # fmt: skip


def quantized(weight: Array, stage: Feedback | RoundToNearest | Gptq | GptqUniform, c: float) -> Quantized:
    rows, columns = weight.shape
    noise = np.random.default_rng(1).normal(size=(3 * columns, columns))
    metric = Metric(noise.T @ noise / len(noise))
    described = Weight("w", (rows, columns), "F32", "linear", "space")
    plan = Planner(stage).plan(described, weight, metric)
    return quantize(plan, c, first_tables()).quantized


def values(matrix: Quantized, tables: Tables) -> Array:
    """Ŵ by docs/format.md, for the one-state trellis."""
    grid, codes = matrix.grid, matrix.contexts
    k = matrix.indices.T.astype(np.int64)
    classes = np.clip((codes.row_codes[:, None] + codes.column_codes[None, :]) >> codes.shift, 0, 47)
    offsets = tables.offsets if matrix.centroids else np.zeros_like(tables.offsets)
    offset = offsets[0][classes, np.clip(np.abs(k), 1, 2) - 1].astype(np.float32) / np.float32(64)
    u = (2 * k).astype(np.float32) + np.sign(k).astype(np.float32) * offset
    columns = steps(grid.column_codes, grid.resolution)[None, :]
    rows = np.repeat(steps(grid.row_codes, grid.resolution), grid.group, axis=1)[:, : k.shape[1]]
    return u * (columns * rows)


def check_round_trip(matrix: Quantized, lanes: int, chain: int) -> Array:
    columns, rows = matrix.indices.shape
    counts = _core.count_symbols(48, 63, [segment(matrix)])
    tables = unpack_tables(pack_tables(fit_tables(counts, np.full((2, 48, 2), 5, np.int8))))
    payload = pack_residual(matrix, tables, lanes, chain)
    header = unpack_residual(payload, rows, columns)
    indices = decode_indices(header, tables)
    np.testing.assert_array_equal(indices, matrix.indices[file_order(matrix.grid, matrix.contexts)])
    np.testing.assert_array_equal(header.grid.column_codes, matrix.grid.column_codes)
    np.testing.assert_array_equal(header.grid.row_codes, matrix.grid.row_codes)
    decoded = dequantize(header, indices, tables)
    shared = unpack_residual(pack_residual(matrix, tables, lanes, chain, 0), rows, columns)
    (again,) = decode_shared(pack_shared([matrix], tables, lanes), [shared], tables)
    np.testing.assert_array_equal(again, indices)
    if matrix.trellis == 0:
        np.testing.assert_array_equal(decoded, values(matrix, tables))
    return decoded


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape_and_content(shape: tuple[int, int], kind: str) -> None:
    weight = contents(kind, *shape)
    for stage in STAGES:
        decoded = check_round_trip(quantized(weight, stage, 0.05), 32, 64)
        assert np.isfinite(decoded).all()
        if kind == "zeros":
            assert not decoded.any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_small_steps_give_the_matrix_back(shape: tuple[int, int]) -> None:
    """Escapes are at work: most indices are far beyond the largest alphabet."""
    weight = contents("one column 1000 times the others", *shape)
    for stage in STAGES:
        matrix = quantized(weight, stage, 1e-3)
        assert np.abs(matrix.indices).max() > 63
        decoded = check_round_trip(replace(matrix, centroids=False), 32, 1 << 20)
        assert np.abs(decoded - weight).max() <= 0.02 * np.abs(weight).max()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 70), st.integers(0, 5), st.integers(1, 32), st.integers(1, 300), st.data()
)  # fmt: skip
def test_any_layout(rows: int, columns: int, trellis: int, lanes: int, chain: int, data: st.DataObject) -> None:
    group = data.draw(st.integers(1, columns))
    matrix = make_quantized(np.random.default_rng(rows * columns), rows, columns, trellis, group)
    check_round_trip(matrix, lanes, chain)


def test_streams_of_one_byte_per_many_weights() -> None:
    """The bound on weights per word leaves room for the most compressible matrix there is."""
    rows, columns = 700, 800
    zero = make_quantized(np.random.default_rng(0), rows, columns)
    codes = np.zeros(columns, np.int32)
    zero = replace(zero, indices=np.zeros((columns, rows), np.int32),
                   contexts=replace(zero.contexts, column_codes=codes))  # fmt: skip
    tables = make_tables([zero])
    assert tables.frequencies.max() == 4095
    for lanes in (1, 3, 32):
        payload = pack_residual(zero, tables, lanes, 1 << 30)
        header = unpack_residual(payload, rows, columns)
        ((stream, _),) = header.streams
        assert rows * columns > (len(stream) // 2 - lanes) * tables.weights_per_word / (2 if lanes == 1 else lanes)
        assert not decode_indices(header, tables).any()


def test_claims_beyond_the_bytes_are_refused_before_decoding() -> None:
    matrix = make_quantized(np.random.default_rng(0), 6, 9)
    tables = make_tables([matrix])
    payload = pack_residual(matrix, tables, 4, 1 << 20)
    for rows, columns in ((1 << 40, 9), (6, 1 << 40), (1 << 20, 1 << 20)):
        with pytest.raises(FormatError, match="too few"):
            unpack_residual(payload, rows, columns)
    header = replace(unpack_residual(payload, 6, 9), rows=6000)
    header = replace(header, contexts=replace(header.contexts, row_codes=np.zeros(6000, np.int32)))
    with pytest.raises(FormatError, match="too few for 54000 weights"):
        decode_indices(header, tables)
