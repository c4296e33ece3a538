"""A scaling model: hours of a compression for models of 8, 70 and 671 billion parameters on 1 to 1,000 workers.

    python benchmarks/scaling.py [--recipe default] [--tokens 131072] [--machine 64]

    units timed on this machine × work counted from shapes ─▶ hours by stage, as many side by side as the stage allows

A worker is one processor like this one. A machine has at most `--machine` of them: beyond that the rounding of the
search goes on spreading (--engine ray), all else stays on one machine. Nothing of that size was run.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys

from trueaxis.recipe import recipe
from trueaxis.units import measure_units
from trueaxis.workload import Extent, Matrix, Space, holding_of, side_by_side, spread, work_of

WORKERS = (1, 8, 64, 1000)
SPREADS = ("search",)  # over more than one machine


def llama(blocks: int, d: int, hidden: int, kv: int, vocabulary: int) -> Extent:
    """A dense model with grouped queries and a gated MLP."""
    block = [Matrix(d, d, 2), Matrix(kv, d, 2), Matrix(hidden, d, 2), Matrix(d, hidden)]
    outer = [Matrix(vocabulary, d, role="embedding"), Matrix(vocabulary, d, role="head")]
    spaces = blocks * (Space(d), Space(d), Space(d), Space(hidden))
    matrices = [one._replace(count=one.count * blocks) for one in block]
    return Extent((*outer, *matrices), (*spaces, Space(d)), blocks, d, vocabulary)


def sparse(blocks: int, dense: int, d: int, experts: int, chosen: int, vocabulary: int) -> Extent:
    """A mixture of experts in the proportions of the largest open ones: low-rank attention, one shared expert."""
    narrow, wide, share = 2048, 18432, chosen / experts
    attention = [
        Matrix(1536, d), Matrix(24576, 1536), Matrix(576, d), Matrix(32768, 512), Matrix(d, 16384),
    ]  # fmt: skip
    matrices = [one._replace(count=blocks) for one in attention]
    matrices += [Matrix(wide, d, 2 * dense), Matrix(d, wide, dense)]
    others = blocks - dense
    matrices += [Matrix(narrow, d, 2 * others), Matrix(d, narrow, others)]
    matrices += [Matrix(narrow, d, 2 * others * experts, share), Matrix(d, narrow, others * experts, share)]
    spaces = blocks * [Space(d), Space(1536), Space(512), Space(16384)] + dense * [Space(d), Space(wide)]
    spaces += others * [Space(d), Space(narrow)] + others * experts * [Space(d, share), Space(narrow, share)]
    outer = [Matrix(vocabulary, d, role="embedding"), Matrix(vocabulary, d, role="head")]
    return Extent((*outer, *matrices), (*spaces, Space(d)), blocks, d, vocabulary, groups=3 * others)


MODELS = {
    "8 B": llama(32, 4096, 14336, 1024, 128256),
    "70 B": llama(80, 8192, 28672, 1024, 128256),
    "671 B (MoE)": sparse(61, 3, 7168, 256, 8, 129280),
}


def main() -> None:
    """Prints the machine, the units, and a table for every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--tokens", type=int, default=131072, help="of calibration text")
    parser.add_argument("--machine", type=int, default=64, help="processors of one machine")
    options = parser.parse_args()
    chosen = recipe(options.recipe)
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    print("load of the machine:", *os.getloadavg())
    units = measure_units(spread(MODELS["8 B"], 3), 8192, chosen)  # larger shapes would be cut down to the same
    print("units:", ", ".join(f"{key} {value:.3g} s" for key, value in vars(units).items()))
    for name, extent in MODELS.items():
        count = sum(one.count for one in extent.matrices)
        print(f"\n{name}: {extent.weights / 1e9:.1f} · 10⁹ weights in {count:,} matrices")
        seconds = {stage: units.seconds(work) for stage, work in work_of(extent, chosen, options.tokens).items()}
        most, totals = side_by_side(extent, options.tokens), dict.fromkeys(WORKERS, 0.0)
        print("| stage | most at once | " + " | ".join(f"{workers:,}" for workers in WORKERS) + " |")
        print("|---|---|" + "---|" * len(WORKERS))
        for stage, alone in seconds.items():
            row = []
            for workers in WORKERS:
                there = workers if stage in SPREADS else min(workers, options.machine)
                row.append(alone / min(there, most[stage]) / 3600)
                totals[workers] += row[-1]
            print(f"| {stage} | {most[stage]:,} | " + " | ".join(f"{hours:,.2f}" for hours in row) + " |")
        print("| all, hours | | " + " | ".join(f"{hours:,.1f}" for hours in totals.values()) + " |")
        held = holding_of(extent, chosen, options.tokens, 1, extent.weights * 3 // 8)
        most_held = max(one.held for one in held.values())
        print(
            f"held, in memory or on disk: {most_held / 1e9:,.0f} GB; worked on, one worker: "
            f"{max(one.worked for one in held.values()) / 1e9:,.1f} GB"
        )


if __name__ == "__main__":
    main()
