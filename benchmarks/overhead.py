"""What coding costs beyond the information: streams against the ideal length of their tables, and all that is no index.

    python benchmarks/overhead.py MODEL... [--bits 3 4] [--recipe identity]

MODEL is a checkpoint with calibration_tokens.npy beside its config.json. A tensor of 256 × 256 and more should keep
(stream − 64 bytes) / ideal below 1.005. A shared stream holds several tensors and has one row.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np

import trueaxis
from trueaxis import _core
from trueaxis.entropy.model import Tables, unpack_tables
from trueaxis.entropy.stream import ResidualHeader, decode_indices, decode_shared
from trueaxis.record import RecordType
from trueaxis.runtime.decode import Decoder
from trueaxis.types import Array

SMALLEST = 256 * 256
Row = tuple[str, int, int, float]


def ideal_bytes(header: ResidualHeader, indices: Array, tables: Tables) -> float:
    """Σ −log₂ of the tables' probabilities over decoded indices, escapes included, / 8."""
    contexts = header.contexts
    order = np.lexsort((header.grid.column_codes, contexts.column_codes))
    codes = np.ascontiguousarray(contexts.column_codes[order])
    return _core.stream_bits(tables.coder, [(indices, contexts.row_codes, codes, contexts.shift, header.trellis)]) / 8


def streams(path: Path) -> list[Row]:
    """(name, weights, stream bytes, ideal bytes) of every tensor with streams of its own and every shared stream."""
    decoder = Decoder(path)
    records = list(decoder.container.model_records())
    tables = unpack_tables(next(record.payload for record in records if record.type == RecordType.TABLES))
    headers = {name: header for name in decoder.names() for header in decoder.residuals(name)}
    rows = []
    for name, header in headers.items():
        if header.shared is None:
            spent = sum(len(data) for pair in header.streams for data in pair)
            ideal = ideal_bytes(header, decode_indices(header, tables), tables)
            rows.append((name, header.rows * header.columns, spent, ideal))
    for number, record in enumerate(record for record in records if record.type == RecordType.STREAM):
        members = [header for header in headers.values() if header.shared == number]
        decoded = decode_shared(record.payload, members, tables)
        ideal = sum(ideal_bytes(header, k, tables) for header, k in zip(members, decoded, strict=True))
        weights = sum(header.rows * header.columns for header in members)
        rows.append((f"shared stream {number} of {len(members)} tensors", weights, len(record.payload), ideal))
    return rows


def measure(model: Path, bits: float, recipe: str, work: Path) -> None:
    """One compression: a line per stream, then the bytes by purpose."""
    out = work / "out"
    trueaxis.compress(
        model, out, bits=bits, recipe=recipe, calibration=[model / "calibration_tokens.npy"],
        statistics=work / f"{model.name}.safetensors", overwrite=True,
    )  # fmt: skip
    print(f"\n{model.name} at {bits} bits, {recipe}")
    worst = 0.0
    for name, weights, spent, ideal in streams(out):
        ratio = (spent - 64) / ideal
        worst = max(worst, ratio) if weights >= SMALLEST else worst
        print(f"{name:44} {weights:9,} weights {spent:10,} bytes {ideal:12,.1f} ideal  less 64: {ratio:.5f}")
    found = trueaxis.inspect(out)
    parameters = found["parameters"]
    print(f"largest ratio from {SMALLEST:,} weights on: {worst:.5f}")
    for purpose, size in found["spent_bytes"].items():
        print(f"{purpose:18} {size:10,} bytes {size * 8 / parameters:9.5f} bits/parameter")
    other = found["file_bytes"] - found["spent_bytes"]["indices"]
    print(f"{'not indices':18} {other:10,} bytes {other * 8 / parameters:9.5f} bits/parameter", flush=True)


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--bits", type=float, nargs="+", default=[3.0, 4.0])
    parser.add_argument("--recipe", default="identity")
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    with tempfile.TemporaryDirectory() as work:
        for model in options.models:
            for bits in options.bits:
                measure(model, bits, options.recipe, Path(work))


if __name__ == "__main__":
    main()
