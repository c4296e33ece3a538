"""Damaged outputs of a real run: `verify` and `load` refuse them by name; so do configurations that do not fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trueaxis
from checkpoints import save_small_llama, save_tokens
from forge import dismantle, forge, memory_limit
from trueaxis import assemble
from trueaxis.cli import main
from trueaxis.container import CONFIG, INDEX, Container, Entry, pack_shards, shard_names
from trueaxis.runtime.load import verify
from trueaxis.types import FormatError

SHARD = "model.safetensors"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compressed Llama of one block."""
    folder = tmp_path_factory.mktemp("small")
    tokens = save_tokens(folder / "tokens.npy", 37)
    trueaxis.compress(save_small_llama(folder / "model"), folder / "out", bits=9, calibration=[tokens])
    return folder / "out"


@pytest.fixture
def copied(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "copy"))


def refusal(path: Path, load: bool = True) -> str:
    """What `verify` says; `load` has to refuse too."""
    if load:
        with pytest.raises(FormatError):
            trueaxis.load(path)
    with pytest.raises(FormatError) as caught:
        verify(path)
    return str(caught.value)


def test_truncation_is_refused(copied: Path) -> None:
    """Every length near the start, the end and the borders of tensors, and a sample between, of every file."""
    container = Container(copied)
    size = (copied / SHARD).stat().st_size
    ends = size - np.cumsum([info.length for info in reversed(container.tensors.values())])
    borders = [border + near for border in [0, size, *ends.tolist()] for near in range(-20, 21)]
    lengths = {*borders, *np.random.default_rng(0).integers(0, size, 500).tolist()}
    for file in (SHARD, CONFIG):
        data = (copied / file).read_bytes()
        for length in sorted(lengths):
            if not 0 <= length < len(data.rstrip()):
                continue
            (copied / file).write_bytes(data[:length])
            assert file in refusal(copied, load=length % 50 == 0)
        (copied / file).write_bytes(data)
    verify(copied)


def test_flipped_bits_are_refused_by_name(copied: Path) -> None:
    """2,000 random bits of the shard: the message names the tensor or the header."""
    data = (copied / SHARD).read_bytes()
    container = Container(copied)
    starts, names = [], list(container.tensors)
    start = len(data) - sum(info.length for info in container.tensors.values())
    for info in container.tensors.values():
        starts.append(start)
        start += info.length
    for number, bit in enumerate(np.random.default_rng(1).integers(0, 8 * len(data), 2000).tolist()):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (copied / SHARD).write_bytes(damaged)
        message = refusal(copied, load=number % 20 == 0)
        owner = np.searchsorted(starts, bit // 8, side="right") - 1
        assert (names[owner] if owner >= 0 else "header" if bit // 8 < 112 else "model") in message
    (copied / SHARD).write_bytes(data)
    verify(copied)


def test_flipped_bits_of_config_are_refused(copied: Path) -> None:
    """A bit of every byte, and all bits of the e in 1e-06: only that flip to E leaves the content equal and passes."""
    data = (copied / CONFIG).read_bytes()
    exponent = data.index(b"1e-06") + 1
    spread = np.random.default_rng(2).integers(0, 8, len(data)) + 8 * np.arange(len(data))
    passed = 0
    for bit in sorted({*spread.tolist(), *range(8 * exponent, 8 * exponent + 8)}):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (copied / CONFIG).write_bytes(damaged)
        try:
            Container(copied)
        except FormatError as error:
            assert CONFIG in str(error)
        else:
            assert json.loads(damaged) == json.loads(data)
            passed += 1
    assert passed == 1


def test_exit_code_and_name(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(copied), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] > 0
    data = bytearray((copied / SHARD).read_bytes())
    data[-1] ^= 1
    (copied / SHARD).write_bytes(data)
    last = list(Container(copied).tensors)[-1]
    for command in (["verify", str(copied)], ["unpack", str(copied), str(copied.parent / "plain")]):
        assert main(command) == 1
        captured = capsys.readouterr()
        assert re.fullmatch(rf"trueaxis: .*{re.escape(last)}.*\n", captured.err)
        assert captured.out == ""
    assert main(["verify", str(copied), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["error"] == "FormatError"
    assert last in found["message"]
    assert not (copied.parent / "plain").exists()
    assert sorted(file.name for file in copied.parent.iterdir()) == ["copy"]


def test_load_checks_what_it_reads(copied: Path) -> None:
    """Every record is covered by its CRC, also without `verify`."""
    data = (copied / SHARD).read_bytes()
    container = Container(copied)
    position = len(data) - sum(info.length for info in container.tensors.values())
    for name, info in container.tensors.items():
        damaged = bytearray(data)
        damaged[position + info.length // 2] ^= 16
        (copied / SHARD).write_bytes(damaged)
        with pytest.raises(FormatError, match=re.escape(name)):
            trueaxis.load(copied)
        position += info.length


def test_sharded_output_is_on_target_and_loads(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(assemble, "SHARD_BYTES", 60)
    model, tokens = small.parent / "model", small.parent / "tokens.npy"
    report = trueaxis.compress(model, tmp_path / "out", bits=10, calibration=[tokens])
    count = len(list((tmp_path / "out").glob("*.safetensors")))
    assert count > 2
    assert all((tmp_path / "out" / name).is_file() for name in shard_names(count))
    assert (tmp_path / "out" / INDEX).is_file()
    assert main(["verify", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file_bytes"] == report.file_bytes
    found = trueaxis.inspect(tmp_path / "out")
    assert found["shards"] == count
    assert found["file_bytes"] == report.file_bytes == sum(found["spent_bytes"].values())
    assert trueaxis.load(tmp_path / "out").num_parameters() == report.parameters


def test_same_records_in_several_shards_load_to_the_same(copied: Path) -> None:
    expected = trueaxis.load(copied).state_dict()
    parts, infos = dismantle(copied), Container(copied).tensors
    entries = [Entry(name, infos[name].shape, infos[name].dtype, tuple(parts.records[name])) for name in infos]
    (copied / SHARD).unlink()
    for name, data in pack_shards(parts.header, parts.model_records, entries, 1).items():
        (copied / name).write_bytes(b"".join(data))
    verify(copied)
    assert len(list(copied.glob("*.safetensors"))) == len(infos)
    loaded = trueaxis.load(copied).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["AutoConfig"]}, "no models of transformers"),
        ({"architectures": ["__doc__"]}, "no models of transformers"),
        ({"architectures": [["x"]]}, "no models of transformers"),
        ({"architectures": "LlamaForCausalLM"}, "no models of transformers"),
        ({"architectures": None}, "no models of transformers"),
        ({"model_type": "nonsense"}, "cannot build"),
        ({"model_type": ["llama"]}, "cannot build"),
        ({"num_hidden_layers": 10**12}, "layers, but the file holds"),
        ({"num_hidden_layers": 2}, r"model\.layers\.1\..*file holds none"),
        ({"num_hidden_layers": "1"}, "cannot build"),
        ({"hidden_size": 1 << 40}, "config.json"),
        ({"hidden_size": 32}, r"config\.json says \[37, 32\], the file holds \[37, 16\]"),
        ({"vocab_size": 1 << 50}, "config.json"),
        ({"intermediate_size": 24}, r"config\.json says \[24, 16\]"),
        ({"hidden_act": "nonsense"}, "cannot build"),
        ({"num_attention_heads": 0}, "cannot build"),
    ],
)
def test_config_that_does_not_fit_the_tensors(
    small: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    parts = dismantle(small)
    parts.config |= changes
    path = forge(tmp_path / "forged", parts)
    with memory_limit(200 << 20), pytest.raises(FormatError, match=message):
        trueaxis.load(path)


def test_report_is_no_part_of_the_file(copied: Path) -> None:
    report = json.loads((copied / "trueaxis.json").read_text())
    assert trueaxis.inspect(copied)["report"] == report
    for text in ("", "[]", "{}", '{"tensors": 3}', '{"tensors": [{"name": []}]}', "[" * 100_000):
        (copied / "trueaxis.json").write_text(text)
        assert trueaxis.inspect(copied)["report"] is None
        assert main(["inspect", str(copied)]) == 0


def test_dtype_of_the_weights(small: Path) -> None:
    own = trueaxis.load(small)
    assert {value.dtype for value in own.state_dict().values()} == {torch.bfloat16}
    wide = trueaxis.load(small, dtype=torch.float32)
    assert {value.dtype for value in wide.state_dict().values()} == {torch.float32}
