"""One tensor bit for bit: the planes and contexts that take fewest bytes, by estimate on a sample of its rows.

    entries ─▶ residue × contexts × bits of the top plane ─▶ least estimated bits ─▶ planes ─▶ payload

The top plane of a float's own bits is its exponent and up to three bits of its mantissa: values near the scale of a row
crowd at the low end of an octave. A difference from a base is cut into bytes: where it begins depends on the base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from trueaxis.lossless.contexts import base_contexts, base_exponents, scale_codes, scale_contexts, scales_of
from trueaxis.lossless.plane import BYTE, WORTH, counts_of, estimated_bits, written_plane
from trueaxis.lossless.words import LAYOUTS, UNSIGNED, Layout, words_of
from trueaxis.runtime.bitplanes import BaseExponents, BitPlanes, Residue, ScaleCodes, pack_bitplanes
from trueaxis.types import Array

SAMPLE = 1 << 19  # entries that choices are made on
MANTISSA_BITS = (0, 1, 2, 3)  # of the top plane

Contexts = ScaleCodes | BaseExponents | None


@dataclass(frozen=True, eq=False)
class Way:
    """How a tensor may be written, and the bits that takes by estimate.

    Attributes:
        bits: Of each plane, from the top.
        with_contexts: Whether each plane has a table per context.
        step: Symbols of the top plane between one context and the next.
    """

    residue: Residue
    contexts: Contexts
    bits: tuple[int, ...]
    with_contexts: tuple[bool, ...]
    step: int
    estimated_bits: float


def pack_tensor(entries: Array, shape: Sequence[int], dtype: str, base: Array | None = None) -> bytes:
    """Payload of mode 3, the mode left out.

    Args:
        entries: uint8 [entries, bytes of each], little-endian; at least one.
        shape: Of the tensor.
        dtype: Its safetensors name.
        base: Those of the base's tensor, of the same shape and dtype.
    """
    width = entries.shape[1]
    layout = LAYOUTS.get(dtype, Layout(BYTE * width, BYTE))
    rows = len(entries) // shape[-1] if shape else 1
    bits, theirs = (
        None if one is None else np.ascontiguousarray(one).view(UNSIGNED[width]).reshape(rows, -1)
        for one in (entries, base)
    )
    assert bits is not None
    ways = list(_own_ways(bits, layout, dtype in LAYOUTS))
    if theirs is not None:
        ways += [
            way
            for residue in (Residue.DIFFERENCE, Residue.XOR)
            for way in _base_ways(bits, theirs, residue, layout, dtype in LAYOUTS)
        ]
    best = min(ways, key=lambda way: way.estimated_bits)
    return pack_bitplanes(_written(best, bits, theirs))


def _own_ways(bits: Array, layout: Layout, floats: bool) -> Iterator[Way]:
    """Ways without the base."""
    words, rows = words_of(bits, Residue.OWN), _sample(bits)
    yield _way(words[rows], (BYTE,) * bits.itemsize, len(bits), None, None, Residue.OWN, 0)
    if not floats:
        return
    choices: list[tuple[Contexts, Array | None, int]] = [(None, None, 0)]
    if min(bits.shape) > 1:
        choices += [
            (codes, scale_contexts(codes, rows), per_octave)
            for codes, per_octave in scale_codes(scales_of(words, layout))
        ]
    for contexts, numbers, per_octave in choices:
        for mantissa in MANTISSA_BITS:
            cut = _cut(layout, mantissa)
            step = (1 << mantissa) // per_octave if per_octave else 0
            yield _way(words[rows], cut, len(bits), contexts, numbers, Residue.OWN, step)


def _base_ways(bits: Array, base: Array, residue: Residue, layout: Layout, floats: bool) -> Iterator[Way]:
    """Ways beside the base."""
    rows, cut = _sample(bits), (BYTE,) * bits.itemsize
    words, theirs = words_of(bits[rows], residue, base[rows]), words_of(base[rows], Residue.OWN)
    yield _way(words, cut, len(bits), None, None, residue, 0)
    for exponents in base_exponents(theirs, layout) if floats else ():
        yield _way(words, cut, len(bits), exponents, base_contexts(exponents, theirs), residue, 0)


def _sample(bits: Array) -> slice:
    return slice(None, None, -(-bits.size // SAMPLE))


def _cut(layout: Layout, mantissa: int) -> tuple[int, ...]:
    """Bits of planes: exponent and some mantissa; what is left over from bytes; bytes."""
    rest = layout.exponent_shift - mantissa
    pieces = [piece for piece in (4, 2, 1) if rest % BYTE & piece]
    return (layout.exponent + mantissa, *pieces, *(BYTE,) * (rest // BYTE))


def _way(
    words: Array,
    cut: tuple[int, ...],
    rows: int,
    contexts: Contexts,
    numbers: Array | None,
    residue: Residue,
    step: int,
) -> Way:
    """Estimates of every plane on a sample of the rows."""
    scale, total, shared = rows / len(words), 0.0, []
    if isinstance(contexts, ScaleCodes):
        total += 2.0 * (contexts.rows.size * contexts.rows.any() + contexts.columns.size * contexts.columns.any())
    for number, values in enumerate(_values(words, cut)):
        alone = estimated_bits(counts_of(values, None, cut[number]), scale)
        best = min(alone, scale * values.size * cut[number] * WORTH)
        # below the top plane of a float's own bits, contexts have nothing to tell
        told = contexts is not None and numbers is not None and (number == 0 or residue != Residue.OWN)
        with_contexts = estimated_bits(counts_of(values, numbers, cut[number]), scale) if told else np.inf
        shared.append(with_contexts < best)
        total += min(best, with_contexts)
    return Way(residue, contexts, cut, tuple(shared), step, total)


def _values(words: Array, cut: Sequence[int]) -> Iterator[Array]:
    """Values of every plane, from the top."""
    shift = BYTE * words.itemsize
    for bits in cut:
        shift -= bits
        yield (words >> np.array(shift, words.dtype) & np.array((1 << bits) - 1, words.dtype)).reshape(-1)


def _written(way: Way, bits: Array, base: Array | None) -> BitPlanes:
    words, numbers = words_of(bits, way.residue, base), None
    if isinstance(way.contexts, ScaleCodes):
        numbers = scale_contexts(way.contexts, slice(None)).reshape(-1)
    elif isinstance(way.contexts, BaseExponents) and base is not None:
        numbers = base_contexts(way.contexts, words_of(base, Residue.OWN)).reshape(-1)
    planes = []
    for number, values in enumerate(_values(words, way.bits)):
        shared = way.with_contexts[number] and numbers is not None
        contexts = way.contexts.count if shared and way.contexts is not None else 1
        step = way.step if number == 0 else 0
        planes.append(written_plane(values, way.bits[number], numbers if shared else None, contexts, step))
    used = any(plane.with_contexts for plane in planes)
    return BitPlanes(way.residue, way.contexts if used else None, tuple(planes))
