"""C++ core: tables, rANS, trellis, side information, noise feedback. Every function checks its shapes (ValueError)."""

from collections.abc import Sequence

import numpy as np

_Array = np.ndarray
_Coded = tuple[_Array, _Array, _Array, int, int]
_Described = tuple[_Array, _Array, int, int]

class TableSet:
    """Checked tables: frequencies uint16 [2, classes, K + 2], escape orders uint8 [classes]."""

    def __init__(self, frequencies: _Array, escape_orders: _Array) -> None: ...
    @property
    def classes(self) -> int: ...
    @property
    def largest_magnitude(self) -> int: ...

def normalize_counts(counts: _Array) -> _Array:
    """uint64 [tables, K + 2] occurrences of |k| and escapes to uint16 frequencies of the same shape."""

def count_symbols(classes: int, largest: int, segments: Sequence[_Coded]) -> _Array:
    """uint64 [2, classes, largest + 2] occurrences of |k| = 0..largest and above."""

def stream_bits(tables: TableSet, segments: Sequence[_Coded]) -> float:
    """Ideal code length under the tables, escapes included."""

def encode_stream(tables: TableSet, segments: Sequence[_Coded], lanes: int) -> tuple[bytes, bytes]:
    """(stream, escapes) of a chain of segments (k int32 [columns, rows], row codes, column codes, shift, trellis)."""

def decode_stream(
    tables: TableSet, stream: bytes, escapes: bytes, segments: Sequence[_Described], lanes: int
) -> list[_Array]:
    """k int32 [columns, rows] of every segment (row codes, column codes, shift, trellis)."""

def reconstruct(
    k: _Array,
    row_codes: _Array,
    column_codes: _Array,
    shift: int,
    trellis: int,
    offsets: _Array,
    column_steps: _Array,
    row_steps: _Array,
    groups: _Array,
) -> _Array:
    """float32 [columns, rows] values of indices; offsets int8 [2, classes, 2], steps float32."""

def encode_integers(values: _Array, contexts: _Array) -> bytes:
    """int32 values, each with a uint8 context, through the adaptive binary range coder."""

def decode_integers(data: bytes, contexts: _Array) -> _Array:
    """Inverse of encode_integers, int32 [len(contexts)]."""

def quantize_block(
    weights: _Array,
    targets: _Array,
    factor: _Array | None,
    column_steps: _Array,
    row_steps: _Array,
    groups: _Array,
    row_codes: _Array,
    shift: int,
    codes_per_octave: int,
    zero_code: int,
    bits: _Array,
    offsets: _Array,
    escape_orders: _Array,
    rate_weight: float,
    residual_sums: _Array,
    residual_counts: _Array,
) -> tuple[_Array, _Array, _Array]:
    """Noise feedback in one block [B, m], last column first: (k int32, errors float32, column codes int32).

    `targets`, `residual_sums` and `residual_counts` are changed in place.
    """
