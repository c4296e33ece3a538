"""Sweep: rows are what separate calls give, statistics are measured once, the plot is a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import trueaxis
from trueaxis.cli import main
from trueaxis.types import CalibrationError, TrueaxisError


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "unseen.npy"
    np.save(path, np.random.default_rng(1).integers(0, 128, (12, 80)))
    return path


def test_rows_are_what_compress_and_evaluate_give(tiny_llama: Path, tokens: Path, unseen: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    found = trueaxis.sweep(
        tiny_llama, bits=[6, 5], calibration=[tokens], evaluation=[unseen], output=tmp_path / "kept", recipe="identity",
        progress=lambda stage, *_: stages.append(stage),
    )  # fmt: skip
    assert [row.bits for row in found.rows] == [5, 6] and found.tokens == 12 * 79
    assert stages.index("search") > len(stages) - 1 - stages[::-1].index("calibrate")
    for row in found.rows:
        out = tmp_path / f"{row.bits:g}"
        report = trueaxis.compress(tiny_llama, out, bits=row.bits, calibration=[tokens], recipe="identity")
        kept = tmp_path / "kept" / f"{row.bits:g}bits"
        assert (kept / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
        assert (row.file_bytes, row.bits_per_param) == (report.file_bytes, report.bits_per_param)
        alone = trueaxis.evaluate(out, tokens=unseen, reference=tiny_llama)
        assert (row.kl_nats, row.kl_interval, row.perplexity) == (alone.kl_nats, alone.kl_interval, alone.perplexity)
        assert row.seconds > 0
    assert found.rows[1].kl_nats < found.rows[0].kl_nats


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_command_prints_a_table_and_draws(
    name: str, tiny_llama: Path, compressed_llama: Path, unseen: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pytest.importorskip("matplotlib", reason="plots need matplotlib (trueaxis[all])")
    arguments = ["sweep", str(tiny_llama), "--bits", "5,6", "--evaluation", str(unseen)]
    arguments += ["--statistics", str(compressed_llama.parent / "statistics.safetensors"), "--recipe", "rtn"]
    assert main([*arguments, "--plot", str(tmp_path / name)]) == 0
    text = capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 2
    for row in found["rows"]:
        assert f"{row['file_bytes']:,}" in text and f"{row['kl_nats']:.5f} nats per token" in text
    begins = (tmp_path / name).read_bytes()[:4]
    assert begins == {"plot.png": b"\x89PNG", "plot.svg": b"<?xm"}[name]
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_bad_input_is_refused_before_the_work(
    tiny_llama: Path, tokens: Path, unseen: Path, compressed_llama: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(error: type[Exception], message: str, **changes: object) -> None:
        arguments = {"bits": [5.0], "evaluation": [unseen], "calibration": [tokens], **changes}
        with pytest.raises(error, match=message):
            trueaxis.sweep(tiny_llama, **arguments)

    refuse(TrueaxisError, "bits: expected positive numbers", bits=[])
    refuse(TrueaxisError, "bits: expected positive numbers", bits=[3.0, -1.0])
    refuse(TrueaxisError, r"plots are drawn as \.png or \.svg", plot=tmp_path / "plot.gif")
    refuse(TrueaxisError, r"plot.png: .* is no directory", plot=tmp_path / "absent" / "plot.png")
    refuse(CalibrationError, "of the evaluation text was calibrated on", evaluation=[tokens])
    (tmp_path / "5bits").mkdir()
    (tmp_path / "5bits" / "mine").touch()
    refuse(TrueaxisError, "5bits: output is not empty", output=tmp_path)
    monkeypatch.setattr(sys.modules["trueaxis.plot"], "find_spec", lambda name: None)
    refuse(TrueaxisError, r"install it with: pip install 'trueaxis\[all\]'", plot=tmp_path / "plot.png")
