"""Kernels: streams to values on a GPU, bit for bit those of the CPU.

    stream ─▶ one warp: 32 lanes, strip after strip ─▶ columns [file order, rows] ─▶ in their places, [rows, columns]
              decode_streams                           scratch                       place_columns

One launch decodes any number of streams; what it reads is in tables that plan.py makes. Groups of four rows are decoded
as if there were no escapes, and once more, row by row, where there were. A lane writes eight rows of its column in one
go: every lane writes to a line of its own, and the number of these writes is what the speed depends on most. Damage is
told in a status per stream; nothing beyond a stream's own bytes is read, whatever they say.

References: Giesen, arXiv:1402.3392 (interleaved rANS and SIMD renormalization).
"""

# Kernels are written in a language that looks like Python; type checkers take its values for Python's.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false, reportArgumentType=false
# ruff: noqa: RUF005

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

STREAM_FIELDS = tl.constexpr(8)
STRIP_FIELDS = tl.constexpr(12)
MATRIX_FIELDS = tl.constexpr(8)
ROWS = tl.constexpr(4)  # of bfloat16 in 64 bits
TOTAL = tl.constexpr(4096)
REACH = tl.constexpr(128)  # values of k per table
MARK = tl.constexpr(-64)  # k of an escape, or where a table is absent
FLOOR = tl.constexpr(1 << 16)
LARGEST_ORDER = tl.constexpr(24)
LARGEST_INDEX = tl.constexpr(1 << 24)

# Status bits, in the order in which they are told.
BELOW_FLOOR = tl.constexpr(1)
ABSENT = tl.constexpr(2)
OUT_OF_RANGE = tl.constexpr(4)
ESCAPES_SHORT = tl.constexpr(8)
WORDS_SHORT = tl.constexpr(16)
STATES = tl.constexpr(32)
WORDS_LEFT = tl.constexpr(64)
ESCAPES_LEFT = tl.constexpr(128)

BALLOT = tl.constexpr("""{
    .reg .pred p;
    .reg .b32 all, below;
    setp.ne.s32 p, $2, 0;
    vote.sync.ballot.b32 all, p, 0xffffffff;
    mov.u32 below, %lanemask_lt;
    and.b32 below, below, all;
    popc.b32 $0, below;
    popc.b32 $1, all;
}""")


PREFETCH = tl.constexpr("prefetch.global.L1 [$1]; mov.u32 $0, 0;")


@triton.jit
def ranked(flags, WARP: tl.constexpr):
    """How many lanes below have a flag, and how many have one at all."""
    if WARP:
        rank, total = tl.inline_asm_elementwise(
            BALLOT, "=r,=r,r", [flags], dtype=(tl.int32, tl.int32), is_pure=True, pack=1
        )
    else:
        total = tl.sum(flags, 0)
        rank = tl.cumsum(flags, 0) - flags
    return rank, total


@triton.jit
def window_at(data, size, place):
    """At least 57 bits from bit `place` on, most significant first; zeros beyond `size` bytes."""
    i = tl.arange(0, 8)
    at = (place >> 3) + i
    found = tl.load(data + at, mask=at < size, other=0).to(tl.uint64)
    whole = tl.sum(found << (56 - 8 * i).to(tl.uint64), 0)
    return whole << (place & 7).to(tl.uint64)


@triton.jit
def read_escape(data, size, used, order, LARGEST: tl.constexpr):
    """(k, bits used by then, status) of the escape at bit `used`."""
    window = window_at(data, size, used)
    negative = (window >> 63) != 0
    window = window << 1
    zeros = used * 0
    for bits in tl.static_range(5):
        clear = (window >> (64 - (16 >> bits))) == 0
        zeros += tl.where(clear, 16 >> bits, 0)
        window = tl.where(clear, window << (16 >> bits), window)
    status = tl.where(zeros > LARGEST_ORDER, OUT_OF_RANGE, 0)
    zeros = tl.minimum(zeros, LARGEST_ORDER)
    window = window_at(data, size, used + 1 + zeros)
    scaled = window >> (63 - zeros).to(tl.uint64)
    low = ((window << (zeros + 1).to(tl.uint64)) >> 1) >> (63 - order).to(tl.uint64)
    excess = (((scaled - 1) << order.to(tl.uint64)) | low).to(tl.int64)
    magnitude = excess + LARGEST + 1
    beyond = (scaled == 0) | (magnitude > LARGEST_INDEX)
    status = tl.where(beyond, status | OUT_OF_RANGE, status)
    magnitude = tl.where(beyond, LARGEST + 1, magnitude)
    used += 2 + 2 * zeros + order
    status = tl.where(used > size * 8, status | ESCAPES_SHORT, status)
    return tl.where(negative, -magnitude, magnitude).to(tl.int32), used, status


@triton.jit
def round_to_bfloat16(values):
    """Bits, to the nearest, ties to even."""
    bits = values.to(tl.uint32, bitcast=True)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@triton.jit
def next_symbol(x, position, table, active, start, count, symbols, info, WARP: tl.constexpr):
    """(k, its entry of `info`, coder's states, words taken) of a row."""
    slot = (x & 0xFFF).to(tl.int32)
    k = tl.load(symbols + ((table << 12) | slot)).to(tl.int32) + MARK
    both = tl.load(info + (table * REACH + (k - MARK)))
    first = ((both >> 12) & 0xFFF).to(tl.int32)
    next_x = (both & 0xFFF).to(tl.uint32) * (x >> 12) + (slot - first).to(tl.uint32)
    needs = active & (next_x < FLOOR)
    rank, total = ranked(needs.to(tl.int32), WARP)
    at = position + rank
    word = tl.load(start + at, mask=needs & (at < count), other=0)
    next_x = tl.where(needs, (next_x << 16) | word.to(tl.uint32), next_x)
    return k, both, tl.where(active, next_x, x), position + total


@triton.jit
def value_in(both):
    """The reconstruction in an entry of `info`."""
    return (both >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def decode_rows(
    x, position, trellis, top, rows, own_rows, codes, code, steps, step, groups, start, count,
    shift, on_parity, on_state, symbols, info, scratch, target,
    CLASSES: tl.constexpr, WIDE: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    """Four rows without escapes: (bits of bfloat16 together, coder's states, words taken, trellis, whether a lane met
    an escape, so that all of these are worth nothing)."""
    packed = tl.zeros([32], tl.uint64)
    marked = tl.zeros([32], tl.int32)
    classes = ()
    row_steps = ()
    for r in tl.static_range(ROWS):  # what does not wait for the rows before
        row = tl.minimum(top + r, rows - 1)
        row_steps = row_steps + (tl.load(steps + row.to(tl.int64) * groups),)
        classes = classes + (tl.minimum(tl.maximum((tl.load(codes + row) + code) >> shift, 0), CLASSES - 1),)
    for r in tl.static_range(ROWS):
        active = top + r < own_rows
        quantizer = trellis & 1
        table = quantizer * CLASSES + classes[r]
        k, both, x, position = next_symbol(x, position, table, active, start, count, symbols, info, WARP)
        marked |= (active & (k == MARK)).to(tl.int32)
        trellis = (trellis >> 1) ^ ((-(k & 1)) & on_parity) ^ ((-quantizer) & on_state)
        value = value_in(both) * (step * row_steps[r])
        if WIDE:
            tl.store(scratch + target + top + r, value, mask=active)
        else:
            packed |= round_to_bfloat16(value).to(tl.uint64) << (16 * r)
    return packed, x, position, trellis, marked


@triton.jit
def decode_escaped_rows(
    x, position, trellis, used, status, top, rows, own_rows, codes, code, steps, step, groups, start, count,
    data, size, shift, on_parity, on_state, symbols, info, orders, scratch, target,
    CLASSES: tl.constexpr, LARGEST: tl.constexpr, WIDE: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    """Four rows with escapes: (bits of bfloat16 together, coder's states, words taken, trellis, escapes' bits taken,
    status)."""
    lane = tl.arange(0, 32)
    packed = tl.zeros([32], tl.uint64)
    for r in range(ROWS):
        row = tl.minimum(top + r, rows - 1)
        active = top + r < own_rows
        quantizer = trellis & 1
        cls = tl.minimum(tl.maximum((tl.load(codes + row) + code) >> shift, 0), CLASSES - 1)
        table = quantizer * CLASSES + cls
        k, both, x, position = next_symbol(x, position, table, active, start, count, symbols, info, WARP)
        escaped = active & (k == MARK)
        status |= tl.max(tl.where(escaped & ((both & 0xFFF) == 0), ABSENT, 0), 0)
        order_of_lane = tl.load(orders + cls + lane * 0)
        waiting = tl.where(escaped, lane, 32)
        next_lane = tl.min(waiting, 0)
        while next_lane < 32:
            order = tl.sum(tl.where(lane == next_lane, order_of_lane, 0), 0).to(tl.int64)
            found, used, wrong = read_escape(data, size, used, order, LARGEST)
            status |= wrong
            k = tl.where(lane == next_lane, found, k)
            waiting = tl.where(lane == next_lane, 32, waiting)
            next_lane = tl.min(waiting, 0)
        # The reconstruction of |k| = 2 is 4 − q and the offset that all above it have too.
        two = value_in(tl.load(info + (table * REACH + (2 - MARK))))
        sign = tl.where(k < 0, -1, 1)
        offset = sign.to(tl.float32) * (two - (4 - quantizer).to(tl.float32))
        value = tl.where(escaped, (2 * k - quantizer * sign).to(tl.float32) + offset, value_in(both))
        trellis = (trellis >> 1) ^ ((-(k & 1)) & on_parity) ^ ((-quantizer) & on_state)
        value = value * (step * tl.load(steps + row.to(tl.int64) * groups))
        if WIDE:
            tl.store(scratch + target + top + r, value, mask=active)
        else:
            packed |= round_to_bfloat16(value).to(tl.uint64) << (lane * 0 + 16 * r).to(tl.uint64)
    return packed, x, position, trellis, used, status


@triton.jit
def decode_streams(
    words, escapes, streams, strips, column_codes, column_steps, column_groups, row_codes, row_steps,
    symbols, info, orders, scratch, statuses,
    LARGEST: tl.constexpr, CLASSES: tl.constexpr, WIDE: tl.constexpr, WARP: tl.constexpr,
):  # fmt: skip
    """Decodes one stream per program.

    Args:
        words: uint16, of all streams, initial states first.
        escapes: uint8, of all streams.
        streams, strips: int64 [·, 8] and [·, 12], see plan.py.
        column_codes, column_steps, column_groups: Of all columns, in file order.
        row_codes, row_steps: Of all rows, and of all rows × groups.
        symbols: uint8 [2, CLASSES, 4096]: k + 64 at every slot; 0 for an escape or where a table is absent.
        info: int64 [sets, 2, CLASSES, 128]: of k = −64 … 63, reconstruction << 32 | start << 12 | frequency.
        orders: int32 [CLASSES], of escapes.
        scratch: What is decoded: float32, or int64 for four rows of bfloat16.
        statuses: int32 per stream.
        LARGEST: K.
        WIDE: Whether values are float32.
        WARP: Whether there is a warp to ask; an interpreter has none.
    """
    stream = tl.program_id(0)
    lane = tl.arange(0, 32)
    fields = streams + stream.to(tl.int64) * STREAM_FIELDS
    first_strip = tl.load(fields)
    last_strip = tl.load(fields + 1)
    lanes = tl.load(fields + 2).to(tl.int32)
    start = words + tl.load(fields + 3)
    count = tl.load(fields + 4).to(tl.int32)
    data = escapes + tl.load(fields + 5)
    size = tl.load(fields + 6)

    known = lane < lanes
    low = tl.load(start + 2 * lane, mask=known, other=0).to(tl.uint32)
    high = tl.load(start + 2 * lane + 1, mask=known, other=1).to(tl.uint32)
    x = low | (high << 16)
    status = tl.max(tl.where(x < FLOOR, BELOW_FLOOR, 0), 0)
    start += 2 * lanes
    position = tl.zeros([32], tl.int32)
    used = size * 0

    for strip in range(first_strip, last_strip):
        part = strips + strip * STRIP_FIELDS
        column = tl.load(part)
        width = tl.load(part + 1).to(tl.int32)
        rows = tl.load(part + 2).to(tl.int32)
        codes = row_codes + tl.load(part + 3)
        groups = tl.load(part + 5).to(tl.int32)
        shift = tl.load(part + 6).to(tl.int32)
        on_parity = tl.load(part + 7).to(tl.int32)
        on_state = tl.load(part + 8).to(tl.int32)
        own_info = info + tl.load(part + 9) * (2 * CLASSES * REACH)
        target = tl.load(part + 10) + lane * tl.load(part + 11)
        inside = lane < width
        own_rows = tl.where(inside, rows, 0)
        of_lane = column + tl.minimum(lane, width - 1)
        code = tl.load(column_codes + of_lane)
        step = tl.load(column_steps + of_lane)
        steps = row_steps + tl.load(part + 4) + tl.load(column_groups + of_lane)
        trellis = tl.zeros([32], tl.int32)
        before = tl.zeros([32], tl.uint64)
        for top in range(0, tl.cdiv(rows, 2 * ROWS) * 2 * ROWS, ROWS):
            if WARP:
                coming = start + tl.minimum(position + 64 + lane, count - 1)
                tl.inline_asm_elementwise(PREFETCH, "=r,l", [coming], dtype=tl.int32, is_pure=False, pack=1)
            packed, next_x, next_position, next_trellis, marked = decode_rows(
                x, position, trellis, top, rows, own_rows, codes, code, steps, step, groups, start, count,
                shift, on_parity, on_state, symbols, own_info, scratch, target, CLASSES, WIDE, WARP,
            )  # fmt: skip
            if tl.max(marked, 0) > 0:
                packed, next_x, next_position, next_trellis, used, status = decode_escaped_rows(
                    x, position, trellis, used, status, top, rows, own_rows, codes, code, steps, step, groups, start,
                    count, data, size, shift, on_parity, on_state, symbols, own_info, orders, scratch, target,
                    CLASSES, LARGEST, WIDE, WARP,
                )  # fmt: skip
            x = next_x
            position = next_position
            trellis = next_trellis
            if not WIDE:
                if top // ROWS % 2 == 1:
                    place = tl.multiple_of((target + top) // ROWS - 1, 2)[:, None] + tl.arange(0, 2)[None, :]
                    both = tl.join(before, packed).to(tl.int64, bitcast=True)
                    tl.store(scratch + place, both, mask=inside[:, None])
                before = packed

    status |= tl.max(tl.where(known & (x != FLOOR), STATES, 0), 0)
    taken = tl.max(position, 0)
    status |= tl.where(taken > count, WORDS_SHORT, tl.where(taken < count, WORDS_LEFT, 0))
    left = size * 8 - used
    last = tl.load(data + size - 1, mask=(left > 0) & (left < 8), other=0).to(tl.int64)
    unread = last & ((1 << (left & 7)) - 1)
    status |= tl.where((left >= 8) | ((left > 0) & (unread != 0)), ESCAPES_LEFT, 0)
    tl.store(statuses + stream, status)


@triton.jit
def place_columns(
    scratch, tiles, matrices, places,
    WIDE: tl.constexpr, TRANSPOSED: tl.constexpr, EVEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Columns in file order [columns, stride] to where each belongs: [rows, columns], or its transpose.

    Args:
        scratch: Of `decode_streams`, as float32 or int16.
        tiles: int32 per program: the matrix that it works on.
        matrices: int64 [·, 8], see plan.py; addresses of what is written among it.
        places: int32, of all columns of all matrices: where each stands in file order.
        EVEN: Divides all columns (rows where transposed), and addresses of values.
        BLOCK: Rows and columns of a tile.
    """
    tile = tl.program_id(0)
    fields = matrices + tl.load(tiles + tile).to(tl.int64) * MATRIX_FIELDS
    number = tile - tl.load(fields).to(tl.int32)
    rows = tl.load(fields + 1).to(tl.int32)
    columns = tl.load(fields + 2).to(tl.int32)
    if TRANSPOSED:
        rows = tl.multiple_of(rows, EVEN)
    else:
        columns = tl.multiple_of(columns, EVEN)
    own_places = places + tl.load(fields + 3)
    source = scratch + tl.multiple_of(tl.load(fields + 4), 2 * ROWS)
    stride = tl.multiple_of(tl.load(fields + 5), 2 * ROWS)
    address = tl.load(fields + 6)
    if WIDE:
        out = tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 4 * EVEN)
    else:
        out = tl.multiple_of(address.to(tl.pointer_type(tl.int16)), 2 * EVEN)
    across = tl.cdiv(columns, BLOCK)
    i = number // across * BLOCK + tl.arange(0, BLOCK)
    j = number % across * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(own_places + j, mask=j < columns, other=0).to(tl.int64)
    # A column is padded to whole groups of rows, which are read whole.
    found = tl.load(source + place[:, None] * stride + i[None, :], mask=(j < columns)[:, None] & (i < stride)[None, :])
    if TRANSPOSED:
        inside = (j < columns)[:, None] & (i < rows)[None, :]
        tl.store(out + j.to(tl.int64)[:, None] * rows + i[None, :], found, mask=inside)
    else:
        inside = (i < rows)[:, None] & (j < columns)[None, :]
        tl.store(out + i.to(tl.int64)[:, None] * columns + j[None, :], tl.trans(found), mask=inside)
