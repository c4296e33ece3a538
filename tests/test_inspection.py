"""Inspection: bytes by purpose add up, storage is told as it is, and the report is optional."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import trueaxis
from trueaxis.cli import main
from trueaxis.model.checkpoint import Checkpoint


@pytest.fixture(scope="module")
def tied(tied_llama: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inspection") / "out"
    trueaxis.compress(tied_llama, out, bits=6, calibration=[tokens], recipe="gptq")
    return out


def test_spent_bytes_add_up_to_the_rate(tied: Path, tied_llama: Path) -> None:
    found = trueaxis.inspect(tied)
    growth = (tied / "config.json").stat().st_size - (tied_llama / "config.json").stat().st_size
    on_disk = sum(file.stat().st_size for file in tied.glob("*.safetensors*")) + growth
    assert found["file_bytes"] == on_disk == sum(found["spent_bytes"].values())
    assert all(size > 0 for size in found["spent_bytes"].values())
    assert found["bits_per_param"] == on_disk * 8 / found["parameters"]
    assert found["parameters"] == Checkpoint.open(tied_llama).parameters


def test_exact_bytes_are_the_norms(tied: Path, tied_llama: Path) -> None:
    checkpoint = Checkpoint.open(tied_llama)
    found = trueaxis.inspect(tied)
    exact = [row for row in found["tensors"] if row["storage"] == "exact"]
    assert {row["name"] for row in exact} == {name for name in checkpoint.entries if "norm" in name}
    raw = sum(4 * row["shape"][0] + 1 for row in exact)  # as planes that are not coded
    assert 0 < found["spent_bytes"]["exact"] <= raw


def test_rows_describe_every_tensor(tied: Path) -> None:
    found = trueaxis.inspect(tied)
    rows = {row["name"]: row for row in found["tensors"]}
    embedding = rows["model.embed_tokens.weight"]
    assert (embedding["storage"], embedding["shape"], embedding["dtype"]) == ("quantized", [128, 64], "F32")
    assert all(row["shared_streams"] == [0] for row in rows.values() if row["storage"] == "quantized")
    assert found["recipe"]["stages"]["quantize"]["type"] == "gptq"
    assert (found["format_version"], found["shards"]) == (1, 1)


def test_report_is_what_compression_left_or_nothing(tied: Path, tmp_path: Path) -> None:
    found = trueaxis.inspect(tied)
    assert found["report"] == json.loads((tied / "trueaxis.json").read_text())
    copy = tmp_path / "copy"
    shutil.copytree(tied, copy)
    for text in (None, "{", "[]"):
        if text is None:
            (copy / "trueaxis.json").unlink()
        else:
            (copy / "trueaxis.json").write_text(text)
        assert trueaxis.inspect(copy) == {**found, "report": None}


def test_damage_is_refused(tied: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tied, copy)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(trueaxis.FormatError):
        trueaxis.inspect(copy)


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_command_draws(name: str, tied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib (trueaxis[all])")
    assert main(["inspect", str(tied), "--plot", str(tmp_path / name)]) == 0
    begins = (tmp_path / name).read_bytes()[:4]
    assert begins == {"plot.png": b"\x89PNG", "plot.svg": b"<?xm"}[name]
    copy = tmp_path / "copy"
    shutil.copytree(tied, copy)
    (copy / "trueaxis.json").unlink()
    capsys.readouterr()
    assert main(["inspect", str(copy), "--plot", str(tmp_path / "other.png")]) == 1
    assert "trueaxis.json, which is missing" in capsys.readouterr().err
    assert main(["inspect", str(tied), "--plot", str(tmp_path / "other.pdf")]) == 1
    assert "drawn as .png or .svg" in capsys.readouterr().err
