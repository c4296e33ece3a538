"""Comparison: rows are what separate calls give; a peer is a process, and one that is missing or fails says why."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import trueaxis
from trueaxis.cli import main
from trueaxis.comparison import peer as peers
from trueaxis.comparison import run as runs
from trueaxis.comparison.inputs import calibration_inputs
from trueaxis.comparison.peer import PEERS, Original, Peer
from trueaxis.comparison.table import render
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.types import CalibrationError, TrueaxisError

HALVES = '''
"""A peer that rounds every linear layer to halves of its largest weight, and fails where it is told to."""
import json, sys
from dense import quantize_linears

def quantizer(setting):
    def quantize(weight):
        if setting == "fails":
            raise RuntimeError("out of ideas")
        if weight.shape[0] > weight.shape[1]:
            raise ValueError("taller than wide")
        step = weight.abs().max() / 2
        codes = (weight / step).round()
        return {"codes": codes.char(), "step": step.reshape(1)}, lambda: codes * step
    return quantize

quantize_linears(quantizer)
'''


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    """A peer whose package is the standard library's `json`, so that it is installed everywhere."""
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "dense.py").write_text((peers.SCRIPTS / "dense.py").read_text())
    (scripts / "with_json.py").write_text(HALVES)
    monkeypatch.setattr(peers, "SCRIPTS", scripts)
    monkeypatch.setenv(peers.ENVIRONMENTS, str(tmp_path / "none"))
    found = Peer("halves", "json", ("works", "fails"))
    monkeypatch.setitem(PEERS, "halves", found)
    monkeypatch.setitem(PEERS, "elsewhere", Peer("elsewhere", "no_such_package", ("any",)))
    (scripts / "with_no_such_package.py").write_text("")
    return found


def test_recipes_and_peers_through_one_evaluation(
    halves: Peer, tiny_llama: Path, compressed_llama: Path, unseen: Path
) -> None:
    statistics = compressed_llama.parent / "statistics.safetensors"
    found = trueaxis.compare(
        tiny_llama, bits=[5], tokens=unseen, recipes=["rtn"], peers=["halves", "elsewhere"], statistics=statistics
    )
    assert [(row.name, row.setting) for row in found.rows] == [
        ("rtn", "5 bits"), ("halves", "works"), ("default", "as halves works"),
    ]  # fmt: skip
    own, peer, beside = found.rows
    assert found.statistics_seconds is None  # a file had them
    assert own.bits_per_param == own.file_bytes * 8 / found.parameters <= 5
    assert 0.99 * peer.file_bytes < beside.file_bytes <= peer.file_bytes
    assert beside.kl_nats < peer.kl_nats
    assert peer.seconds > 0 and peer.load_seconds > 0 and peer.peak_memory_bytes > 10**7
    assert peer.fallbacks and all("taller than wide" in reason for reason in peer.fallbacks)
    assert "out of ideas" in found.absent["halves fails"]
    assert "not installed in" in found.absent["elsewhere"] and sys.executable in found.absent["elsewhere"]


def test_beside_a_lossless_peer_stands_a_lossless_file(
    halves: Peer, tiny_llama: Path, compressed_llama: Path, unseen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PEERS, "exact", replace(halves, name="exact", settings=("works",), beside="lossless"))
    forgotten: list[str] = []
    monkeypatch.setattr(runs, "forget_peak", lambda: forgotten.append("before"))
    statistics = compressed_llama.parent / "statistics.safetensors"
    peer, own = trueaxis.compare(
        tiny_llama, bits=[5], tokens=unseen, recipes=[], peers=["exact"], statistics=statistics
    ).rows
    assert (own.name, own.setting) == ("lossless", "as exact works")
    assert own.kl_nats == 0 < peer.kl_nats
    assert 10 < own.bits_per_param < 16 and own.limit_bits_per_param is not None
    assert own.load_seconds > 0
    assert forgotten == ["before"]  # its peak is its own


def test_command_prints_rows_and_what_is_absent(
    tiny_llama: Path, compressed_llama: Path, unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = compressed_llama.parent / "statistics.safetensors"
    arguments = ["compare", str(tiny_llama), "--bits", "4,5", "--tokens", str(unseen), "--recipes", "rtn"]
    arguments += ["--statistics", str(statistics), "--peers"]
    pytest.importorskip("matplotlib", reason="plots need matplotlib (trueaxis[all])")
    assert main([*arguments, "--plot", str(tmp_path / "plot.png")]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 2
    assert all(f"{row['file_bytes']:,}" in text and f"{row['kl_nats']:.5f}" in text for row in rows)


def test_bad_input_is_refused(tiny_llama: Path, tokens: Path, compressed_llama: Path, unseen: Path) -> None:
    statistics = compressed_llama.parent / "statistics.safetensors"

    def refuse(error: type[Exception], message: str, **changes: object) -> None:
        arguments = {"bits": [5.0], "tokens": unseen, "statistics": statistics, "peers": [], **changes}
        with pytest.raises(error, match=message):
            trueaxis.compare(tiny_llama, **arguments)

    refuse(TrueaxisError, r"wonder: no such peer; those known are hqq", peers=["wonder"])
    refuse(TrueaxisError, "neither a file nor one of", recipes=["wonder"])
    refuse(TrueaxisError, "either text files", text=["a.txt"])
    refuse(CalibrationError, "of the evaluation text was calibrated on", tokens=tokens)
    refuse(TrueaxisError, "bits: expected positive numbers", bits=[])


def test_a_peer_whose_inputs_cannot_be_made_is_absent_with_the_reason(
    tiny_llama: Path, compressed_llama: Path, unseen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TrueaxisError("no place for this tensor")

    monkeypatch.setitem(PEERS, "picky", Peer("picky", "json", ("any", "other"), refuse))
    statistics = compressed_llama.parent / "statistics.safetensors"
    found = trueaxis.compare(
        tiny_llama, bits=[5], tokens=unseen, recipes=["rtn"], peers=["picky"], statistics=statistics
    )
    assert found.absent == {"picky": "no place for this tensor"}


def test_peers_that_calibrate_get_the_text_itself(tiny_llama: Path, tokens: Path, unseen: Path, tmp_path: Path) -> None:
    prepared = cast(Any, SimpleNamespace(checkpoint=Checkpoint.open(tiny_llama)))
    calibration_inputs(Original(prepared, [tokens, tokens]), tmp_path)
    expected = np.load(tokens)
    assert np.array_equal(np.load(tmp_path / "calibration.npy"), np.concatenate([expected, expected]))
    with pytest.raises(CalibrationError, match=r"of one sequence length \(--calibration\), found none"):
        calibration_inputs(Original(prepared, []), tmp_path)
    with pytest.raises(CalibrationError, match="found several lengths"):
        calibration_inputs(Original(prepared, [tokens, unseen]), tmp_path)


def test_recipes_that_read_the_calibration_text_again(tiny_llama: Path, tokens: Path, unseen: Path) -> None:
    found = trueaxis.compare(
        tiny_llama, bits=[5], tokens=unseen, recipes=["tuned", "default"], peers=[], calibration=[tokens]
    )
    assert [row.name for row in found.rows] == ["tuned", "default"]
    assert not found.absent
    assert found.statistics_seconds is not None and found.statistics_seconds > 0
    assert f"{found.statistics_seconds:.1f} s of measuring" in render(found)
