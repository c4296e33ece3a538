"""Words: entries as unsigned integers whose high bits are skewed and whose low bits are noise.

    entries ─▶ sign moved to the lowest bit
    entries and the base's ─▶ difference of ordered integers, its sign in the lowest bit │ XOR, turned likewise

Ordered integers: floats of one sign compare as their bits do, so that near values have near integers, across zero too.
Inverse of what cpp/planes.cpp does when it reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trueaxis.runtime.bitplanes import Residue
from trueaxis.types import Array

UNSIGNED = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


@dataclass(frozen=True)
class Layout:
    """Bits of an entry: sign, exponent, mantissa; an integer has neither exponent nor mantissa."""

    bits: int
    exponent: int

    @property
    def exponent_shift(self) -> int:
        """Bits of a word below the exponent: mantissa and sign."""
        return self.bits - self.exponent


LAYOUTS = {"F64": Layout(64, 11), "F32": Layout(32, 8), "F16": Layout(16, 5), "BF16": Layout(16, 8)}


def words_of(entries: Array, residue: Residue, base: Array | None = None) -> Array:
    """Words, unsigned, of the shape and width of `entries`.

    Args:
        entries: Unsigned integers that hold the bits.
        residue: What the words are made of.
        base: The same of the base.

    Example:
        >>> words_of(np.array([0x3F80, 0xBF80], np.uint16), Residue.OWN).tolist() == [0x7F00, 0x7F01]
        True
    """
    if residue == Residue.OWN:
        return _turned(entries)
    assert base is not None
    if residue == Residue.XOR:
        return _turned(entries ^ base)
    difference = _ordered(entries) - _ordered(base)
    sign = _sign(difference)
    return (difference << 1) ^ (np.zeros_like(sign) - sign)


def _sign(entries: Array) -> Array:
    return entries >> np.array(8 * entries.itemsize - 1, entries.dtype)


def _turned(entries: Array) -> Array:
    return entries << 1 | _sign(entries)


def _ordered(entries: Array) -> Array:
    negative = np.zeros_like(entries) - _sign(entries)
    return entries ^ (negative >> 1)
