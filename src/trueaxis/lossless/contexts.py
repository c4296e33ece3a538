"""Contexts: what tells entries of a tensor apart before they are read.

levels (log2 of magnitudes) ─▶ scale codes of rows, of columns, of both
words of a base ─▶ its exponents: the lower they are, the more units in the last place an update moves
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trueaxis.lossless.words import Layout
from trueaxis.runtime.bitplanes import BaseExponents, ScaleCodes
from trueaxis.types import Array

MOST_SCALES = 24
MOST_EXPONENTS = 16
PER_OCTAVE = (2, 4)
OCTAVES_BELOW = 4.0  # the median, where a level counts as no lower: zeros say nothing of a scale
RARE = 0.5  # percent of the entries that may lie beyond the first and the last context


@dataclass(frozen=True, eq=False)
class Scales:
    """Mean levels of rows [m] and columns [n], about zero."""

    rows: Array
    columns: Array


def scales_of(words: Array, layout: Layout) -> Scales:
    """Of the words [m, n] of floats.

    A level is exponent + mantissa as a fraction: log2 of the magnitude, made of straight pieces.
    """
    levels = (words >> 1).astype(np.float32) * np.float32(2.0 ** (1 - layout.exponent_shift))
    floor = float(np.median(levels[:: 1 + len(levels) // 64])) - OCTAVES_BELOW
    np.maximum(levels, np.float32(floor), out=levels)
    rows, columns = levels.mean(axis=1, dtype=np.float64), levels.mean(axis=0, dtype=np.float64)
    return Scales(rows - rows.mean(), columns - columns.mean())


def scale_codes(scales: Scales) -> Iterator[tuple[ScaleCodes, int]]:
    """All codes worth a try, and how many of them make an octave."""
    for per_octave in PER_OCTAVE:
        rows, columns = (np.rint(per_octave * side) for side in (scales.rows, scales.columns))
        for kept in ((rows, 0 * columns), (0 * rows, columns), (rows, columns)):
            low, high = (sum(int(np.percentile(side, at)) for side in kept) for at in (RARE, 100 - RARE))
            count = min(MOST_SCALES, high - low + 1)
            middle = (low + high + 1 - count) // 2
            yield ScaleCodes((kept[0] - middle).astype(np.int16), kept[1].astype(np.int16), count), per_octave


def scale_contexts(codes: ScaleCodes, rows: slice) -> Array:
    """uint8 contexts of some rows of the entries [m, n]."""
    return np.clip(codes.rows[rows, None] + codes.columns, 0, codes.count - 1).astype(np.uint8)


def base_exponents(words: Array, layout: Layout) -> Iterator[BaseExponents]:
    """Of a base's own words: one context for one or two octaves."""
    for octaves in (1, 2):
        shift = layout.exponent_shift + octaves - 1
        top = int(np.percentile(words[:: 1 + len(words) // 64] >> shift, 99.9))
        yield BaseExponents(top, shift, MOST_EXPONENTS)


def base_contexts(exponents: BaseExponents, words: Array) -> Array:
    """uint8 contexts of the entries that have these words in the base."""
    places = exponents.top - (words >> exponents.shift).astype(np.int64)
    return np.clip(places, 0, exponents.count - 1).astype(np.uint8)
