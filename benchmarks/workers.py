"""Kill workers of Ray at random moments while they round matrices, and compare what comes out with a run without Ray.

    python benchmarks/workers.py --kills 50      # needs ray

    cluster of one node ─▶ compress --engine ray ─▶ SIGKILL to one of its workers, again and again ─▶ same bytes?

A run that ends with an error is resumed, without Ray. The model is that of the demo. Workers of the local pool are
threads, which die with their process alone: see resume.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]
from resume import command, whole_output

CPUS = 2
MOST = 10  # kills of one run
BUSY, IDLE = "ray::_on_one_processor", "ray::IDLE"  # how a worker is named; Ray's own agents have other names


def workers() -> dict[int, str]:
    """Workers of Ray below this process, and their names."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")

    def below(one: int) -> bool:
        return one == os.getpid() or (one in parents and below(parents[one]))

    return {one: name for one, name in names.items() if name.startswith((BUSY, IDLE)) and below(one)}


def harassed(run: subprocess.Popen[bytes], rng: random.Random, most: int) -> tuple[int, int]:
    """Kills workers of a run until it ends; how many, and how many of these were at work."""
    kills = busy = 0
    while run.poll() is None:
        found = workers()
        if kills < most and any(name.startswith(BUSY) for name in found.values()):
            time.sleep(rng.uniform(0.0, 0.5))
            found = workers()
            at_work = [one for one, name in found.items() if name.startswith(BUSY)]
            if found and run.poll() is None:
                victim = rng.choice(at_work or list(found))
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    kills, busy = kills + 1, busy + (victim in at_work)
        time.sleep(0.02)
    return kills, busy


def main() -> int:
    """0 if every output is the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"machine: {platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    print(f"command: {' '.join(['python', *sys.argv])}")
    rng, kills, busy, outputs, different, failed = random.Random(options.seed), 0, 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        tokens, expected = Path(folder) / "tokens.npy", Path(folder) / "expected"
        np.save(tokens, np.random.default_rng(0).integers(0, 2048, (16, 128)).astype(np.uint16))
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "include_dashboard": False})
        recipe, engine = ["--recipe", options.recipe], ["--engine", "ray", "--ray-address", cluster.address]
        subprocess.run(command(tokens, expected, *recipe), check=True, stdout=subprocess.DEVNULL)
        while kills < options.kills:
            out, begun = Path(folder) / f"out{outputs}", time.perf_counter()
            run = subprocess.Popen(command(tokens, out, *recipe, *engine), stdout=subprocess.DEVNULL)
            more, at_work = harassed(run, rng, min(MOST, options.kills - kills))
            kills, busy, outputs = kills + more, busy + at_work, outputs + 1
            if run.returncode:
                failed += 1
                subprocess.run(command(tokens, out, *recipe), check=True, stdout=subprocess.DEVNULL)
            different += not whole_output(out, expected)
            left = [file.name for file in Path(folder).iterdir() if file.name.startswith(".")]
            told = f"output {outputs}: {kills} kills so far, {busy} at work, {failed} runs ended with an error, "
            seconds = time.perf_counter() - begun
            print(f"{told}different {different}, left beside: {left}, {seconds:.0f} s", flush=True)
        cluster.shutdown()
    print(f"{kills} kills, {busy} of workers at work; {outputs} outputs, {failed} of them resumed after an error, "
          f"{different} different")  # fmt: skip
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
