"""Kill a run at random moments until it is done, and compare what comes out with an uninterrupted run.

    python benchmarks/resume.py --kills 50

Every kill is SIGKILL after a random time, in the whole of a run and of its rest; the model is the one of the demo.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from trueaxis.demo.run import MODEL


def command(tokens: Path, out: Path, *more: str) -> list[str]:
    """Of one run that may be killed, with more options."""
    options = ["--bits", "3", "--calibration", str(tokens), "--resume", "--json"]
    return [sys.executable, "-m", "trueaxis.cli", "compress", str(MODEL), str(out), *options, *more]


def killed(tokens: Path, out: Path, seconds: float) -> bool:
    """Starts a run and kills it after so long; False where it was done before."""
    run = subprocess.Popen(command(tokens, out), stdout=subprocess.DEVNULL)
    try:
        code = run.wait(seconds)
    except subprocess.TimeoutExpired:
        run.kill()
        run.wait()
        return True
    if code:
        raise SystemExit(f"a resumed run ended with {code}")
    return False


def whole_output(out: Path, expected: Path) -> bool:
    """Whether a directory that was there after a kill has every file of the expected one, the report of its own."""
    names = {file.name for file in expected.iterdir()}
    if {file.name for file in out.iterdir()} != names:
        return False
    return all((out / name).read_bytes() == (expected / name).read_bytes() for name in names - {"trueaxis.json"})


def main() -> int:
    """0 if every output is the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"machine: {platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    print(f"command: {' '.join(['python', *sys.argv])}")
    rng, kills, outputs, different, half_visible = random.Random(options.seed), 0, 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        tokens, out = Path(folder) / "tokens.npy", Path(folder) / "out"
        np.save(tokens, np.random.default_rng(0).integers(0, 2048, (16, 128)).astype(np.uint16))
        begun = time.perf_counter()
        subprocess.run(command(tokens, Path(folder) / "expected"), check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - begun
        expected = (Path(folder) / "expected" / "model.safetensors").read_bytes()
        while kills < options.kills:
            target = out.with_name(f"out{outputs}")
            while killed(tokens, target, rng.uniform(0.2, 1.0) * whole) and kills < options.kills:
                kills += 1
                half_visible += target.exists() and not whole_output(target, Path(folder) / "expected")
            subprocess.run(command(tokens, target), check=True, stdout=subprocess.DEVNULL)
            outputs += 1
            different += (target / "model.safetensors").read_bytes() != expected
            left = [file.name for file in Path(folder).iterdir() if file.name.startswith(".")]
            print(f"output {outputs}: {kills} kills so far, different {different}, left beside: {left}", flush=True)
    print(f"{kills} kills, {outputs} outputs, {different} of them different, {half_visible} visible in part; "
          f"a run takes {whole:.0f} s")  # fmt: skip
    return int(different > 0 or half_visible > 0)


if __name__ == "__main__":
    sys.exit(main())
