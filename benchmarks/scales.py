"""What smooth bases over the index of channels would save of steps and scale codes, in bytes.

    python benchmarks/scales.py MODEL … [--recipes identity gauge] [--bits 1.5 2 3]

    every matrix quantized ─▶ its four arrays of codes ─▶ as the side coder takes them: medians or differences
                                                       └▶ rounded sums of waves or hats, and what is left of the codes

Both are bytes of the same coder of adaptive integers, without its first number. The waves are those of a DCT, the hats
linear splines, 2 to MOST of them; their amplitudes are rounded to a quarter of a code for waves, to a code for hats,
and the best count is taken array by array, at no cost for saying which: what is printed can only be too hopeful.
Steps of columns and rows, and scales of columns (around what the steps foretell, or as they are) and rows. `sorted`:
the same over channels sorted by the energy of their weights, without the order, which would take log₂ n! bits more.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import gammaln

from function import Case, asked, cases, decoded
from trueaxis import _core
from trueaxis.entropy.side import predicted_scale
from trueaxis.quantize.budget import first_c
from trueaxis.runtime.terms import hats
from trueaxis.types import Array, Quantized

MOST = 32
ARRAYS = ("steps of columns", "steps of rows", "scales of columns", "scales of rows")


def size_of(*arrays: Array) -> int:
    """Bytes of arrays of integers, each with a context of its own."""
    contexts = np.repeat(np.arange(len(arrays), dtype=np.uint8), [one.size for one in arrays])
    return len(_core.encode_integers(np.concatenate(arrays).astype(np.int32), contexts))


def as_now(codes: Array) -> int:
    """Bytes around the median or as differences."""
    median = int(np.median(codes))
    first = np.array([median])
    return min(size_of(first, codes - median), size_of(first * 0, np.diff(codes, prepend=0)))


def in_bases(codes: Array) -> int:
    """Bytes with the best of all sums of waves or hats."""
    places, best = (np.arange(codes.size)[:, None] + 0.5) / codes.size, as_now(codes)
    count = 2
    while count <= min(MOST, codes.size // 2):
        for basis, step in ((np.cos(np.pi * places * np.arange(count)), 0.25), (hats(count, codes.size), 1.0)):
            found = np.rint(np.linalg.lstsq(basis, codes, rcond=None)[0] / step).astype(np.int64)
            best = min(best, size_of(found, codes - np.rint(basis @ (found * step)).astype(np.int64)))
        count *= 2
    return best


def arrays_of(quantized: Quantized) -> list[list[Array]]:
    """Each of the four arrays, in the forms that it may be coded in."""
    grid, contexts = quantized.grid, quantized.contexts
    scale = contexts.column_codes.astype(np.int64)
    relative = scale - predicted_scale(grid.column_codes, grid.resolution, contexts.shift)
    return [[grid.column_codes], [grid.row_codes.reshape(-1)], [relative, scale], [contexts.row_codes]]


def report(case: Case, rates: Sequence[float]) -> None:
    """A table of one model."""
    print(
        f"\n### {case.label}\n\n| bits | array | numbers | bytes now | with bases | with bases, sorted | the order |\n"
        + "|---" * 7
        + "|"
    )
    size = sum(plan.weight.size for plan in case.plans.values())
    for rate in rates:
        c = first_c(list(case.plans.values()), rate * size)
        total, found = np.zeros((len(ARRAYS), 5), np.int64), 0
        for plan in case.plans.values():
            quantized, file_bytes, _ = decoded(plan, c)
            found += file_bytes
            ranks = [np.argsort(np.square(plan.weight).sum(axis=axis), kind="stable") for axis in (0, 1)]
            for number, forms in enumerate(arrays_of(quantized)):
                forms = [np.asarray(one, np.int64) for one in forms]
                apart = forms[0].size != len(ranks[number % 2])  # steps of rows by groups of columns have no order
                orders = [one if apart else one[ranks[number % 2]] for one in forms]
                total[number] += [
                    forms[0].size, min(map(as_now, forms)), min(map(in_bases, forms)), min(map(in_bases, orders)),
                    0 if apart else int(gammaln(forms[0].size + 1) / np.log(256)),
                ]  # fmt: skip
        for label, row in zip((*ARRAYS, "all"), (*total, total.sum(axis=0)), strict=True):
            print(f"| {rate} | {label} | {row[0]} | {row[1]} | {row[2]} | {row[3]} | {row[4]} |", flush=True)
        print(f"| {rate} | records and tables | {size} | {found} | | | |", flush=True)


def main() -> None:
    """Prints the machine, the command and every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    options = asked(parser)
    for _, case in cases(options):
        report(case, options.bits)


if __name__ == "__main__":
    main()
