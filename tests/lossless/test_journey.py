"""Lossless directories: every bit through load, unpack and transformers, alone, beside a base, or a refusal."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import trueaxis
import trueaxis.hf
from forge import dismantle, forge
from oracle import Oracle
from trueaxis.cli import main
from trueaxis.record import Record, RecordType
from trueaxis.runtime.decode import Decoder
from trueaxis.types import FormatError, TrueaxisError


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same_bits(one: Path, other: Path) -> bool:
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and bits_of(left[name]) == bits_of(right[name])
        for name in left
    )


@pytest.fixture(scope="module")
def odd(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tensors that its class does not know: other dtypes, NaN with payloads, infinities, signed zeros."""
    path = tmp_path_factory.mktemp("odd") / "model"
    shutil.copytree(tiny_llama, path)
    tensors = load_file(path / "model.safetensors")
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    tensors |= {
        "extra.every": patterns.view(torch.bfloat16).reshape(256, 256),
        "extra.half": patterns.view(torch.float16).clone(),
        "extra.few": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
        "extra.double": torch.linspace(-1, 1, 50, dtype=torch.float64),
        "extra.numbers": torch.arange(-30, 30),
        "extra.mask": torch.arange(40) % 3 == 0,
        "extra.eighth": torch.randn(5, 5).to(torch.float8_e4m3fn),
        "extra.scalar": torch.tensor(3, dtype=torch.uint8),
        "extra.empty": torch.zeros(0, 4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(8),
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def tuned(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` moved a little, in a directory next to a copy of it named base."""
    folder = tmp_path_factory.mktemp("tuned")
    shutil.copytree(tiny_llama, folder / "base")
    shutil.copytree(tiny_llama, folder / "model")
    tensors = load_file(folder / "model" / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    moved = {
        name: (value.float() + 1e-3 * torch.randn(value.shape, generator=generator)).to(value.dtype)
        for name, value in tensors.items()
    }
    save_file(moved, folder / "model" / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_every_bit_of_every_dtype(odd: Path, tmp_path: Path) -> None:
    report = trueaxis.compress_lossless(odd, tmp_path / "out")
    assert trueaxis.unpack(tmp_path / "out", tmp_path / "plain") == tmp_path / "plain"
    assert same_bits(odd, tmp_path / "plain")
    assert trueaxis.verify(tmp_path / "out")["tensors"] == len(report.tensors)
    found = trueaxis.inspect(tmp_path / "out")
    assert found["file_bytes"] == report.file_bytes
    assert {row["storage"] for row in found["tensors"]} == {"exact"}
    for name, bits in Oracle(tmp_path / "out").tensors().items():
        assert bits == bits_of(Decoder(tmp_path / "out").tensor(name)), name


def test_loads_as_the_original_does(tiny_llama: Path, tmp_path: Path) -> None:
    trueaxis.compress_lossless(tiny_llama, tmp_path / "out")
    expected = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    for model in (trueaxis.load(tmp_path / "out"), AutoModelForCausalLM.from_pretrained(tmp_path / "out")):
        found = model.state_dict()
        assert found.keys() == expected.keys()
        assert all(bits_of(found[name]) == bits_of(expected[name]) for name in expected)
    ints = trueaxis.load(tmp_path / "out", dtype=torch.float32)
    assert next(ints.parameters()).dtype == torch.float32


def test_tied_tensors_are_stored_once(tied_llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tied_llama)
    shutil.copytree(tied_llama, tmp_path / "model")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    trueaxis.compress_lossless(tmp_path / "model", tmp_path / "out")
    storage = {row["name"]: row["storage"] for row in trueaxis.inspect(tmp_path / "out")["tensors"]}
    assert storage["lm_head.weight"] == "tied to model.embed_tokens.weight"
    trueaxis.unpack(tmp_path / "out", tmp_path / "plain")
    assert same_bits(tmp_path / "model", tmp_path / "plain")


def test_beside_a_base(tuned: Path, tmp_path: Path) -> None:
    out = tuned / "out"
    report = trueaxis.compress_lossless(tuned / "model", out, base=tuned / "base", overwrite=True)
    assert report.file_bytes < 0.7 * trueaxis.compress_lossless(tuned / "model", tmp_path / "alone").file_bytes
    trueaxis.verify(out)
    trueaxis.unpack(out, tmp_path / "plain")
    assert same_bits(tuned / "model", tmp_path / "plain")
    assert "beside base" in {row["storage"] for row in trueaxis.inspect(out)["tensors"]}
    expected = AutoModelForCausalLM.from_pretrained(tuned / "model").state_dict()
    for model in (trueaxis.load(out), AutoModelForCausalLM.from_pretrained(out)):
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_base_elsewhere_missing_or_another(tuned: Path, tiny_llama: Path, tmp_path: Path) -> None:
    trueaxis.compress_lossless(tuned / "model", tmp_path / "out", base=tuned / "base")
    with pytest.raises(TrueaxisError, match=r"beside the base 'base'.*no directory.*--base DIR"):
        trueaxis.verify(tmp_path / "out")
    trueaxis.verify(tmp_path / "out", base=tiny_llama)
    trueaxis.compress_lossless(tiny_llama, tmp_path / "small")
    trueaxis.verify(tmp_path / "out", base=tmp_path / "small")
    with pytest.raises(FormatError, match="holds other values"):
        trueaxis.verify(tmp_path / "out", base=tuned / "model")
    with pytest.raises(TrueaxisError, match="must not go beside a base itself"):
        trueaxis.verify(tmp_path / "out", base=tmp_path / "out")
    shutil.copytree(tiny_llama, tmp_path / "base")
    trueaxis.verify(tmp_path / "out")
    tensors = {name: value.float() for name, value in load_file(tmp_path / "base" / "model.safetensors").items()}
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    with pytest.raises(FormatError, match=r"expected BF16 .* in the base .*, found .*F32"):
        trueaxis.verify(tmp_path / "out")


def test_bytes_do_not_depend_on_threads(tiny_llama: Path, tmp_path: Path) -> None:
    for threads in (1, 3):
        trueaxis.compress_lossless(tiny_llama, tmp_path / str(threads), threads=threads)
    digests = {hashlib.sha256((tmp_path / n / "model.safetensors").read_bytes()).digest() for n in "13"}
    assert len(digests) == 1


def test_a_base_that_does_not_help_is_told(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned / "base", tmp_path / "renamed")
    tensors = load_file(tmp_path / "renamed" / "model.safetensors")
    save_file({f"other.{name}": value for name, value in tensors.items()}, tmp_path / "renamed" / "model.safetensors")
    report = trueaxis.compress_lossless(tuned / "model", tmp_path / "out", base=tmp_path / "renamed")
    assert "no tensor is shorter beside the base renamed" in report.notes[0]


def test_command_line(tuned: Path, tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, base, out = (str(path) for path in (tuned / "model", tuned / "base", tmp_path / "out"))
    assert main(["compress", model, out, "--lossless", "--base", base]) == 0
    assert "decoded and compared" in capsys.readouterr().out
    assert main(["verify", out, "--base", base]) == 0
    assert main(["eval", out, "--base", base, "--tokens", str(tokens)]) == 0
    assert main(["unpack", out, str(tmp_path / "plain"), "--base", base]) == 0
    assert same_bits(tuned / "model", tmp_path / "plain")
    capsys.readouterr()
    assert main(["compress", model, out, "--bits", "4", "--base", base]) == 1
    assert "--base goes with --lossless" in capsys.readouterr().err
    assert main(["compress", model, out, "--lossless", "--calibration", base]) == 1
    assert "needs no text" in capsys.readouterr().err


def test_base_records_are_only_where_they_belong(tuned: Path, tmp_path: Path) -> None:
    trueaxis.compress_lossless(tuned / "model", tmp_path / "out", base=tuned / "base")
    parts = dismantle(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    hint, planes = parts.records[name]
    for records, message in (
        ([planes], "a base record belongs before"),
        ([hint, Record(RecordType.PLANES, b"\3\0" + planes.payload[2:])], r"base record belongs|damaged"),
        ([Record(RecordType.BASE, b"x"), planes], "holds other values"),
        ([hint], "out of place"),
        ([hint, hint, planes], "out of place"),
    ):
        changed = parts.copy()
        changed.records[name] = list(records)
        with pytest.raises(FormatError, match=message):
            trueaxis.verify(forge(tmp_path / "forged", changed), base=tuned / "base")
    changed = parts.copy()
    del changed.header["base"]
    with pytest.raises(FormatError, match="the header does not name"):
        trueaxis.verify(forge(tmp_path / "forged", changed))
    for bad in ("../base", "", 5, ".."):
        changed.overrides["base"] = bad
        with pytest.raises(FormatError, match="'base' is missing or out of range"):
            trueaxis.verify(forge(tmp_path / "forged", changed))


def test_the_report_is_of_real_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    report = trueaxis.compress_lossless(tiny_llama, tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "trueaxis.json").read_text())
    growth = (tmp_path / "out" / "config.json").stat().st_size - (tiny_llama / "config.json").stat().st_size
    assert report.file_bytes == (tmp_path / "out" / "model.safetensors").stat().st_size + growth
    assert saved["bits_per_param"] == report.bits_per_param
    assert all(np.isclose(row.relative_distortion, 0) for row in report.tensors)
