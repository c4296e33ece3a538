"""Hashes against a plain loop; overlap of the same, other and partly the same text."""

from __future__ import annotations

import numpy as np
import pytest

from trueaxis.metric.sketch import keep_smallest, overlap, shingle_hashes, sketch
from trueaxis.types import Array


def _text(seed: int, sequences: int = 64, length: int = 512) -> Array:
    return np.random.default_rng(seed).integers(0, 4000, (sequences, length))


def test_hashes_do_not_depend_on_position_or_dtype() -> None:
    text = _text(0, 1, 200)
    shifted = np.concatenate([_text(1, 1, 37), text[:, :100]], axis=1).astype(np.uint16)
    common = np.intersect1d(shingle_hashes(text), shingle_hashes(shifted))
    assert len(shingle_hashes(text)) == 200 - 63
    assert len(common) == 100 - 63
    assert len(shingle_hashes(text[:, :63])) == 0


def test_hashes_against_a_plain_loop() -> None:
    mask, factor = 2**64 - 1, 0x9E6C63D0876A9A47

    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    text = _text(2, 3, 70)
    expected = set()
    for row in text.tolist():
        for start in range(70 - 63):
            value = 0
            for token in row[start : start + 64]:
                value = (value * factor + mix(token)) & mask
            expected.add(mix(value))
    assert shingle_hashes(text).tolist() == sorted(expected)


def test_overlap_of_identical_and_disjoint_text() -> None:
    text = _text(3)
    hashes = keep_smallest(shingle_hashes(text))
    assert 0.8 < len(hashes) / (64 * 449 / 16) < 1.2
    short = sketch(hashes)
    assert short.dtype == np.uint32
    assert short.nbytes <= 512
    assert sketch(hashes, limit_bytes=40).size == 10
    for seen in (hashes, short):
        assert overlap(text, seen) == 1
        assert overlap(_text(4), seen) == 0


def test_overlap_estimates_the_share() -> None:
    text, other = _text(5), _text(6)
    mixed = np.concatenate([text[:32], other[:32]])
    hashes = keep_smallest(shingle_hashes(text))
    assert overlap(mixed, hashes) == pytest.approx(0.5, abs=0.1)
    assert overlap(mixed, sketch(hashes)) == pytest.approx(0.5, abs=0.2)


def test_short_texts_keep_all_their_hashes() -> None:
    text = _text(7, 32, 64)
    hashes = keep_smallest(shingle_hashes(text))
    assert len(hashes) == 32
    assert overlap(text, sketch(hashes)) == 1
    assert overlap(text, np.empty(0, np.uint32)) == 0
    assert overlap(text[:, :60], hashes) == 0


def test_keeping_commutes_with_uniting() -> None:
    one, other = shingle_hashes(_text(8, 2, 256)), shingle_hashes(_text(9, 40, 256))
    united = keep_smallest(np.union1d(keep_smallest(one), keep_smallest(other)))
    assert np.array_equal(united, keep_smallest(np.union1d(one, other)))
