"""Coders: the comparison against codes written down by hand, and bounds between the coders."""

from __future__ import annotations

import heapq
import json
from pathlib import Path

import numpy as np
import pytest

import trueaxis
from trueaxis import _core
from trueaxis.cli import main
from trueaxis.coders import KINDS, huffman_lengths, range_bits
from trueaxis.types import TrueaxisError

pytest.importorskip("constriction", reason="coders are compared with constriction (trueaxis[all])")


def test_huffman_lengths_cost_what_an_optimal_code_costs() -> None:
    """The cost of a Huffman code is the sum of all merged weights."""
    rng = np.random.default_rng(0)
    for size in (2, 3, 9, 40):
        weights = rng.integers(1, 400, size).astype(np.float64)
        heap = list(weights)
        heapq.heapify(heap)
        cost = 0.0
        while len(heap) > 1:
            merged = heapq.heappop(heap) + heapq.heappop(heap)
            cost += merged
            heapq.heappush(heap, merged)
        lengths = huffman_lengths(np.concatenate([[0], weights])[None])[0]
        assert lengths[0] == 0 and (lengths[1:] * weights).sum() == cost


def test_range_coder_comes_close_to_the_entropy_of_its_tables() -> None:
    rng = np.random.default_rng(0)
    frequencies = np.array([[1024, 2048, 1024, 0], [0, 0, 4096, 0], [96, 1000, 1000, 2000]], np.float64)
    values = [rng.choice(4, 5000, p=row / 4096) for row in frequencies]
    counts = np.stack([np.bincount(row, minlength=4) for row in values])
    ideal = -(counts * np.log2(np.maximum(frequencies, 1) / 4096)).sum()
    assert ideal <= range_bits(np.concatenate(values), counts, frequencies) <= ideal * 1.001 + 64


@pytest.mark.parametrize("trellis", [0, 1, 5])
def test_tables_of_indices_agree_with_the_counts_that_tables_are_made_from(trellis: int) -> None:
    rng = np.random.default_rng(trellis)
    indices = rng.integers(-9, 10, (6, 50)).astype(np.int32)
    segment = (indices, rng.integers(-4, 5, 50).astype(np.int32), np.arange(20, 80, 10, dtype=np.int32), 1, trellis)
    numbers = _core.table_numbers(48, segment).astype(np.int64)
    found = np.bincount((numbers * 9 + np.minimum(np.abs(indices), 8)).reshape(-1), minlength=96 * 9)
    np.testing.assert_array_equal(found.reshape(2, 48, 9), _core.count_symbols(48, 7, [segment]))


@pytest.mark.parametrize("fixture", ["compressed_llama", "compressed_tied"])
def test_bounds_between_coders(fixture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture)
    found = trueaxis.compare_coders(path)
    assert found["trueaxis_bits"] == pytest.approx(8 * trueaxis.inspect(path)["spent_bytes"]["indices"], abs=64)
    assert found["entropy_bits"] < found["range_bits"] < found["huffman_bits"]
    assert found["range_bits"] == pytest.approx(found["trueaxis_bits"], rel=0.02)
    quantized = [row["name"] for row in trueaxis.inspect(path)["tensors"] if row["storage"] == "quantized"]
    assert sorted(row["name"] for row in found["tensors"]) == sorted(quantized)
    for key in ("weights", *KINDS):
        assert sum(row[key] for row in found["tensors"]) == pytest.approx(found[key])


def test_command_labels_the_entropy(compressed_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(compressed_llama), "--coders"]) == 0
    text = capsys.readouterr().out
    found = trueaxis.compare_coders(compressed_llama)
    assert f"Shannon entropy, not a size    {found['entropy_bits'] / found['weights']:.4f}" in text
    assert f"Huffman coding (constriction)  {found['huffman_bits'] / found['weights']:.4f}" in text
    assert main(["inspect", str(compressed_llama), "--coders", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["coders"] == found


def test_missing_library_is_named(compressed_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueaxis.coders.find_spec", lambda name: None)
    with pytest.raises(TrueaxisError, match=r"pip install 'trueaxis\[all\]'"):
        trueaxis.compare_coders(compressed_llama)
