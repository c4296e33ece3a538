"""Speed of the core by instruction set: Viterbi by states, fused decoding by rate, beside memory and `constriction`.

    python benchmarks/speed_core.py [--size 4096] [--bits 1.5 2 3 4] [--runs 3]

Rates are by processor time of this process per thread, so that other work on the machine counts less; those by wall
time stand beside them, and only they tell how two threads scale. Decoding goes to bfloat16. "tiles" is the fused
decoder alone, [strip, rows, 32], into memory that is there already; "rows" is what a loader pays: fresh memory, and
the pass that puts every column in its place, row after row. `constriction` decodes the same indices with one fixed
categorical model, its fastest way (pip install constriction).
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from trueaxis import _core
from trueaxis.entropy.model import CLASSES, ZERO_CLASS, Tables, fit_tables
from trueaxis.entropy.stream import decode_values, pack_residual, parts, segment, unpack_residual
from trueaxis.quantize.start import settled_tables
from trueaxis.types import Array, Contexts, Grid, Quantized

STATES = [1, 4, 8, 16, 32, 64, 128, 256]
SPREAD_OCTAVES = 0.4  # deviation of the scales of rows, and of columns: 1.2 classes of a third of an octave


def timed(work: Callable[[], object], runs: int, threads: int = 1) -> tuple[list[float], list[float]]:
    """(processor seconds per thread, wall seconds) of every run after one for warming up."""
    work()
    processor, wall = [], []
    for _ in range(runs):
        begun = time.process_time(), time.perf_counter()
        work()
        processor.append((time.process_time() - begun[0]) / threads)
        wall.append(time.perf_counter() - begun[1])
    return processor, wall


def show(label: str, count: float, unit: str, runs: tuple[list[float], list[float]]) -> float:
    """Prints every run; returns the best rate by processor time."""
    rates = [count / seconds for seconds in runs[0]]
    walls = " ".join(f"{count / seconds:.3f}" for seconds in runs[1])
    print(f"{label:44} {unit:5} {' '.join(f'{rate:.3f}' for rate in rates)}   (wall {walls})", flush=True)
    return max(rates)


def viterbi(runs: int) -> None:
    """64 columns of 4096 Gaussian rows, classes spread as in the decoder's setting."""
    rng = np.random.default_rng(0)
    octaves = SPREAD_OCTAVES * rng.normal(size=(1, 4096)) + 0.25
    targets = (2.5 * 2.0**octaves * rng.standard_normal((64, 4096))).astype(np.float32)
    classes = np.broadcast_to(np.clip(np.rint(ZERO_CLASS + 4 * octaves), 0, CLASSES - 1), targets.shape)
    classes = np.ascontiguousarray(classes.astype(np.uint8))
    print("\nViterbi, branch costs and traceback included, one thread")
    for trellis, states in enumerate(STATES):
        tables = settled_tables(trellis, 0.06)
        model = (tables.code_bits(), np.zeros((2, CLASSES, 2), np.float32), tables.escape_orders, 0.24, trellis)
        search = partial(_core.viterbi, targets, classes, *model)
        for name in _core.instruction_sets():
            _core.use_instruction_set(name)
            show(f"{states} states, {name}", targets.size / 1e6, "M/s", timed(search, runs))


def spread_matrix(size: int, bits: float) -> tuple[Quantized, Tables]:
    """Indices of Gaussian weights at about `bits`, rows and columns of spread scales; the trellis has 64 states."""
    rng = np.random.default_rng(1)
    row_octaves, column_octaves = (SPREAD_OCTAVES * rng.normal(size=size) for _ in range(2))
    scale = 0.31 * 2.0 ** (bits - 0.8)
    weights = rng.standard_normal((size, size), np.float32)
    spread = (scale * 2.0 ** (row_octaves[None, :] + column_octaves[:, None])).astype(np.float32)
    indices = np.rint(weights * spread).astype(np.int32)
    row_codes = np.rint(8 * row_octaves).astype(np.int32)
    column_codes = np.rint(8 * (column_octaves + np.log2(0.8 * scale)) + 2 * ZERO_CLASS + 1).astype(np.int32)
    grid = Grid(rng.integers(-8, 8, size).astype(np.int32), np.zeros((size, 1), np.int32), 8, size)
    quantized = Quantized(indices, grid, Contexts(row_codes, column_codes, 1), trellis=5)
    counts = _core.count_symbols(CLASSES, 63, [segment(quantized)])
    return quantized, fit_tables(counts, rng.integers(-20, 1, (2, CLASSES, 2)).astype(np.int8))


def decoding(size: int, bits: float, runs: int) -> None:
    """Every instruction set, one and two threads, and constriction on the same indices."""
    quantized, tables = spread_matrix(size, bits)
    encoded = timed(partial(pack_residual, quantized, tables, 32, 1 << 20), 1)
    payload = pack_residual(quantized, tables, 32, 1 << 20)
    weights = size * size / 1e9
    header = unpack_residual(payload, size, size)
    print(f"\nDecoding [{size}, {size}] at {len(payload) * 8 / size**2:.3f} bits, K = {tables.largest_magnitude}")
    show("encoding", weights * 1e3, "M/s", encoded)
    tiles = _tile_decoder(quantized, header.streams, header.lanes, header.strips_per_stream, tables)
    best = 0.0
    for name in _core.instruction_sets():
        _core.use_instruction_set(name)
        for threads in (1, 2):
            found = timed(partial(tiles, threads), runs, threads)
            rate = show(f"tiles, {name}, {threads} threads", weights, "G/s", found)
            best = max(best, rate if threads == 1 else 0.0)
            found = timed(partial(decode_values, header, tables, True, threads), runs, threads)
            show(f"rows, {name}, {threads} threads", weights, "G/s", found)
    slow = constriction_rate(quantized.indices, runs)
    if slow:
        print(f"fastest tiles on one thread against constriction: {best / slow:.1f} ×")


def _tile_decoder(
    quantized: Quantized, streams: tuple[tuple[bytes, bytes], ...], lanes: int, chain: int, tables: Tables
) -> Callable[[int], object]:
    """The fused decoder without the pass over rows."""
    k, row_codes, column_codes, shift, trellis = segment(quantized)
    matrix = (
        row_codes, column_codes, shift, trellis, tables.offsets, np.ones(k.shape[0], np.float32),
        np.ones((k.shape[1], 1), np.float32), np.zeros(k.shape[0], np.int32), np.arange(k.shape[0], dtype=np.uint32),
    )  # fmt: skip
    ranges = [(0, part.start, part.stop - part.start) for part in parts(k.shape[0], lanes, chain)]
    work = [(stream, escapes, [part]) for part, (stream, escapes) in zip(ranges, streams, strict=True)]
    room = np.empty(-(-k.shape[0] // lanes) * lanes * k.shape[1], np.uint16)
    return lambda threads: _core.decode_tiles(tables.coder, work, matrix, lanes, threads, room)


def constriction_rate(indices: Array, runs: int) -> float:
    """G/s of constriction's ANS with one categorical model over the first million indices; 0 if it is not installed."""
    try:
        import constriction
    except ImportError:
        print("constriction is not installed: no comparison")
        return 0.0
    symbols = np.clip(indices.reshape(-1)[: 1 << 20], -31, 31).astype(np.int32) + 31
    counts = np.bincount(symbols, minlength=63) + 0.01
    model = constriction.stream.model.Categorical(counts / counts.sum(), perfect=False, lazy=False)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, model)
    words = coder.get_compressed()
    found = timed(lambda: constriction.stream.stack.AnsCoder(words).decode(model, symbols.size), runs)
    return show("constriction, fixed categorical model", symbols.size / 1e9, "G/s", found)


def memory(runs: int) -> None:
    """Copying 64 MiB."""
    source, target = np.ones(1 << 23), np.zeros(1 << 23)
    print("\nMemory")
    show("copy of 64 MiB", source.nbytes / 1e9, "GB/s", timed(lambda: np.copyto(target, source), runs))


def main() -> None:
    """Prints the machine, the command and every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--bits", type=float, nargs="+", default=[1.5, 2.0, 3.0, 4.0])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print("machine:", _processor(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    memory(options.runs)
    viterbi(options.runs)
    for bits in options.bits:
        decoding(options.size, bits, options.runs)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


if __name__ == "__main__":
    main()
