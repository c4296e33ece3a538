"""Recognize text that was calibrated on, from 512 bytes.

    tokens ─▶ one 64-bit hash per run of 64 tokens ─▶ the smallest ones: all below 2⁶⁰ in the statistics,
                                                      the 128 smallest, as 32 bits each, in the output

Which hashes are kept depends on their values alone, so two texts keep the same ones where they agree, wherever
the agreement begins, and sketches of parts merge into the sketch of the whole.

References: Broder 1997, On the resemblance and containment of documents; Steele et al. 2014 (SplitMix64).
"""

from __future__ import annotations

import numpy as np

from trueaxis.types import Array

SHINGLE_TOKENS = 64
KEPT_BELOW = np.uint64(2**64 // 16)
SKETCH_HASHES = 128
_MULTIPLIER = 0x9E6C63D0876A9A47  # odd, hence invertible modulo 2⁶⁴


def shingle_hashes(tokens: Array) -> Array:
    """Hash every run of 64 tokens inside each sequence.

    h_i = mix(Σ_j mix(t_{i+j}) · a^(63−j)) modulo 2⁶⁴, by differences of one prefix sum per sequence.

    Args:
        tokens: Integers [sequences, length].

    Returns:
        uint64, sorted and without repeats; empty where sequences are shorter than 64 tokens.
    """
    sequences, length = tokens.shape
    if length < SHINGLE_TOKENS or sequences == 0:
        return np.empty(0, np.uint64)
    inverse = pow(_MULTIPLIER, -1, 2**64)
    mixed = _mix(tokens.astype(np.uint64)) * _powers(inverse, length)
    prefix = np.zeros((sequences, length + 1), np.uint64)
    np.cumsum(mixed, axis=1, out=prefix[:, 1:])  # wraps modulo 2⁶⁴, as intended
    windows = prefix[:, SHINGLE_TOKENS:] - prefix[:, :-SHINGLE_TOKENS]
    aligned = windows * _powers(_MULTIPLIER, length + 1)[SHINGLE_TOKENS - 1 : length]
    return np.unique(_mix(aligned))


def keep_smallest(hashes: Array) -> Array:
    """Keep the hashes below 2⁶⁰, and never fewer than the 128 smallest: what the statistics store.

    Keeping, uniting and keeping again gives what keeping from the union would have given.
    """
    ordered = np.unique(hashes)
    return ordered[: max(SKETCH_HASHES, int(np.searchsorted(ordered, KEPT_BELOW)))]


def sketch(hashes: Array, limit_bytes: int = 4 * SKETCH_HASHES) -> Array:
    """Shorten hashes to what the output carries.

    Args:
        hashes: uint64, from `shingle_hashes` or `keep_smallest`.
        limit_bytes: Room for the sketch.

    Returns:
        uint32, at most limit_bytes / 4 (and 128) of them: the upper halves of the smallest hashes, sorted.
    """
    count = min(SKETCH_HASHES, limit_bytes // 4)
    return np.unique(_upper(np.sort(hashes)[:count]))


def overlap(tokens: Array, seen: Array) -> float:
    """Estimate the share of a text's shingles that were calibrated on.

    Only hashes up to the largest one in `seen` can be judged; a text with none of those gives 0.

    Args:
        tokens: Integers [sequences, length].
        seen: uint32 from `sketch`, or uint64 as the statistics keep them.

    Returns:
        A number from 0 (nothing in common) to 1 (all of it was seen).

    Example:
        >>> text = np.arange(4096).reshape(4, 1024)
        >>> overlap(text, sketch(shingle_hashes(text)))
        1.0
    """
    if seen.size == 0:
        return 0.0
    hashes = shingle_hashes(tokens)
    if seen.dtype == np.uint32:
        hashes = np.unique(_upper(hashes))
    judged = hashes[hashes <= seen.max()]
    return float(np.isin(judged, seen).mean()) if judged.size else 0.0


def _upper(hashes: Array) -> Array:
    return (hashes >> np.uint64(32)).astype(np.uint32)


def _powers(factor: int, count: int) -> Array:
    powers = np.full(count, factor, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers)


def _mix(values: Array) -> Array:
    """The output function of SplitMix64: every input bit moves every output bit."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
