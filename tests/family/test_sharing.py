"""Members that share directions: every way in reads them, adding one touches no other, damage is refused."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import trueaxis
import trueaxis.hf
from forge import Parts, dismantle, forge
from oracle import Oracle
from trueaxis import _core
from trueaxis.cli import main
from trueaxis.family.journey import FamilyReport
from trueaxis.record import Record, RecordType
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.tangent import pack_weights, read_weights
from trueaxis.types import FormatError

COMMON, OWN, BITS = 0.2, 0.02, 4
TOO_LARGE = _core.encode_integers(np.array([1 << 25], np.int32), np.zeros(1, np.uint8))


def member(base: Path, out: Path, seed: int, share: float) -> Path:
    """The base with a share of one direction in every matrix, and noise."""
    shutil.copytree(base, out)
    common, own = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    for name, value in tensors.items():
        if value.dim() == 2:
            along, beside = (torch.randn(value.shape, generator=one) for one in (common, own))
            moved = COMMON * share * along + OWN * beside
            tensors[name] = (value.float() + value.float().std() * moved).to(value.dtype)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def made(tiny_llama: Path, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FamilyReport]:
    """Folder of base, members a, b, c, and later; the family of the first three in out."""
    folder = tmp_path_factory.mktemp("sharing")
    shutil.copytree(tiny_llama, folder / "base")
    for seed, (name, share) in enumerate({"a": 1.0, "b": 0.8, "c": -1.2, "later": 0.9}.items(), start=1):
        member(tiny_llama, folder / name, seed, share)
    report = trueaxis.compress_family(
        folder / "base", [folder / name for name in "abc"], folder / "out", bits_delta=BITS, calibration=[tokens]
    )
    return folder, report


@pytest.fixture
def out(made: tuple[Path, FamilyReport], tmp_path: Path) -> Path:
    """A copy of the family."""
    return Path(shutil.copytree(made[0] / "out", tmp_path / "out"))


def digests(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.rglob("*")
        if file.is_file()
    }


def shares(path: Path) -> dict[str, Record]:
    """Records of shares by tensor."""
    container = Decoder(path).container
    found = {name: container.records(name) for name in container.tensors}
    return {name: one for name, records in found.items() for one in records if one.type == RecordType.TANGENT}


def error(found: Path, folder: Path, name: str) -> float:
    """Squared error of the matrices, over what they moved by."""
    base, original = (load_file(folder / one / "model.safetensors") for one in ("base", name))
    state = trueaxis.load(found, member=name).state_dict()
    names = [key for key, value in original.items() if value.dim() == 2]
    lost = sum(float((state[key].float() - original[key].float()).square().sum()) for key in names)
    return lost / sum(float((original[key].float() - base[key].float()).square().sum()) for key in names)


def test_what_members_share_is_coded_once_and_pays(
    made: tuple[Path, FamilyReport], tokens: Path, tmp_path: Path
) -> None:
    folder, report = made
    assert len(report.directions) == 1
    part = report.directions[0] // 3
    original = trueaxis.inspect(folder / "out" / "base")["parameters"]
    for name in "abc":
        assert report.members[name].file_bytes + part <= BITS * original / 8
        (note,) = report.members[name].notes
        assert "take shares of the family's directions" in note
        assert len(shares(folder / "out" / "members" / name)) > 4
    trueaxis.compress_family(folder / "base", [folder / "b"], tmp_path / "alone", bits_delta=BITS, calibration=[tokens])
    assert not (tmp_path / "alone" / "tangent").exists()
    assert not shares(tmp_path / "alone" / "members" / "b")
    assert error(folder / "out", folder, "b") < 0.7 * error(tmp_path / "alone", folder, "b")


def test_every_way_in_finds_the_same(made: tuple[Path, FamilyReport], tokens: Path, tmp_path: Path) -> None:
    root, place = made[0] / "out", made[0] / "out" / "members" / "a"
    decoder, dense = Decoder(place), trueaxis.load(root, member="a")
    auto = AutoModelForCausalLM.from_pretrained(place)
    trueaxis.unpack(root, tmp_path / "plain", member="a")
    plain, second = load_file(tmp_path / "plain" / "model.safetensors"), Oracle(place).tensors()
    for name, value in dense.state_dict().items():
        assert torch.equal(auto.state_dict()[name], value) and torch.equal(decoder.tensor(name), value)
        assert torch.equal(plain[name], value)
        assert value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() == second[name]
    ids = torch.from_numpy(np.load(tokens)[:1].astype(np.int64))
    coded = trueaxis.load(root, member="a", resident="compressed")
    assert torch.equal(coded(ids).logits, dense(ids).logits)
    name = next(iter(shares(place)))
    assert torch.equal(trueaxis.load_tensor(place, name), decoder.tensor(name))
    found = trueaxis.evaluate(place, tokens=tokens, reference=made[0] / "a", allow_overlap=True)
    assert found.kl_nats is not None and found.kl_nats < 0.1
    assert trueaxis.verify(root)["tensors"] == 4 * len(decoder.names()) + len(Decoder(root / "tangent" / "1").names())


def test_inspection_counts_directions(made: tuple[Path, FamilyReport], capsys: pytest.CaptureFixture[str]) -> None:
    root = made[0] / "out"
    found = trueaxis.inspect(root)
    parts = [found["base"], *found["directions"], *found["members"].values()]
    listed = (root / "family.json").stat().st_size
    assert len(found["directions"]) == 1 and found["file_bytes"] == listed + sum(one["file_bytes"] for one in parts)
    rows = {row["name"]: row["directions"] for row in found["members"]["a"]["tensors"]}
    assert {name for name, count in rows.items() if count} == set(shares(root / "members" / "a"))
    assert main(["inspect", str(root)]) == 0
    assert "direction 1" in capsys.readouterr().out


def test_a_member_added_later_takes_shares_and_touches_no_other(
    made: tuple[Path, FamilyReport], out: Path, tokens: Path
) -> None:
    folder, _ = made
    before = digests(out)
    report = trueaxis.compress_family(folder / "base", [folder / "later"], out, bits_delta=BITS, calibration=[tokens])
    assert report.directions == () and len(shares(out / "members" / "later")) > 4
    after = digests(out)
    assert [name for name in before if after[name] != before[name]] == ["family.json"]
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"later"}
    assert error(out, folder, "later") < 0.01


def test_directions_are_needed_and_proved(out: Path) -> None:
    place = out / "members" / "a"
    name = next(iter(shares(place)))
    forged = dismantle(out / "tangent" / "1")
    *first, last = forged.records[name]
    forged.records[name] = [*first, Record(last.type, last.payload[:-1] + bytes([last.payload[-1] ^ 1]))]
    forge(out / "tangent" / "1", forged)
    with pytest.raises(FormatError, match="was coded with another direction"):
        Decoder(place).tensor(name)
    shutil.rmtree(out / "tangent")
    with pytest.raises(FormatError, match="was coded with a direction that should lie in"):
        Decoder(place).tensor(name)


def set_shares(payload: bytes) -> Callable[[Parts, str], None]:
    def change(parts: Parts, name: str) -> None:
        parts.records[name][1] = Record(RecordType.TANGENT, payload)

    return change


def unlisted(parts: Parts, name: str) -> None:
    del parts.header["tangent"]


def misplaced(parts: Parts, name: str) -> None:
    parts.records[name].insert(0, parts.records[name].pop(1))


def twice(parts: Parts, name: str) -> None:
    parts.records[name].insert(1, parts.records[name][1])


def of_bits(parts: Parts, name: str) -> None:
    parts.records[name][2:] = [Record(RecordType.PLANES, b"\0")]


def marked(value: object) -> Callable[[Parts, str], None]:
    def change(parts: Parts, name: str) -> None:
        parts.overrides["tangent"] = value

    return change


def of_too_much(parts: Parts, name: str) -> None:
    exact = next(one for one, records in parts.records.items() if records[-1].type == RecordType.PLANES)
    parts.records[exact] = [parts.records[name][0], parts.records[name][1], *parts.records[exact][-1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_shares(b""), "shares of 1 directions"),
        (set_shares(b"\x1f" + pack_weights([1.0], 0)[1:]), "shares of 1 directions"),
        (set_shares(pack_weights([1.0], 4) + bytes(9)), "longer than its numbers"),
        (set_shares(b"\0" + TOO_LARGE), "out of range"),
        (unlisted, "shares of 0 directions"),
        (misplaced, "record type 23 is out of place"),
        (twice, "record type 23 is out of place"),
        (of_bits, "record type 23 is out of place"),
        (of_too_much, "record type 23 is out of place"),
        (marked(["../../etc"]), "'tangent' is missing or out of range"),
        (marked([]), "'tangent' is missing or out of range"),
        (marked(["0" * 32] * 17), "'tangent' is missing or out of range"),
        (marked(["0" * 32] * 2), "was coded with another direction"),
    ],
)
def test_damaged_shares_are_refused(out: Path, change: Callable[[Parts, str], None], message: str) -> None:
    parts, name = dismantle(out / "members" / "a"), next(iter(shares(out / "members" / "a")))
    change(parts, name)
    with pytest.raises(FormatError, match=message):
        trueaxis.verify(forge(out / "members" / "a", parts))


def other_dtype(parts: Parts, row: list[object]) -> None:
    row[2] = "BF16"


def other_name(parts: Parts, row: list[object]) -> None:
    parts.records = {"other" if name == row[0] else name: found for name, found in parts.records.items()}
    row[0] = "other"


def leaning(parts: Parts, row: list[object]) -> None:
    parts.header["base"] = "base"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_dtype, "takes a share of the direction"),
        (other_name, "takes a share of the direction"),
        (leaning, "must not go beside anything itself"),
    ],
)
def test_directions_that_do_not_fit_are_refused(out: Path, change: Callable[..., None], message: str) -> None:
    place, direction = out / "members" / "a", out / "tangent" / "1"
    name = next(iter(shares(place)))
    parts, whole = dismantle(direction), dismantle(place)
    change(parts, next(row for row in parts.header["tensors"] if row[0] == name))
    whole.overrides["tangent"] = [Decoder(forge(direction, parts)).container.fingerprint]
    with pytest.raises(FormatError, match=message):
        Decoder(forge(place, whole)).tensor(name)


def test_shares_come_back() -> None:
    values = [0.5, -1.25, 0.0, 3.999]
    found = read_weights("w", pack_weights(values, 10), 4)
    assert np.abs(found - values).max() <= 2.0**-11
    assert np.isfinite(read_weights("w", pack_weights([1e30], 0), 1)).all()


@pytest.mark.parametrize("count", ["-1", "17", '"1"', "true", "null"])
def test_lists_of_directions_are_bounded(out: Path, count: str) -> None:
    text = (out / "family.json").read_text()
    (out / "family.json").write_text(text.replace('"directions": 1', f'"directions": {count}'))
    with pytest.raises(FormatError, match="expected 0 to 16 directions"):
        trueaxis.inspect(out)
