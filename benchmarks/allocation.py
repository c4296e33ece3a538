"""What one water level is worth: KL at equal file bytes against files in which all matrices take the same bits.

    python benchmarks/allocation.py MODEL CALIBRATION.npy EVALUATION.npy [--bits 2 3 4] [--statistics FILE]

    plans of `at-once` ─┬─────────────────────────────────────────▶ search for the size ─▶ KL      one level
                        └─▶ every matrix scaled to the same bits ─▶ search for the size ─▶ KL      equal bits

Within a matrix, columns and rows share its bits as they do in the recipe; matrices alone are made equal, round after
round by what they took. Ratios are to the files with equal bits, paired over
sequences, with the 95 % interval of 2,000 resamplings.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from model_level import reading, scored, spread, told

from trueaxis.assemble import Assembled
from trueaxis.evaluation import load_model
from trueaxis.metric.calibrate import load_tokens
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.parallel import default_threads
from trueaxis.passes import Job
from trueaxis.preparation import Prepared, prepare
from trueaxis.progress import silent
from trueaxis.quantize.budget import OCTAVE_BITS
from trueaxis.recipe import NAMED

ROUNDS = 4


def at_one_level(prepared: Prepared, target: int) -> Assembled:
    """Matrices as they were planned."""
    return prepared.fit(target)


def at_equal_bits(prepared: Prepared, target: int) -> Assembled:
    """Every matrix's steps scaled until all take about the same bits per weight."""
    for _ in range(ROUNDS):
        files = prepared.fit(target)
        found = rates(prepared.jobs, files)
        scales = 2.0 ** ((found - found.mean()) / OCTAVE_BITS)
        pairs = zip(prepared.jobs, scales, strict=True)
        prepared = replace(prepared, jobs=[replace(job, plan=job.plan.scaled(scale)) for job, scale in pairs])
    return prepared.fit(target)


def rates(jobs: Sequence[Job], files: Assembled) -> np.ndarray:
    """Bits per weight of every matrix."""
    return np.array([8 * files.tensor_bytes[job.weight.tensor] / job.weight.size for job in jobs])


ALLOCATIONS = {"equal bits": at_equal_bits, "one level": at_one_level}


def main() -> None:
    """Prints the machine, the command and a line per run."""
    parser = reading(__doc__)
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0, 4.0])
    parser.add_argument("--statistics", type=Path, help="read if it is there, written otherwise")
    options = parser.parse_args()
    print("machine:", platform.processor() or platform.machine(), platform.platform(), "\ncommand:", " ".join(sys.argv))
    tokens = spread(load_tokens(options.evaluation), options.sequences)
    checkpoint = Checkpoint.open(options.model)
    original = load_model(checkpoint)
    with tempfile.TemporaryDirectory() as work:
        statistics = options.statistics or Path(work) / "statistics"
        for bits in options.bits:
            target, base = checkpoint.bytes_at(bits), None
            prepared = prepare(
                checkpoint, NAMED["at-once"], target, [options.calibration], statistics,
                seed=0, threads=default_threads(), device="cpu", progress=silent,
            )  # fmt: skip
            for name, allocate in ALLOCATIONS.items():
                files = allocate(prepared, target)
                prepared.save(files, Path(work) / "out", overwrite=True, begun=0.0)
                found, perplexity = scored(f"{work}/out", original, tokens)
                base = found if base is None else base
                found_rates = rates(prepared.jobs, files)
                print(
                    f"{name:10} {files.file_bytes:11,} bytes  {told(base, found)}  perplexity {perplexity:.4f}  "
                    f"bits per weight of matrices {found_rates.min():.2f} to {found_rates.max():.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
