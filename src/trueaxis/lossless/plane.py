"""One plane: values to zeros, raw bits or symbols, whichever is shortest.

values (and the context of each) ─▶ window of 255 values, the rest escapes ─▶ tables ─▶ rANS
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trueaxis import _core
from trueaxis.runtime.bitplane_side import SYMBOLS, TOTAL, pack_tables
from trueaxis.runtime.bitplanes import Kind, Plane
from trueaxis.types import Array

BYTE = 8
FREQUENCY_BITS = 5.0  # that a frequency of a table takes, about
WORTH = 0.99  # a plane is coded where that takes less than so much of its bits
BLOCK = 4096  # entries whose raw bits lie together
FEW, FEW_LANES_LOG2, LANES_LOG2 = 1 << 17, 2, 6  # a lane costs two bytes: small tensors have fewer


def counts_of(values: Array, contexts: Array | None, bits: int) -> Array:
    """How often every value occurs in every context, [contexts, 2^bits]."""
    if contexts is None:
        return np.bincount(values, minlength=1 << bits)[None]
    pairs = contexts.reshape(-1).astype(np.int32) << bits | values.astype(np.int32)
    return np.bincount(pairs, minlength=(int(contexts.max()) + 1) << bits).reshape(-1, 1 << bits)


def estimated_bits(counts: Array, scale: float) -> float:
    """Entropy of `scale` times as many symbols, and tables."""
    found = counts[counts > 0]
    totals = counts.sum(axis=1)
    totals = totals[totals > 0]
    if found.size == 1:
        return 0.0
    return (
        scale * float((totals * np.log2(totals)).sum() - (found * np.log2(found)).sum()) + FREQUENCY_BITS * found.size
    )


def written_plane(values: Array, bits: int, numbers: Array | None, contexts: int, step: int) -> Plane:
    """The shortest of zeros, raw bits and symbols."""
    if not values.any():
        return Plane(bits, Kind.ZERO)
    raw = bits in (1, 2, 4, BYTE)
    if raw and estimated_bits(counts_of(values, numbers, bits), 1.0) > WORTH * bits * values.size:
        return Plane(bits, Kind.RAW, _raw(values.astype(np.uint8), bits))
    coded = _coded(values, bits, numbers, contexts)
    moved = replace(coded, step=step)
    if step and len(pack_tables(moved.frequencies, moved.step)) < len(pack_tables(coded.frequencies, 0)):
        coded = moved
    return coded


def _raw(values: Array, bits: int) -> Array:
    """Blocks of entries; in each the first half, quarter or eighth in the low bits of its bytes."""
    parts, found = BYTE // bits, []
    for block in np.split(values, range(BLOCK, len(values), BLOCK)):
        stride = -(-len(block) // parts)
        padded = np.zeros(parts * stride, np.uint8)
        padded[: len(block)] = block
        shifted = padded.reshape(parts, stride) << (bits * np.arange(parts, dtype=np.uint8))[:, None]
        found.append(np.bitwise_or.reduce(shifted, axis=0))
    return np.concatenate(found)


def _coded(values: Array, bits: int, numbers: Array | None, contexts: int) -> Plane:
    totals = np.bincount(values, minlength=1 << bits)
    offset, escaping = _window(totals)
    symbols = values.astype(np.int32) - offset
    outside = np.zeros(0, np.uint16)
    if escaping:
        beyond = (symbols < 0) | (symbols >= SYMBOLS - 1)
        outside = values[beyond].astype("<u2")
        symbols[beyond] = SYMBOLS - 1
    symbols = symbols.astype(np.uint8)
    counts = np.zeros((contexts, SYMBOLS), np.int64)
    found = counts_of(symbols, numbers, BYTE)
    counts[: len(found)] = found
    frequencies = np.stack([_frequencies(row) for row in counts])
    places = np.zeros(len(symbols), np.uint8) if numbers is None else numbers
    lanes_log2 = FEW_LANES_LOG2 if len(symbols) < FEW else LANES_LOG2
    data = np.frombuffer(_core.encode_plane(symbols, places, frequencies, 1 << lanes_log2), np.uint8)
    return Plane(bits, Kind.CODED, data, numbers is not None, lanes_log2, offset, outside.tobytes(), frequencies)


def _window(totals: Array) -> tuple[int, bool]:
    """Value of symbol 0, so that fewest entries escape; and whether some do."""
    used = np.flatnonzero(totals)
    if used[-1] - used[0] < SYMBOLS:
        return int(used[0]), False
    inside = np.convolve(totals, np.ones(SYMBOLS - 1, np.int64), "valid")
    return int(inside.argmax()), True


def _frequencies(counts: Array) -> Array:
    """uint16 [256] that sum to 4096, none of them 0 where a symbol occurs; zeros where none does."""
    total = int(counts.sum())
    if total == 0:
        return np.zeros(SYMBOLS, np.uint16)
    found = np.where(counts > 0, np.maximum(np.rint(counts * (TOTAL / total)), 1), 0).astype(np.int64)
    found[found.argmax()] = min(found.max(), TOTAL - 1)
    if np.count_nonzero(found) == 1:
        found[(int(found.argmax()) + 1) % SYMBOLS] = 1
    while (missing := TOTAL - int(found.sum())) != 0:
        step = 1 if missing > 0 else -1
        able = (found > 0) & (found + step > 0) & (found + step < TOTAL)
        with np.errstate(divide="ignore", invalid="ignore"):
            cost = np.where(able, counts * np.log2(found / (found + step)), np.inf)
        cheapest = np.argsort(cost, kind="stable")[: min(abs(missing), int(able.sum()))]
        found[cheapest] += step
    return found.astype(np.uint16)
