"""What `--dry-run` says of the time of every stage, and the time of the processor that a run then takes.

    python benchmarks/forecast.py MODEL TOKENS.npy [--tokens 16384] [--bits 3] [--recipe default]

    forecast ─▶ seconds by stage ─┐
    compress, one worker ─────────┴─▶ a row per stage; time between two reports of progress belongs to the latter

Both are processor time: what else runs on a machine makes them longer by a part, not several times as long. Units are
timed before the run and after it, since such parts change: what is said is the mean of both.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import trueaxis
from trueaxis.workload import STAGES

PARTS = {"pilot": "search"}  # reports of progress → the stage that they belong to


class Clock:
    """Processor time by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, stage: str, done: int = 0, total: int = 0) -> None:
        """What was since the last report belongs to this stage."""
        now, stage = time.process_time(), PARTS.get(stage, stage)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def main() -> None:
    """Prints the machine, the command and a row per stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path, help="token ids (.npy)")
    parser.add_argument("--tokens", type=int, default=16_384, help="of the calibration text")
    parser.add_argument("--bits", type=float, default=3.0)
    parser.add_argument("--recipe", default="default")
    options = parser.parse_args()
    print(f"machine: {platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    print(f"command: {' '.join(['python', *sys.argv])}")
    print("load of the machine before:", *os.getloadavg(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.npy"
        read = np.load(options.calibration)
        np.save(tokens, read[: max(1, options.tokens // read.shape[1])])
        common = {"bits": options.bits, "calibration": [tokens], "recipe": options.recipe, "threads": 1}
        before = trueaxis.forecast(options.model, **common).stage_seconds
        clock = Clock()
        trueaxis.compress(options.model, Path(folder) / "out", progress=clock.lap, **common)
        clock.lap("write, verify")
        after = trueaxis.forecast(options.model, **common).stage_seconds
    said = {stage: (before[stage] + after[stage]) / 2 for stage in before}
    print(f"all, before and after: {sum(before.values()):.2f} and {sum(after.values()):.2f} s")
    print("| stage | said, s | took, s | said / took |\n|---|---|---|---|")
    rows = {stage: (said.get(stage, 0.0), clock.seconds.get(stage, 0.0)) for stage in STAGES}
    rows["all"] = sum(said.values()), sum(clock.seconds.values())
    for stage, (expected, found) in rows.items():
        print(f"| {stage} | {expected:.2f} | {found:.2f} | {expected / found if found else float('nan'):.2f} |")


if __name__ == "__main__":
    main()
