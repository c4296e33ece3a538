"""Bad input to `compress`: the error names what is wrong, and nothing is left behind."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import trueaxis
from checkpoints import save_small_llama, save_tokens
from trueaxis.cli import main
from trueaxis.runtime.decode import Decoder
from trueaxis.types import CalibrationError, CheckpointError, TrueaxisError

WORST = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in one file and in shards, token ids, a statistics file."""
    folder = tmp_path_factory.mktemp("sources")
    save_small_llama(folder / "model")
    save_small_llama(folder / "sharded", shard_size="3KB")
    tokens = save_tokens(folder / "tokens.npy", 37)
    trueaxis.compress(
        folder / "model", folder / "out", bits=10, calibration=[tokens], statistics=folder / "statistics.safetensors"
    )
    return folder


@pytest.fixture
def model(sources: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sources / "model", tmp_path / "model"))


def refuse(model: Path, sources: Path, error: type[Exception], message: str, **options: Any) -> str:
    """Compression fails with this error and leaves the folder of the output as it was."""
    out = Path(options.pop("out", model.parent / "results" / "out"))
    before = listing(out.parent)
    given = {"bits": 10.0, "calibration": [sources / "tokens.npy"], **options}
    with pytest.raises(error, match=message) as caught:
        trueaxis.compress(model, out, **given)
    assert listing(out.parent) == before
    return str(caught.value)


def listing(folder: Path) -> list[tuple[Path, int]]:
    return sorted((file, file.lstat().st_mtime_ns) for file in [folder, *folder.rglob("*")] if file.exists())


def rewrite(model: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def test_shards_of_the_original_make_no_difference(sources: Path, tmp_path: Path) -> None:
    assert len(list((sources / "sharded").glob("*.safetensors"))) > 2
    report = trueaxis.compress(sources / "sharded", tmp_path / "out", bits=10, calibration=[sources / "tokens.npy"])
    assert report.bits_per_param <= 10
    assert trueaxis.verify(tmp_path / "out")["tensors"] == 12


def test_missing_shard(sources: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(sources / "sharded", tmp_path / "model"))
    shard = sorted(copy.glob("*.safetensors"))[1]
    shard.unlink()
    refuse(copy, sources, CheckpointError, f"{re.escape(shard.name)}.*missing")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_shard(sources: Path, tmp_path: Path, keep: int) -> None:
    copy = Path(shutil.copytree(sources / "sharded", tmp_path / "model"))
    shard = sorted(copy.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:keep])
    refuse(copy, sources, CheckpointError, f"{re.escape(shard.name)}.*truncated")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.float8_e4m3fn])
def test_wrong_dtype(model: Path, sources: Path, dtype: torch.dtype) -> None:
    rewrite(model, lambda tensors: tensors.update({WORST: tensors[WORST].to(dtype)}))
    refuse(model, sources, CheckpointError, re.escape(WORST))


@pytest.mark.parametrize("name", [WORST, "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("cached", [False, True])
def test_not_finite(model: Path, sources: Path, name: str, value: float, cached: bool) -> None:
    rewrite(model, lambda tensors: tensors[name].view(-1).__setitem__(3, value))
    options: dict[str, Any] = {"statistics": sources / "statistics.safetensors"} if cached else {}
    message = "another checkpoint" if cached and name != "model.norm.weight" else re.escape(name)
    refuse(model, sources, TrueaxisError, message, **options)


def test_missing_tensor_and_damaged_configuration(model: Path, sources: Path) -> None:
    rewrite(model, lambda tensors: tensors.pop(WORST))
    refuse(model, sources, CheckpointError, f"{re.escape(WORST)}.*lacks it")
    (model / "config.json").write_text("{")
    refuse(model, sources, CheckpointError, "config.json")
    refuse(sources / "nothing", sources, CheckpointError, "nothing", out=model.parent / "out")


def test_calibration_input(model: Path, sources: Path, tmp_path: Path) -> None:
    few = save_tokens(tmp_path / "few.npy", 37, sequences=2)
    refuse(
        model, sources, CalibrationError, r"too little calibration text: 64 tokens, at least 1024", calibration=[few]
    )
    large = save_tokens(tmp_path / "large.npy", 1000)
    refuse(model, sources, CalibrationError, "vocabulary", calibration=[large])
    np.save(tmp_path / "float.npy", np.zeros((40, 32)))
    refuse(model, sources, CalibrationError, r"float\.npy.*integer", calibration=[tmp_path / "float.npy"])
    (tmp_path / "cut.npy").write_bytes((sources / "tokens.npy").read_bytes()[:-1])
    refuse(model, sources, CalibrationError, r"cut\.npy", calibration=[tmp_path / "cut.npy"])
    (tmp_path / "text.txt").write_text("some text")
    refuse(model, sources, CalibrationError, "no tokenizer", calibration=[tmp_path / "text.txt"])
    refuse(model, sources, CalibrationError, r"absent\.npy", calibration=[tmp_path / "absent.npy"])
    absent = tmp_path / "absent.safetensors"
    refuse(model, sources, CalibrationError, "--calibration", calibration=[], statistics=absent)


def test_statistics_of_another_model(sources: Path, tmp_path: Path) -> None:
    other = save_small_llama(tmp_path / "other", initializer_range=0.2)
    statistics = sources / "statistics.safetensors"
    refuse(other, sources, CalibrationError, "another checkpoint.*calibrate again", statistics=statistics)
    (tmp_path / "cut.safetensors").write_bytes(statistics.read_bytes()[:-1])
    refuse(sources / "model", sources, CalibrationError, r"cut\.safetensors", statistics=tmp_path / "cut.safetensors",
           out=tmp_path / "out")  # fmt: skip
    unwritable = tmp_path / "no folder" / "statistics.safetensors"
    refuse(other, sources, CalibrationError, "cannot be written", statistics=unwritable)


@pytest.mark.parametrize("target", [{"size": 10}, {"bits": 0.5}])
def test_target_below_the_minimum_says_it(model: Path, sources: Path, tmp_path: Path, target: dict[str, Any]) -> None:
    statistics = sources / "statistics.safetensors"
    unset = {"bits": None} if "size" in target else {}
    message = refuse(model, sources, TrueaxisError, "about [0-9]+ bytes", statistics=statistics, **unset, **target)
    found = re.search(r"about ([0-9]+) bytes", message)
    assert found is not None
    minimum = int(found[1])
    assert minimum > 500
    report = trueaxis.compress(model, tmp_path / "out", size=int(minimum * 1.02), statistics=statistics)
    assert minimum * 0.97 <= report.file_bytes <= minimum * 1.02
    trueaxis.verify(tmp_path / "out")
    refuse(model, sources, TrueaxisError, "raise --bits or --size", statistics=statistics, bits=None,
           size=int(minimum * 0.9))  # fmt: skip


def test_target_above_what_the_tensors_can_use(model: Path, sources: Path, tmp_path: Path) -> None:
    """Steps end where indices would leave the coder's range; a note says so."""
    report = trueaxis.compress(model, tmp_path / "out", bits=1e30, statistics=sources / "statistics.safetensors")
    assert any("of the target" in note for note in report.notes)
    assert max(row.relative_distortion for row in report.tensors) < 1e-4  # bfloat16, as the original
    assert report.bits_per_param < 64


@pytest.mark.parametrize(
    "target", [{"bits": None}, {"bits": 3.0, "size": 10**6}, {"bits": 0.0}, {"bits": -1.0}, {"bits": float("nan")},
               {"bits": float("inf")}, {"bits": None, "size": 0}, {"bits": None, "size": -5}]
)  # fmt: skip
def test_target_that_is_none(model: Path, sources: Path, target: dict[str, Any]) -> None:
    refuse(model, sources, TrueaxisError, "bits|size", **target)


def test_unknown_recipe_lists_the_known(model: Path, sources: Path, tmp_path: Path) -> None:
    from trueaxis.recipe import NAMED

    message = refuse(model, sources, TrueaxisError, "nonsense", recipe="nonsense")
    assert all(name in message for name in NAMED)
    for text in ("{", "[]", '{"version": 1, "stages": {"align": {"type": "x"}}}', '{"unknown": 1}'):
        (tmp_path / "recipe.json").write_text(text)
        refuse(model, sources, TrueaxisError, r"recipe", recipe=tmp_path / "recipe.json")


def test_output_that_stands_there(model: Path, sources: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    (tmp_path / "file").write_text("x")
    refuse(model, sources, TrueaxisError, "full: output is not empty", out=tmp_path / "full")
    refuse(model, sources, TrueaxisError, "link: output is a symbolic link", out=tmp_path / "link", overwrite=True)
    refuse(model, sources, TrueaxisError, "file: output exists and is not", out=tmp_path / "file", overwrite=True)
    assert (tmp_path / "full" / "mine").read_text() == "x"


@pytest.mark.parametrize("stage", ["calibrate", "sensitivity", "prepare", "search"])
def test_interrupt_leaves_nothing(model: Path, sources: Path, stage: str) -> None:
    def progress(name: str, done: int, total: int) -> None:
        if name == stage and done == 1:
            raise KeyboardInterrupt

    out = model.parent / "results" / "out"
    statistics = model.parent / "results.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trueaxis.compress(model, out, bits=10, calibration=[sources / "tokens.npy"], progress=progress,
                          statistics=statistics)  # fmt: skip
    left = {"model"} if stage in ("calibrate", "sensitivity") else {"model", statistics.name}
    assert {file.name for file in model.parent.iterdir()} == left


@pytest.mark.parametrize("error", [KeyboardInterrupt, TrueaxisError("staged output is wrong")])
def test_failure_while_writing_leaves_nothing(
    model: Path, sources: Path, monkeypatch: pytest.MonkeyPatch, error: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(decoder: Decoder) -> None:
        assert any(decoder.container.path.iterdir())
        raise error

    monkeypatch.setattr(sys.modules["trueaxis.preparation"], "check_bytes", fail)
    arguments = ["compress", str(model), str(model.parent / "results" / "out"), "--bits", "10"]
    arguments += ["--statistics", str(sources / "statistics.safetensors")]
    assert main(arguments) == (1 if isinstance(error, TrueaxisError) else 130)
    assert re.search("interrupted; nothing was written in part|staged output is wrong", capsys.readouterr().err)
    assert [file.name for file in model.parent.iterdir()] == ["model"]


def test_the_original_is_never_replaced(model: Path, sources: Path, tmp_path: Path) -> None:
    """Whatever --overwrite says: the output is neither the model, nor a folder around it, nor one around the text."""
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    for out in (model, model.parent):
        with pytest.raises(TrueaxisError, match="output would replace"):
            trueaxis.compress(model, out, bits=10, calibration=[sources / "tokens.npy"], overwrite=True)
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before
    (tmp_path / "texts").mkdir()
    tokens = save_tokens(tmp_path / "texts" / "tokens.npy", 37)
    with pytest.raises(TrueaxisError, match="output would replace"):
        trueaxis.compress(model, tmp_path / "texts", bits=10, calibration=[tokens], overwrite=True)
    trueaxis.compress(model, tmp_path / "out", bits=10, calibration=[tokens])
    with pytest.raises(TrueaxisError, match="output would replace"):
        trueaxis.unpack(tmp_path / "out", tmp_path / "out", overwrite=True)
    trueaxis.verify(tmp_path / "out")
    assert tokens.is_file()
