"""Coders: the same indices under Huffman and range coding, beside our file and the Shannon entropy.

    compressed directory ─▶ indices, each with its table (class and trellis quantizer) ─┬─▶ Huffman      bits
                                                                                        ├─▶ range coding bits
                                                                                        └─▶ entropy, no size
Every coder gets the split into classes and the frequencies of the file's own tables, and pays our bits for escaped
magnitudes; what is compared is the coder alone. Codebooks and range coder are those of constriction.

References: Huffman 1952; Martin 1979 (range coding); Bamler 2022, arXiv:2201.01741 (constriction).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trueaxis import _core
from trueaxis.entropy.model import CLASSES, TOTAL, Tables
from trueaxis.entropy.stream import ResidualHeader, file_order
from trueaxis.runtime.decode import Decoder
from trueaxis.types import Array, TrueaxisError

KINDS = ("trueaxis_bits", "huffman_bits", "range_bits", "entropy_bits")


@dataclass(frozen=True, eq=False)
class Symbols:
    """The indices of one matrix as the coder sees them.

    Attributes:
        name: Of its tensor.
        values: int32: 0 … 2K for k = −K … K, 2K + 1 for an escape; sorted by table.
        counts: int64 [2 · 48, 2K + 2], how often each occurs in each table.
        escape_bits: Bits of the escaped magnitudes.
        stored_bits: Its share of the streams that hold it.
    """

    name: str
    values: Array
    counts: Array
    escape_bits: int
    stored_bits: float


def compare_coders(path: str | Path) -> dict[str, Any]:
    """Bits of a compressed model's indices under several coders.

    Args:
        path: Compressed directory.

    Returns:
        weights; trueaxis_bits, of the index streams in the file; huffman_bits and range_bits, of the same indices
        coded; entropy_bits, their Shannon entropy given their tables, counted over the model, which is no size; and
        tensors: the same by name, shared streams divided by ideal code length.

    Raises:
        TrueaxisError: constriction is not installed.
        FormatError: The file is damaged.

    Example:
        >>> found = trueaxis.compare_coders("llama-3bit")    # doctest: +SKIP
        >>> found["huffman_bits"] / found["trueaxis_bits"]   # doctest: +SKIP
        1.021
    """
    if find_spec("constriction") is None:
        raise TrueaxisError("comparing coders needs constriction; install it with: pip install 'trueaxis[all]'")
    decoder = Decoder(path)
    matrices = [matrix for size, group in decoder.coded_groups() for matrix in _symbols(size, group, decoder.tables)]
    rows: dict[str, dict[str, Any]] = {}
    if matrices:
        frequencies = signed_frequencies(decoder.tables)
        lengths = huffman_lengths(frequencies)
        ideal = _ideal_bits(np.sum([matrix.counts for matrix in matrices], axis=0))
        for matrix in matrices:
            row = rows.setdefault(matrix.name, {"name": matrix.name, "weights": 0, **dict.fromkeys(KINDS, 0.0)})
            row["weights"] += matrix.values.size
            row["trueaxis_bits"] += matrix.stored_bits
            row["huffman_bits"] += float((matrix.counts * lengths).sum()) + matrix.escape_bits
            row["range_bits"] += range_bits(matrix.values, matrix.counts, frequencies) + matrix.escape_bits
            row["entropy_bits"] += float((matrix.counts * ideal).sum()) + matrix.escape_bits
    totals = {key: sum(row[key] for row in rows.values()) for key in ("weights", *KINDS)}
    return {**totals, "tensors": list(rows.values())}


def _symbols(size: int, group: Sequence[tuple[str, ResidualHeader, Array]], tables: Tables) -> list[Symbols]:
    """Of the matrices that share `size` bytes of streams."""
    segments = [
        (
            indices,
            header.contexts.row_codes,
            np.ascontiguousarray(header.contexts.column_codes[file_order(header.grid, header.contexts)]),
            header.contexts.shift,
            header.trellis,
        )
        for _, header, indices in group
    ]
    ideal = np.array([_core.stream_bits(tables.coder, [segment]) for segment in segments]) + 1e-9
    found = []
    for (name, _, indices), segment, share in zip(group, segments, ideal / ideal.sum(), strict=True):
        numbers = _core.table_numbers(CLASSES, segment).reshape(-1).astype(np.int64)
        flat, largest = indices.reshape(-1), tables.largest_magnitude
        values = np.where(np.abs(flat) > largest, 2 * largest + 1, flat + largest).astype(np.int32)
        alphabet = 2 * largest + 2
        counts = np.bincount(numbers * alphabet + values, minlength=2 * CLASSES * alphabet)
        values = values[np.argsort(numbers, kind="stable")]
        escapes = escape_bits(flat, numbers % CLASSES, tables)
        found.append(Symbols(name, values, counts.reshape(2 * CLASSES, alphabet), escapes, 8 * size * float(share)))
    return found


def signed_frequencies(tables: Tables) -> Array:
    """float64 [2 · 48, 2K + 2]: frequencies of −K … K and of the escape, in 1/4096."""
    magnitudes = tables.frequencies[:, :, :-1].reshape(2 * CLASSES, -1)
    escape = tables.frequencies[:, :, -1:].reshape(2 * CLASSES, 1)
    return np.concatenate([magnitudes[:, :0:-1], magnitudes, escape], axis=1).astype(np.float64)


def escape_bits(indices: Array, classes: Array, tables: Tables) -> int:
    """Bits of sign and Exp-Golomb code of every index beyond the alphabet."""
    beyond = np.abs(indices) > tables.largest_magnitude
    orders = tables.escape_orders[classes[beyond]].astype(np.int64)
    excess = np.abs(indices[beyond]).astype(np.int64) - tables.largest_magnitude - 1
    prefix = np.floor(np.log2((excess >> orders) + 1)).astype(np.int64)
    return int((2 + 2 * prefix + orders).sum())


def huffman_lengths(frequencies: Array) -> Array:
    """int64, shaped as the frequencies: bits of each symbol in the Huffman code of its row; 0 where it has none."""
    constriction: Any = import_module("constriction")  # its parts are attributes, unknown to type checkers
    lengths = np.zeros(frequencies.shape, np.int64)
    for table in np.flatnonzero(frequencies.any(axis=1)):
        present = np.flatnonzero(frequencies[table])
        if present.size == 1:
            continue  # a single symbol needs no bits
        tree = constriction.symbol.huffman.EncoderHuffmanTree(frequencies[table, present])
        for symbol, place in enumerate(present):
            encoder = constriction.symbol.QueueEncoder()
            encoder.encode_symbol(symbol, tree)
            lengths[table, place] = encoder.get_compressed()[1]
    return lengths


def range_bits(values: Array, counts: Array, frequencies: Array) -> int:
    """Bits that constriction's range coder makes of values sorted by table."""
    constriction: Any = import_module("constriction")
    encoder, start = constriction.stream.queue.RangeEncoder(), 0
    for table, count in enumerate(counts.sum(axis=1)):
        present = np.flatnonzero(frequencies[table])
        if count and present.size > 1:
            places = np.searchsorted(present, values[start : start + count]).astype(np.int32)
            model = constriction.stream.model.Categorical(frequencies[table, present] / TOTAL, perfect=False)
            encoder.encode(places, model)
        start += count
    return encoder.num_bits()


def _ideal_bits(counts: Array) -> Array:
    """−log₂ of every symbol's share of its table; 0 for one that does not occur."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.where(counts > 0, -np.log2(np.maximum(shares, 1e-300)), 0.0)
