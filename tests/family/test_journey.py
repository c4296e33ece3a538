"""Families: members load through the root's base, are closer than at equal bytes alone, and do not touch each other."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import trueaxis
import trueaxis.hf
from forge import dismantle, forge
from trueaxis.cli import main
from trueaxis.family.adapter import dearer_than_adapter
from trueaxis.recipe import tuned
from trueaxis.record import Record, RecordType
from trueaxis.report.facts import read_facts
from trueaxis.runtime.decode import Decoder
from trueaxis.types import CheckpointError, FormatError, TrueaxisError

TARGET = "model.layers.0.self_attn.q_proj"


def moved(base: Path, out: Path, seed: int, share: float = 0.02) -> Path:
    """The base with noise on everything."""
    shutil.copytree(base, out)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (value.float() + share * value.float().std() * torch.randn(value.shape, generator=generator)).to(
            value.dtype
        )
        for name, value in load_file(base / "model.safetensors").items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def save_adapter(path: Path, rows: int, columns: int, **changes: object) -> Path:
    """A LoRA adapter of rank 2 on one projection."""
    generator = torch.Generator().manual_seed(9)
    path.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"], **changes}
    (path / "adapter_config.json").write_text(json.dumps(config))
    factors = {"A": torch.randn(2, columns, generator=generator), "B": 0.1 * torch.randn(rows, 2, generator=generator)}
    save_file(
        {f"base_model.model.{TARGET}.lora_{side}.weight": value for side, value in factors.items()},
        path / "adapter_model.safetensors",
    )
    return path


def digests(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def family(tiny_llama: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` and a member named one at 3 bits; the originals lie beside in base and one."""
    folder = tmp_path_factory.mktemp("family")
    shutil.copytree(tiny_llama, folder / "base")
    moved(tiny_llama, folder / "one", 1)
    trueaxis.compress_family(folder / "base", [folder / "one"], folder / "out", bits_delta=3, calibration=[tokens])
    return folder


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return sum(float((one[name].float() - other[name].float()).square().sum()) for name in one)


def test_a_member_loads_and_lies_nearer_than_alone(family: Path, tokens: Path, tmp_path: Path) -> None:
    original = AutoModelForCausalLM.from_pretrained(family / "one").state_dict()
    found = trueaxis.load(family / "out", member="one").state_dict()
    auto = AutoModelForCausalLM.from_pretrained(family / "out" / "members" / "one").state_dict()
    assert all(torch.equal(auto[name], found[name]) for name in found)
    trueaxis.compress(family / "one", tmp_path / "alone", bits=4, calibration=[tokens])
    alone = trueaxis.load(tmp_path / "alone").state_dict()
    base = AutoModelForCausalLM.from_pretrained(family / "base").state_dict()
    assert distance(found, original) < 0.5 * distance(base, original)
    assert distance(found, original) < 0.3 * distance(alone, original)
    assert all(torch.equal(found[name], original[name]) for name in found if "norm" in name)


def test_the_base_comes_back_bit_for_bit(family: Path, tmp_path: Path) -> None:
    trueaxis.unpack(family / "out" / "base", tmp_path / "base")
    left, right = (load_file(path / "model.safetensors") for path in (tmp_path / "base", family / "base"))
    assert all(torch.equal(left[name].view(torch.uint8), right[name].view(torch.uint8)) for name in right)


def test_rates_are_real_and_reports_are_of_whole_weights(family: Path) -> None:
    found = trueaxis.inspect(family / "out")
    assert list(found["members"]) == ["one"]
    one = found["members"]["one"]
    assert one["bits_per_param"] <= 3
    listed = (family / "out" / "family.json").stat().st_size
    assert found["file_bytes"] == found["base"]["file_bytes"] + one["file_bytes"] + listed
    rows = {row["name"]: row for row in one["report"]["tensors"]}
    assert 0 < rows[f"{TARGET}.weight"]["relative_distortion"] < 0.02**2
    storage = {row["name"]: row["storage"] for row in one["tensors"]}
    assert storage[f"{TARGET}.weight"] == "quantized beside base"
    assert set(storage.values()) <= {"quantized beside base", "beside base", "exact"}


def test_verify_reads_all_parts(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "out", tmp_path / "out")
    assert trueaxis.verify(tmp_path / "out")["tensors"] == 2 * len(Decoder(family / "out" / "base").names())
    file = tmp_path / "out" / "members" / "one" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(FormatError):
        trueaxis.verify(tmp_path / "out")


def test_adding_members_touches_no_other(family: Path, tokens: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "out", tmp_path / "out")
    before = digests(tmp_path / "out")
    other = moved(family / "base", tmp_path / "other", 2)
    adapter = save_adapter(tmp_path / "adapter", 64, 64)
    report = trueaxis.compress_family(
        family / "base", [other, adapter], tmp_path / "out", bits_delta=2, calibration=[tokens]
    )
    assert report.base is None and list(report.members) == ["other", "adapter"]
    (note,) = [note for note in report.members["adapter"].notes if "adapter" in note]
    own, taken = (adapter / "adapter_model.safetensors").stat().st_size, report.members["adapter"].file_bytes
    assert taken > own and f"takes {taken:,} bytes, adapter itself {own:,}" in note
    assert dearer_than_adapter(adapter, own) == []
    assert not [note for note in report.members["other"].notes if "adapter" in note]
    after = digests(tmp_path / "out")
    assert {name: after[name] for name in before if name != "family.json"} == {
        name: digest for name, digest in before.items() if name != "family.json"
    }
    assert json.loads((tmp_path / "out" / "family.json").read_text())["members"] == ["one", "other", "adapter"]
    base, merged = (trueaxis.load(tmp_path / "out", member=name).state_dict() for name in ("one", "adapter"))
    base = AutoModelForCausalLM.from_pretrained(family / "base").state_dict()
    factors = load_file(adapter / "adapter_model.safetensors")
    update = (
        2 * factors[f"base_model.model.{TARGET}.lora_B.weight"] @ factors[f"base_model.model.{TARGET}.lora_A.weight"]
    )
    change = merged[f"{TARGET}.weight"].float() - base[f"{TARGET}.weight"].float()
    assert float((change - update).square().sum()) < 0.1 * float(update.square().sum())
    with pytest.raises(TrueaxisError, match=r"members.other: exists"):
        trueaxis.compress_family(family / "base", [other], tmp_path / "out", bits_delta=2, calibration=[tokens])
    with pytest.raises(TrueaxisError, match=r"differs between .* and the base of the family"):
        trueaxis.compress_family(
            family / "one", [family / "base"], tmp_path / "out", bits_delta=2, calibration=[tokens]
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora True is not read"),
        ({"bias": "all"}, "bias all is not read"),
        ({"peft_type": "IA3"}, "peft_type IA3 is not read"),
        ({"r": 0}, "expected numbers r and lora_alpha"),
    ],
)
def test_other_adapters_are_refused(family: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    adapter = save_adapter(tmp_path / "adapter", 64, 64, **changes)
    with pytest.raises(CheckpointError, match=message):
        trueaxis.compress_family(family / "base", [adapter], family / "out", bits_delta=2)


def test_an_adapter_of_another_base_is_refused(family: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", 32, 64)
    with pytest.raises(CheckpointError, match=r"q_proj.weight: adapter .* adds \[32, 64\] to \[64, 64\]"):
        trueaxis.compress_family(family / "base", [adapter], family / "out", bits_delta=2)


def test_wrong_uses_are_told(family: Path, tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="expected one of its members one, named none"):
        trueaxis.load(family / "out")
    with pytest.raises(FormatError, match="expected one of its members one, found 'two'"):
        trueaxis.load(family / "out", member="two")
    with pytest.raises(FormatError, match=r"is no family, there is no family.json in it"):
        trueaxis.load(family / "out" / "base", member="one")
    with pytest.raises(FormatError, match="root of a family; give a member"):
        Decoder(family / "out")
    with pytest.raises(TrueaxisError, match="root of a family; give its base or one of its members"):
        read_facts(family / "out")
    with pytest.raises(TrueaxisError, match="align stage is 'identity'"):
        trueaxis.compress_family(family / "base", [family / "one"], tmp_path / "x", bits_delta=2, recipe="gauge")
    with pytest.raises(TrueaxisError, match="bits_delta: expected a positive number"):
        trueaxis.compress_family(family / "base", [family / "one"], tmp_path / "x", bits_delta=0)
    with pytest.raises(TrueaxisError, match=r"is named 'one' too"):
        trueaxis.compress_family(family / "base", [family / "one"] * 2, tmp_path / "x", bits_delta=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError):
        trueaxis.compress_family(family / "base", [tmp_path / "empty"], tmp_path / "x", bits_delta=2)
    assert not (tmp_path / "x").exists()
    with pytest.raises(TrueaxisError, match="is not empty and no family; choose another path"):
        trueaxis.compress_family(family / "base", [family / "one"], tmp_path, bits_delta=2)
    with pytest.raises(TrueaxisError, match="members of a family are not tuned"):
        trueaxis.compress_family(
            family / "base", [family / "one"], tmp_path / "out", bits_delta=2, recipe=tuned("identity")
        )


def test_base_records_of_matrices(family: Path, tmp_path: Path) -> None:
    parts = dismantle(family / "out" / "members" / "one")
    name = f"{TARGET}.weight"
    hint, matrix = parts.records[name]
    assert hint.type == RecordType.BASE
    for records, message in (
        ([Record(RecordType.BASE, b"x" * 16), matrix], "holds other values"),
        ([hint, Record(RecordType.ALIAS, b"norm")], "record type 22 is out of place"),
        ([matrix, hint], "record type 22 is out of place"),
    ):
        changed = parts.copy()
        changed.records[name] = list(records)
        with pytest.raises(FormatError, match=message):
            trueaxis.verify(forge(tmp_path / "forged", changed), base=family / "base")


def test_command_line(family: Path, tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, one, out = (str(path) for path in (family / "base", family / "one", tmp_path / "out"))
    assert main(["compress-family", base, one, out, "--bits-delta", "3", "--calibration", str(tokens)]) == 0
    assert "every bit of it" in capsys.readouterr().out
    assert main(["verify", out]) == 0
    assert main(["inspect", out]) == 0
    assert "a family" in capsys.readouterr().out
    assert main(["unpack", out, str(tmp_path / "plain"), "--member", "one"]) == 0
    found = load_file(tmp_path / "plain" / "model.safetensors")
    assert torch.equal(found[f"{TARGET}.weight"], Decoder(family / "out/members/one").tensor(f"{TARGET}.weight"))
