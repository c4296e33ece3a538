"""What a dry run says of the demo model, and what a real run then takes; nothing is written by saying it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

import trueaxis
from trueaxis.cli import main
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import route, trace
from trueaxis.recipe import recipe
from trueaxis.stages import NoDrift
from trueaxis.units import Units
from trueaxis.workload import STAGES, Work, extent_of, holding_of, work_of

DEMO = Path(trueaxis.__file__).parent / "demo" / "model"
MEMORY = 10**9


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token ids [6, 256] of the demo model."""
    path = tmp_path_factory.mktemp("text") / "tokens.npy"
    np.save(path, np.random.default_rng(0).integers(0, Checkpoint.open(DEMO).config["vocab_size"], (6, 256)))
    return path


def test_memory_and_sizes_within_a_quarter(tokens: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trueaxis.cli", "compress", str(DEMO), str(tmp_path / "out"), "--json"]
    command += ["--calibration", str(tokens), "--threads", "1", "--memory", str(MEMORY)]
    expected, found = (
        json.loads(subprocess.run([*command, *more], capture_output=True, text=True, check=True).stdout)
        for more in (["--bits", "3", "--dry-run"], ["--bits", "3", "--statistics", str(tmp_path / "statistics")])
    )
    assert expected["memory_bytes"] == pytest.approx(found["peak_memory_bytes"], rel=0.25)
    assert expected["output_bytes"] == pytest.approx(found["file_bytes"], rel=0.01)
    assert expected["scratch_bytes"] == 0
    more = ["--bits", "0.001", "--overwrite", "--statistics", str(tmp_path / "statistics")]
    refused = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    smallest = re.search(r"smallest reachable size, about (\d+) bytes", refused.stderr)
    assert smallest
    assert expected["smallest_bytes"] == pytest.approx(int(smallest[1]), rel=0.25)


def test_nothing_is_written(tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["compress", str(DEMO), str(out), "--bits", "3", "--calibration", str(tokens), "--dry-run"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "smallest size that can be asked for" in text
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == np.load(tokens).size
    assert list(found["stage_seconds"]) == list(STAGES)
    assert found["seconds"] == pytest.approx(sum(found["stage_seconds"].values()))
    assert not os.listdir(tmp_path)


def test_what_is_held_beyond_a_share_of_memory_lies_on_disk(tokens: Path) -> None:
    plenty, little = (
        trueaxis.forecast(DEMO, bits=3, calibration=[tokens], threads=1, memory=memory) for memory in (10**12, 10**8)
    )
    assert plenty.scratch_bytes == 0 < little.scratch_bytes
    assert little.memory_bytes < plenty.memory_bytes
    assert little.smallest_bytes == plenty.smallest_bytes


def test_work_follows_shapes_and_recipe() -> None:
    checkpoint = Checkpoint.open(DEMO)
    extent = extent_of(trace(checkpoint), len(route(checkpoint).blocks))
    assert extent.weights + extent.exact == checkpoint.parameters
    default = work_of(extent, recipe("default"), 4096)
    assert "drift" not in work_of(extent, replace(recipe("default"), drift=NoDrift()), 4096)
    twice = work_of(extent, recipe("default"), 8192)
    assert twice["calibrate"].products == 2 * default["calibrate"].products
    assert twice["search"] == default["search"]
    deep = replace(extent, matrices=2 * extent.matrices, spaces=2 * extent.spaces, blocks=2 * extent.blocks)
    assert work_of(deep, recipe("default"), 4096)["search"].rounded == 2 * default["search"].rounded
    one, two = (holding_of(extent, recipe("default"), 4096, threads, 10**6)["gradients"] for threads in (1, 2))
    assert (one.held, one.worked) < (two.held, two.worked)


def test_seconds_are_units_times_work() -> None:
    units = Units(**{one.name: float(number) for number, one in enumerate(fields(Units), start=1)})
    assert units.seconds(Work(1.0, doubles=1.0, read=10.0)) == 1.0 + 2.0 + 10.0 * len(fields(Units))
    assert Work(1.0) + Work(2.0, coded=3.0) == Work(3.0, coded=3.0)
    assert 2.0 * Work(1.0, turned=3.0) == Work(2.0, turned=6.0)
    assert [one.name for one in fields(Units)] == [one.name for one in fields(Work)]
