"""The same bytes whatever the processors, the workers, and the instruction set: in processes of their own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = """
import os, sys
if sys.argv[5] != "all" and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
import torch
torch.set_num_threads(int(sys.argv[4]))
import trueaxis
trueaxis.compress(sys.argv[1], sys.argv[2], bits=3, calibration=[sys.argv[3]], threads=int(sys.argv[6]))
"""


def digest(model: Path, tokens: Path, out: Path, environment: dict[str, str], *arguments: str) -> str:
    """Hash of the weights that a new process makes."""
    command = [sys.executable, "-c", SCRIPT, str(model), str(out), str(tokens), *arguments]
    subprocess.run(command, check=True, env={**os.environ, **environment})
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def test_same_bytes_for_any_processors_threads_and_instructions(demo_model: Path, tmp_path: Path) -> None:
    """Large enough that products are shared between processors, where torch and NumPy are let."""
    tokens = tmp_path / "tokens.npy"
    np.save(tokens, np.random.default_rng(0).integers(0, 2048, (16, 128)).astype(np.uint16))
    found = {
        digest(demo_model, tokens, tmp_path / "one", {"OMP_NUM_THREADS": "1", "TRUEAXIS_ISA": "portable"},
               "1", "one", "1"),
        digest(demo_model, tokens, tmp_path / "four", {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"},
               "4", "all", "3"),
    }  # fmt: skip
    assert len(found) == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_sums_do_not_depend_on_who_adds(tiny_llama: Path, threads: int) -> None:
    from trueaxis.metric.calibrate import calibrate
    from trueaxis.model.checkpoint import Checkpoint

    tokens = np.random.default_rng(1).integers(0, 128, (160, 64))  # three chunks
    checkpoint = Checkpoint.open(tiny_llama)
    expected = calibrate(checkpoint, tokens, seed=0, threads=2)
    found = calibrate(checkpoint, tokens, seed=0, threads=threads)
    for space, values in expected.sums.items():
        assert np.array_equal(values, found.sums[space]), space
        assert found.tokens[space] == tokens.size
