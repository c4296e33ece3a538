"""C++ core: tables, rANS, trellis, decoding, side information, noise feedback.

Every function checks its shapes (ValueError).
"""

from collections.abc import Sequence

import numpy as np

_Array = np.ndarray
_Coded = tuple[_Array, _Array, _Array, int, int]
_Described = tuple[_Array, _Array, int, int]

# Row codes, column codes, shift, trellis, offsets int8 [2, classes, 2], column steps, row steps [rows, groups], groups,
# places uint32: columns in file order, and where each column of the matrix stands there.
_Matrix = tuple[_Array, _Array, int, int, _Array, _Array, _Array, _Array, _Array]
# Words, escapes, and what they hold: (number of the matrix, first column, columns).
_Stream = tuple[bytes, bytes, list[tuple[int, int, int]]]

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

def table_numbers(classes: int, segment: _Coded) -> _Array:
    """uint8 [columns, rows]: the table of every index, quantizer · classes + class."""

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

def decode_float32(
    tables: TableSet,
    streams: Sequence[_Stream],
    matrices: Sequence[_Matrix],
    lanes: int,
    threads: int,
    outputs: Sequence[_Array] = (),
) -> list[_Array]:
    """float32 [rows, columns] values of every matrix: `reconstruct` of `decode_stream` in one pass.

    They are new arrays, or `outputs`, one for each matrix, filled in place.
    """

def decode_bfloat16(
    tables: TableSet,
    streams: Sequence[_Stream],
    matrices: Sequence[_Matrix],
    lanes: int,
    threads: int,
    outputs: Sequence[_Array] = (),
) -> list[_Array]:
    """The same rounded to bfloat16, its bits as uint16."""

def decode_tiles(
    tables: TableSet, streams: Sequence[_Stream], matrix: _Matrix, lanes: int, threads: int, tiles: _Array
) -> None:
    """One matrix to bfloat16 in uint16 `tiles` [strips * rows * lanes], without the pass that orders columns."""

def encode_plane(symbols: _Array, contexts: _Array, frequencies: _Array, lanes: int) -> bytes:
    """uint8 symbols, each with a uint8 context, through rANS; frequencies uint16 [contexts, 256]."""

_Plane = tuple[int, int, bool, int, int, _Array, bytes, _Array]
_Contexts = tuple[_Array, _Array, int, int, int, bool]

def decode_planes(
    count: int, width: int, residue: int, contexts: _Contexts, planes: Sequence[_Plane], base: _Array
) -> _Array:
    """Entries of `width` bytes, uint8 [count * width]; see runtime/bitplanes.py."""

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
    trellis: int,
    residual_sums: _Array,
    residual_counts: _Array,
) -> tuple[_Array, _Array, _Array]:
    """Noise feedback in one block [B, m], last column first: (k int32, errors float32, column codes int32).

    `targets`, `residual_sums` and `residual_counts` are changed in place.
    """

def viterbi(
    targets: _Array,
    classes: _Array,
    bits: _Array,
    offsets: _Array,
    escape_orders: _Array,
    rate_weight: float,
    trellis: int,
) -> _Array:
    """k int32 [columns, rows] of least error² + rate_weight · bits; targets float32 in fine steps, classes uint8."""

def instruction_sets() -> list[str]:
    """Names that this processor can run, "portable" first."""

def use_instruction_set(name: str) -> None:
    """Makes every kernel run in its variant for `name`; the bytes do not depend on it."""
