"""Resume: killed anywhere, a run goes on to the same bytes; whatever else was asked for is refused by name."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trueaxis
from checkpoints import save_small_llama, save_tokens
from trueaxis.journal import Journal, begun, journal_folder
from trueaxis.scratch import Scratch
from trueaxis.types import TrueaxisError

SCRIPT = """
import os, signal, sys
import trueaxis
model, tokens, out, stage, step = sys.argv[1:]
def progress(name, done, total):
    if name == stage and done == int(step):
        os.kill(os.getpid(), signal.SIGKILL)
trueaxis.compress(model, out, bits=9, calibration=[tokens], resume=True, progress=progress)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers, tokens, and what comes out without interruption."""
    folder = tmp_path_factory.mktemp("sources")
    save_small_llama(folder / "model", num_hidden_layers=2)
    save_tokens(folder / "tokens.npy", 37)
    compress(folder, folder / "expected")
    return folder


def compress(sources: Path, out: Path, **options: Any) -> trueaxis.CompressionReport:
    given = {"bits": 9.0, "calibration": [sources / "tokens.npy"], **options}
    return trueaxis.compress(sources / "model", out, **given)


def same(out: Path, expected: Path) -> bool:
    """Whether every file but the report is the same, and nothing is left beside it."""
    assert [file.name for file in out.parent.iterdir() if file.name.startswith(".")] == []
    names = {file.name for file in expected.iterdir()}
    assert {file.name for file in out.iterdir()} == names
    return all((out / name).read_bytes() == (expected / name).read_bytes() for name in names - {"trueaxis.json"})


def test_killed_at_every_stage(sources: Path, tmp_path: Path) -> None:
    """One output, killed again and again, each time further on; nothing of it is visible before it is whole."""
    out = tmp_path / "out"
    killed = (
        ("calibrate", 2), ("gradients", 1), ("gradients", 3), ("sensitivity", 1), ("prepare", 3), ("search", 1),
        ("drift", 1),
    )  # fmt: skip
    for stage, step in killed:
        command = [sys.executable, "-c", SCRIPT, str(sources / "model"), str(sources / "tokens.npy"), str(out)]
        assert subprocess.run([*command, stage, str(step)], check=False).returncode == -9, stage
        assert not out.exists()
    compress(sources, out, resume=True)
    assert same(out, sources / "expected")


@pytest.mark.parametrize("stage", ["calibrate", "gradients", "sensitivity", "prepare", "search", "drift"])
def test_what_is_known_is_not_done_again(
    sources: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(name: str, done: int, total: int) -> None:
        if name == stage and done == total - (stage == "search"):
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compress(sources, out, resume=True, progress=progress)
    made: list[str] = []
    keep = Journal.keep

    def noted(journal: Journal, key: str, *rest: Any) -> None:
        made.append(key.partition(" ")[0])
        keep(journal, key, *rest)

    monkeypatch.setattr(Journal, "keep", noted)
    compress(sources, out, resume=True)
    assert same(out, sources / "expected")
    order = ["sums", "behind", "sensitivity", "axes", "pass", "turn"]
    done = {"calibrate": 1, "gradients": 2, "sensitivity": 3, "prepare": 4, "search": 4, "drift": 5}[stage]
    assert not set(order[:done]) & set(made)


def test_a_finished_output_is_verified(sources: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(sources / "expected", tmp_path / "out"))
    before = (out / "model.safetensors").stat().st_mtime_ns
    told = json.loads((out / "trueaxis.json").read_text())
    again = json.loads(json.dumps(asdict(compress(sources, out, resume=True))))
    (note,) = again.pop("notes")
    assert "it was there already" in note
    assert told == {**again, "notes": []}
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(TrueaxisError, match="another target and another seed"):
        compress(sources, out, resume=True, bits=8.0, seed=1)
    damaged = bytearray((out / "model.safetensors").read_bytes())
    damaged[-1] ^= 1
    (out / "model.safetensors").write_bytes(damaged)
    with pytest.raises(TrueaxisError, match="or pass --overwrite to make"):
        compress(sources, out, resume=True)
    compress(sources, out, resume=True, overwrite=True)
    assert same(out, sources / "expected")


def test_the_journal_of_a_finished_output_goes(sources: Path, tmp_path: Path) -> None:
    """A run may be killed when its output has its name and the journal is still there."""
    out = Path(shutil.copytree(sources / "expected", tmp_path / "out"))
    inputs = json.loads((out / "trueaxis.json").read_text())["inputs"]
    for journal_inputs, stays in ((inputs, False), ({**inputs, "seed": 1}, True)):
        with pytest.raises(KeyboardInterrupt), begun(out, journal_inputs) as journal:
            journal.keep("a", {"x": np.arange(5)})
            raise KeyboardInterrupt
        compress(sources, out, resume=True)
        assert journal_folder(out).exists() == stays


def test_other_inputs_are_refused_by_name(sources: Path, tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == "prepare":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compress(sources, out, resume=True, progress=stop)
    other = save_tokens(tmp_path / "other.npy", 36)
    model = save_small_llama(tmp_path / "model", num_hidden_layers=2, initializer_range=0.2)
    for message, options in (
        ("recipe", {"recipe": "fast"}), ("target", {"bits": 8.0}), ("seed", {"seed": 1}),
        ("calibration text", {"calibration": [other]}),
    ):  # fmt: skip
        with pytest.raises(TrueaxisError, match=f"begun with another {message}; resume with the same"):
            compress(sources, out, resume=True, **options)
    with pytest.raises(TrueaxisError, match="another model;"):
        trueaxis.compress(model, out, bits=9, calibration=[sources / "tokens.npy"], resume=True)
    compress(sources, out, resume=True, threads=1)
    assert same(out, sources / "expected")


def test_a_statistics_file_of_the_run_itself_is_no_change(sources: Path, tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == "prepare":
            raise KeyboardInterrupt

    out, statistics = tmp_path / "out", tmp_path / "statistics.safetensors"
    with pytest.raises(KeyboardInterrupt):
        compress(sources, out, resume=True, progress=stop, statistics=statistics)
    assert statistics.is_file()
    for _ in range(2):
        compress(sources, out, resume=True, statistics=statistics)
    assert same(out, sources / "expected")


def test_damaged_entries_count_as_none(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), begun(tmp_path / "out", {"seed": 1}) as journal:
        journal.keep("a", {"x": np.arange(5)}, {"y": 0.1})
        journal.keep("b", {}, [1, "two"])
        journal.keep("b", {}, [3])
        raise KeyboardInterrupt
    folder = journal_folder(tmp_path / "out")
    assert len(list(folder.glob("*.entry"))) == 2
    (folder / "half.partial").write_bytes(b"torn")
    with begun(tmp_path / "out", {"seed": 1}) as journal:
        found = journal.recall("a")
        assert found is not None and found.facts == {"y": 0.1}
        np.testing.assert_array_equal(found.arrays["x"], np.arange(5))
        assert journal.recall("b").facts == [3]  # type: ignore[union-attr]
        assert journal.recall("c") is None
        assert not list(folder.glob("*.partial"))
        for file in folder.glob("*.entry"):
            file.write_bytes(file.read_bytes()[:-1])
        again = Journal(folder, {})
        assert again.recall("a") is None
        again.keep("a", {"x": np.arange(2)})
        assert again.recall("a").arrays["x"].tolist() == [0, 1]  # type: ignore[union-attr]
    assert not folder.exists()


def test_entries_without_inputs_are_removed(tmp_path: Path) -> None:
    """A journal may lose its inputs first as it is being removed."""
    with pytest.raises(KeyboardInterrupt), begun(tmp_path / "out", {"model": "one"}) as journal:
        journal.keep("a", {"x": np.arange(5)})
        raise KeyboardInterrupt
    (journal_folder(tmp_path / "out") / "inputs.json").unlink()
    with begun(tmp_path / "out", {"model": "another"}) as journal:
        assert journal.recall("a") is None
        assert not list(journal_folder(tmp_path / "out").glob("*.entry"))


def test_what_is_recalled_lies_in_scratch(tmp_path: Path) -> None:
    scratch, kept = Scratch(tmp_path, 0), np.random.default_rng(0).normal(size=(300, 300))
    with begun(tmp_path / "out", {}, scratch) as journal:
        journal.keep("a", {"x": kept})
        found = journal.recall("a")
        assert found is not None and scratch.spilled_bytes == kept.nbytes
        np.testing.assert_array_equal(found.arrays["x"], kept)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with begun(tmp_path / "out", {}) as journal:
        assert journal.folder is not None
        with open(journal.folder / "lock") as other, pytest.raises(OSError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(TrueaxisError, match="another process is at work"), begun(tmp_path / "out", {}):
            raise AssertionError("not reached")
    (tmp_path / "elsewhere").mkdir()
    journal_folder(tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TrueaxisError, match="symbolic link"), begun(tmp_path / "out", {}):
        raise AssertionError("not reached")
