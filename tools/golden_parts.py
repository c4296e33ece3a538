"""Parts of golden files: matrices of indices drawn by a seed, tables fitted to them, and the directory they go in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trueaxis import _core
from trueaxis.container import CONFIG, Entry, pack_shards
from trueaxis.entropy.model import CLASSES, CODES_PER_OCTAVE, MAGNITUDES, ZERO_CLASS, Tables, pack_tables, tables_for
from trueaxis.entropy.stream import pack_residual, segment
from trueaxis.header import config_hash
from trueaxis.record import VERSION, Record, RecordType
from trueaxis.runtime.matrices import matrix_records
from trueaxis.types import Contexts, Grid, Quantized

FAMILY_CONFIG = {"model_type": "none", "quantization_config": {"quant_method": "trueaxis", "version": VERSION}}
ROWS_OF_ALL, COLUMNS_OF_ALL = 20, 13


def matrix(
    seed: int,
    trellis: int = 5,
    *,
    rows: int = ROWS_OF_ALL,
    columns: int = COLUMNS_OF_ALL,
    octaves: tuple[int, int] = (-2, 4),
    shift: int = 0,
    group: int | None = None,
    resolution: int = 8,
    row_scales: bool = False,
    centroids: bool = True,
) -> Quantized:
    """Laplacian indices whose columns, and rows if wanted, differ in scale."""
    rng = np.random.default_rng(seed)
    scale = rng.integers(*octaves, columns)
    rise = rng.integers(-1, 2, rows) * row_scales
    indices = np.rint(rng.laplace(size=(columns, rows)) * 2.0 ** (scale[:, None] + rise)).astype(np.int32)
    group = group or columns
    spread = resolution if group < columns else 0
    row_codes = rng.integers(-spread, spread + 1, (rows, -(-columns // group)))
    grid = Grid(rng.integers(-6 * resolution, -3 * resolution, columns).astype(np.int32), row_codes.astype(np.int32),
                resolution, group)  # fmt: skip
    codes = CODES_PER_OCTAVE << shift
    contexts = Contexts(
        (rise * codes).astype(np.int32), (scale * codes + (ZERO_CLASS << shift)).astype(np.int32), shift
    )
    return Quantized(indices, grid, contexts, trellis, centroids)


def tables_of(matrices: Sequence[Quantized], largest: int = 15) -> Tables:
    """Tables of one alphabet for these matrices, with offsets of both signs."""
    counts = _core.count_symbols(CLASSES, MAGNITUDES[-1], [segment(one) for one in matrices])
    offsets = np.random.default_rng(0).integers(-20, 21, (2, CLASSES, 2)).astype(np.int8)
    return tables_for(counts, offsets, largest)


def write(
    path: Path,
    model_records: Sequence[Record],
    entries: Sequence[Entry],
    shard_bytes: int = 10**9,
    **facts_more: str | list[str],
) -> None:
    """A directory of these tensors."""
    facts = {
        "parameters": sum(int(np.prod(entry.shape)) for entry in entries), "config": config_hash(FAMILY_CONFIG),
        "config_bytes": 2, "copied": [], "gauge": [], "recipe": {}, "sketch": [1, 70000],
        "calibration": {"source": "none", "tokens": 0}, **facts_more,
    }  # fmt: skip
    path.mkdir(parents=True)
    for name, data in pack_shards(facts, model_records, entries, shard_bytes).items():
        (path / name).write_bytes(b"".join(data))
    (path / CONFIG).write_text(json.dumps(FAMILY_CONFIG) + "\n")


def write_matrices(
    path: Path, matrices: Sequence[Quantized], largest: int = 15, lanes: int = 4, shard_bytes: int = 10**9
) -> None:
    """Every matrix a tensor with streams of its own, of the four dtypes in turn."""
    tables = tables_of(matrices, largest)
    entries = [
        Entry(f"matrix.{number}", one.indices.shape[::-1], ("BF16", "F32", "F16", "F64")[number % 4],
              matrix_records(pack_residual(one, tables, lanes, 100), None, False))
        for number, one in enumerate(matrices)
    ]  # fmt: skip
    write(path, [Record(RecordType.TABLES, pack_tables(tables))], entries, shard_bytes)
