"""Fused decoding: on every instruction set the values of the slow path, and errors instead of crashes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trueaxis import _core
from trueaxis.entropy.model import CLASSES, Tables, fit_tables
from trueaxis.entropy.stream import (
    ResidualHeader,
    decode_indices,
    decode_shared,
    decode_shared_values,
    decode_values,
    dequantize,
    pack_residual,
    pack_shared,
    segment,
    unpack_residual,
)
from trueaxis.types import Array, Contexts, FormatError, Grid, Quantized
from twins import CODES


def make(
    seed: int, rows: int, columns: int, trellis: int, *, scale: float = 1.0, same_class: bool = False, groups: int = 1
) -> Quantized:
    rng = np.random.default_rng(seed)
    row_codes = rng.integers(-4, 5, rows).astype(np.int32)
    column_codes = np.full(columns, 41) if same_class else rng.integers(34, 48, columns)
    spread = scale * 2.0 ** ((row_codes[None, :] + column_codes[:, None] - 40) / 8)
    indices = np.rint(rng.laplace(size=(columns, rows)) * spread).astype(np.int32)
    grid = Grid(
        rng.integers(-40, 40, columns).astype(np.int32),
        rng.integers(-20, 20, (rows, groups)).astype(np.int32),
        8,
        -(-columns // groups),
    )
    return Quantized(indices, grid, Contexts(row_codes, column_codes.astype(np.int32), 1), trellis, seed % 2 == 0)


def tables_for(matrices: list[Quantized], seed: int = 0) -> Tables:
    counts = _core.count_symbols(CLASSES, 63, [segment(matrix) for matrix in matrices])
    return fit_tables(counts, np.random.default_rng(seed).integers(-64, 64, (2, CLASSES, 2)).astype(np.int8))


def header_of(matrix: Quantized, tables: Tables, lanes: int, chain: int) -> ResidualHeader:
    columns, rows = matrix.indices.shape
    return unpack_residual(pack_residual(matrix, tables, lanes, chain), rows, columns)


def bfloat16_bits(values: Array) -> Array:
    return torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()


def check(header: ResidualHeader, tables: Tables, threads: int) -> None:
    expected = dequantize(header, decode_indices(header, tables), tables)
    found = decode_values(header, tables, False, threads)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(decode_values(header, tables, True, threads), bfloat16_bits(expected))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 1 << 32),
    st.tuples(st.integers(1, 70), st.integers(1, 150)),
    st.integers(0, len(CODES) - 1),
    st.integers(1, 32),
    st.sampled_from([1, 2000, 1 << 20]),
    st.sampled_from([1, 3]),
)
def test_values_are_those_of_the_slow_path(
    instruction_set: str, seed: int, shape: tuple[int, int], trellis: int, lanes: int, chain: int, threads: int
) -> None:
    """Any shape, trellis, number of lanes and chaining; escapes, centroids or not, steps per row and group."""
    groups = 1 + seed % 3 if shape[1] % (1 + seed % 3) == 0 else 1
    matrix = make(seed, *shape, trellis, scale=[0.3, 2.0, 30.0][seed % 3], groups=groups)
    tables = tables_for([matrix], seed)
    check(header_of(matrix, tables, lanes, chain), tables, threads)


@pytest.mark.parametrize("scale", [0.3, 1.0, 9.0])
@pytest.mark.parametrize("trellis", [0, 1, 5, 7])
def test_strips_of_one_class(instruction_set: str, scale: float, trellis: int) -> None:
    """Full strips whose lanes share a class, side by side and alone, with narrow tables and with wide ones."""
    matrix = make(trellis, 90, 32 * 5, trellis, scale=scale, same_class=True)
    matrix.indices[3, 5] = matrix.indices[70, 80] = 3000
    tables = tables_for([matrix])
    check(header_of(matrix, tables, 32, 1), tables, 1)


def test_shared_streams(instruction_set: str) -> None:
    matrices = [make(seed, 5 + 7 * seed, 40 - 9 * seed, seed, scale=3.0) for seed in range(4)]
    tables = tables_for(matrices)
    headers = [
        unpack_residual(pack_residual(matrix, tables, 32, 1, shared=0), *matrix.indices.shape[::-1])
        for matrix in matrices
    ]
    payload = pack_shared(matrices, tables, 32)
    indices = decode_shared(payload, headers, tables)
    for bfloat16 in (False, True):
        values = decode_shared_values(payload, headers, tables, bfloat16)
        for header, k, found in zip(headers, indices, values, strict=True):
            expected = dequantize(header, k, tables)
            np.testing.assert_array_equal(found, bfloat16_bits(expected) if bfloat16 else expected)


@pytest.mark.parametrize("same_class", [False, True])
def test_damage_is_an_error_or_other_values(instruction_set: str, same_class: bool) -> None:
    """The slow path and the fused one agree on which streams are damaged and on the values of the others."""
    matrix = make(4, 60, 64, 5, scale=1.0, same_class=same_class)
    matrix.indices[::9, 7] = 400
    tables = tables_for([matrix])
    header = header_of(matrix, tables, 32, 1)
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(60):
        number = trial % len(header.streams)
        words, escapes = (bytearray(part) for part in header.streams[number])
        target = words if trial % 3 else escapes
        if trial % 5 == 0:
            del target[int(rng.integers(len(target))) :]
        else:
            target[int(rng.integers(len(target)))] ^= 1 << int(rng.integers(8))
        streams = list(header.streams)
        streams[number] = bytes(words), bytes(escapes)
        damaged = replace(header, streams=tuple(streams))
        try:
            expected = dequantize(damaged, decode_indices(damaged, tables), tables)
        except FormatError:
            refused += 1
            with pytest.raises(FormatError):
                decode_values(damaged, tables, True, 2)
        else:
            np.testing.assert_array_equal(decode_values(damaged, tables, False, 2), expected)
    assert refused > 40


def test_random_streams_are_refused(instruction_set: str) -> None:
    matrix = make(4, 60, 64, 5)
    tables = tables_for([matrix])
    header = header_of(matrix, tables, 32, 1)
    rng = np.random.default_rng(1)
    for length in (128, 130, 500, 4000):
        noise = rng.integers(1, 256, length, np.uint8).tobytes()
        damaged = replace(header, streams=((noise, noise[:50]), *header.streams[1:]))
        with pytest.raises(FormatError):
            decode_values(damaged, tables, True, 1)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_decoding_into_an_array_that_is_there(bfloat16: bool) -> None:
    matrix = make(4, 33, 70, 4)
    tables = tables_for([matrix])
    header = header_of(matrix, tables, 32, 1)
    out = np.zeros((33, 70), np.uint16 if bfloat16 else np.float32)
    found = decode_values(header, tables, bfloat16, 2, out)
    assert np.shares_memory(found, out)
    np.testing.assert_array_equal(out, decode_values(header, tables, bfloat16, 1))
    with pytest.raises(FormatError, match="of its shape"):
        decode_values(header, tables, bfloat16, 2, out[:, :69].copy())


def test_descriptions_are_checked() -> None:
    matrix = make(2, 6, 8, 1)
    tables = tables_for([matrix])
    k, row_codes, column_codes, shift, trellis = segment(matrix)
    words, escapes = _core.encode_stream(tables.coder, [(k, row_codes, column_codes, shift, trellis)], 8)
    good = (
        row_codes, column_codes, shift, trellis, tables.offsets, np.ones(8, np.float32), np.ones((6, 1), np.float32),
        np.zeros(8, np.int32), np.arange(8, dtype=np.uint32),
    )  # fmt: skip

    def decode(parts: list[tuple[int, int, int]], lanes: int = 8, **changed: Array | int) -> None:
        names = ("rows", "columns", "shift", "trellis", "offsets", "steps", "row_steps", "groups", "places")
        described = tuple(changed.get(name, value) for name, value in zip(names, good, strict=True))
        _core.decode_float32(tables.coder, [(words, escapes, parts)], [described], lanes, 1)

    decode([(0, 0, 8)])
    for parts in ([(0, 0, 9)], [(0, 8, 1)], [(1, 0, 8)], [(0, 0, 7)], [(0, 3, 5)], [(0, 0, 8), (0, 0, 8)], []):
        with pytest.raises(ValueError, match="stream"):
            decode(parts)
    for changed in (
        {"groups": np.full(8, 1, np.int32)},
        {"groups": np.full(8, -1, np.int32)},
        {"places": np.full(8, 8, np.uint32)},
        {"rows": np.full(6, 1 << 30, np.int32) + 1},
        {"shift": 32},
        {"trellis": len(CODES)},
        {"steps": np.ones(7, np.float32)},
        {"offsets": np.zeros((2, 5, 2), np.int8)},
    ):
        with pytest.raises(ValueError):
            decode([(0, 0, 8)], **changed)
    for lanes in (0, 33):
        with pytest.raises(ValueError, match="lanes"):
            decode([(0, 0, 8)], lanes)
