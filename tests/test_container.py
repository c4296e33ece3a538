"""Shards: golden header, several shards with their index, and every damaged byte found."""

from __future__ import annotations

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from forge import SPECIMEN_CONFIG, dismantle, forge, write_specimen
from trueaxis.container import CONFIG, INDEX, Container, Entry, pack_shards, safetensors_head, shard_names
from trueaxis.entropy.varint import pack_varint
from trueaxis.record import HEAD, REQUIRED, VERSION, Record, RecordType
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.load import verify
from trueaxis.types import FormatError

SHARD = "model.safetensors"


@pytest.fixture(scope="module")
def specimen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_specimen(tmp_path_factory.mktemp("specimen") / "out")


@pytest.fixture
def copied(specimen: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(specimen, tmp_path / "copy"))


def refuse(path: Path, message: str) -> str:
    """Both ways in refuse; returns what `verify` says."""
    with pytest.raises(FormatError):
        Decoder(path).tensors()
    with pytest.raises(FormatError, match=message) as caught:
        verify(path)
    return str(caught.value)


def test_golden_header() -> None:
    head = safetensors_head(0, 12345)
    text = b'{"__metadata__":{"format":"pt"},"trueaxis.00001":{"dtype":"U8","shape":[12345],"data_offsets":[0,12345]}}'
    assert head == struct.pack("<Q", 112) + text.ljust(112)
    assert safetensors_head(11, 0)[8:].startswith(b'{"__metadata__":{"format":"pt"},"trueaxis.00012"')


def test_shard_is_a_safetensors_file_of_records(specimen: Path) -> None:
    with safe_open(specimen / SHARD, framework="np") as shard:
        assert list(shard.keys()) == ["trueaxis.00001"]
        data = shard.get_tensor("trueaxis.00001").tobytes()
    assert HEAD.unpack_from(data)[0] == RecordType.MODEL
    container = Container(specimen)
    stored = [record for name in container.tensors for record in container.records(name)]
    assert [record.type for record in stored] == [18, 18, 18, 19, 20, 16, 16, 18, 20, 16, 16, 16, 18]
    extents = sum(info.length for info in container.tensors.values())
    assert sum(record.stored_bytes for record in stored) == extents < len(data)
    assert container.file_bytes == (specimen / SHARD).stat().st_size + len(json.dumps(SPECIMEN_CONFIG)) - 2


@pytest.mark.parametrize("shard_bytes", [1, 100, 150])
def test_several_shards_decode_to_the_same(specimen: Path, tmp_path: Path, shard_bytes: int) -> None:
    path = write_specimen(tmp_path / "sharded", shard_bytes)
    names = sorted(file.name for file in path.glob("*.safetensors"))
    assert len(names) > 1
    assert names == shard_names(len(names))
    assert verify(path)["tensors"] == 7
    assert Container(path).file_bytes > Container(specimen).file_bytes
    found, wanted = Decoder(path).tensors(), Decoder(specimen).tensors()
    for (name, value), (other, expected) in zip(found.items(), wanted.items(), strict=True):
        assert name == other
        assert np.array_equal(value.float().numpy(), expected.float().numpy())
    index = json.loads((path / INDEX).read_text())
    for number, name in enumerate(names):
        assert index["weight_map"][f"trueaxis.{number + 1:05d}"] == name
        with safe_open(path / name, framework="np") as shard:
            assert list(shard.keys()) == [f"trueaxis.{number + 1:05d}"]


def test_damage_in_sharded_output_is_refused(tmp_path: Path) -> None:
    whole = write_specimen(tmp_path / "whole", 1)
    names = shard_names(7)
    for file in [*names, INDEX, CONFIG]:
        path = Path(shutil.copytree(whole, tmp_path / f"without {file}"))
        (path / file).unlink()
        refuse(path, file if file != names[0] else "no model.safetensors")
    for first, second in ((1, 2), (0, 4)):
        path = Path(shutil.copytree(whole, tmp_path / f"swapped {first}"))
        (whole / names[first]).rename(path / "aside")
        shutil.copyfile(path / names[second], path / names[first])
        (path / "aside").rename(whole / names[first])
        refuse(path, names[first])
    for file in (*names, INDEX):
        data = (whole / file).read_bytes()
        for bit in np.random.default_rng(1).integers(0, 8 * len(data), 40):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            (whole / file).write_bytes(damaged)
            refuse(whole, file)
        (whole / file).write_bytes(data)
    verify(whole)


def test_shards_of_different_models_do_not_mix(tmp_path: Path) -> None:
    whole = write_specimen(tmp_path / "whole", 1)
    other = write_specimen(tmp_path / "other", 1)
    entry = Entry("norm", (5,), "F32", (Record(RecordType.PLANES, b"\0" + bytes(20)),))
    four = shard_names(7)[3]
    facts = {key: value for key, value in Container(whole).header.items() if key != "tensors"}
    alien = b"".join(list(pack_shards(facts, [], [entry] * 7, 1).values())[3])
    assert len(alien) == (other / four).stat().st_size
    (other / four).write_bytes(alien)
    with pytest.raises(FormatError, match=f"{four}: hash"):
        verify(other)


def test_every_truncation_is_refused(copied: Path) -> None:
    data = (copied / SHARD).read_bytes()
    for length in range(len(data)):
        (copied / SHARD).write_bytes(data[:length])
        with pytest.raises(FormatError, match=SHARD):
            Container(copied)
    config = (copied / CONFIG).read_bytes()
    (copied / SHARD).write_bytes(data)
    for length in range(len(config)):
        (copied / CONFIG).write_bytes(config[:length])
        with pytest.raises(FormatError, match=CONFIG):
            Container(copied)


def test_flipped_bits_of_a_shard_are_refused_by_name(copied: Path) -> None:
    """Every bit of the safetensors header, its padding and its names; one bit of every byte after it."""
    data = (copied / SHARD).read_bytes()
    head = 8 * len(safetensors_head(0, len(data) - 112))
    spread = np.random.default_rng(0).integers(0, 8, len(data)) + 8 * np.arange(len(data))
    container = Container(copied)
    start = len(data) - sum(info.length for info in container.tensors.values())
    owners = ["header|shards|model|first record"] * (start - container.header["model_bytes"])
    owners += ["model records"] * (start - len(owners))
    for name, info in container.tensors.items():
        owners += [f"safetensors: {name}: "] * info.length
    for bit in [*range(head), *spread[head // 8 :].tolist()]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (copied / SHARD).write_bytes(damaged)
        with pytest.raises(FormatError, match=owners[bit // 8]):
            Decoder(copied).tensors()
    (copied / SHARD).write_bytes(data)
    verify(copied)


def test_trailing_bytes_are_refused(copied: Path) -> None:
    with open(copied / SHARD, "ab") as file:
        file.write(b"\0")
    refuse(copied, "safetensors header")


@pytest.mark.parametrize("claim", [0, 7, 96, 112, 1 << 20, 1 << 60, (1 << 64) - 1])
def test_absurd_header_length_is_refused_before_it_is_read(copied: Path, claim: int) -> None:
    data = (copied / SHARD).read_bytes()
    (copied / SHARD).write_bytes(struct.pack("<Q", claim) + data[8:])
    tracemalloc.start()
    try:
        refuse(copied, "safetensors header")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_absurd_model_record_is_refused_before_it_is_read(copied: Path) -> None:
    frame = HEAD.pack(RecordType.MODEL, REQUIRED | VERSION, 0) + pack_varint(1 << 40)
    with open(copied / SHARD, "wb") as file:
        head = safetensors_head(0, 1 << 40)
        file.write(head + frame)
        file.truncate(len(head) + (1 << 40))  # a sparse file: it has the size it claims
    refuse(copied, "model header: claims")


def test_layout_of_config_may_change_but_not_its_content(copied: Path) -> None:
    config = json.loads((copied / CONFIG).read_text())
    for text in (
        json.dumps(config, indent=7),
        json.dumps(dict(reversed(config.items())), separators=(",", ":")),
        "\n\t " + json.dumps(config).replace(" ", "\r\n  ") + "\n",
    ):
        (copied / CONFIG).write_text(text)
        verify(copied)
    for changed in (
        {**config, "model_type": "nonE"},
        {**config, "extra": None},
        {"quantization_config": config["quantization_config"]},
    ):
        (copied / CONFIG).write_text(json.dumps(changed))
        refuse(copied, f"{CONFIG}: content differs")


def test_every_flipped_bit_of_config_is_refused(copied: Path) -> None:
    data = (copied / CONFIG).read_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        (copied / CONFIG).write_bytes(damaged)
        with pytest.raises(FormatError, match=CONFIG):
            Container(copied)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", "JSON"),
        (b"[" * 200_000, "JSON"),
        (b"[]", "no quantization_config"),
        (b'{"quantization_config": 1}', "no quantization_config"),
        (b'{"quantization_config": {"quant_method": ["gptq"]}}', "not 'trueaxis'"),
        (b" " * (1 << 25), "larger than"),
    ],
    ids=["bytes", "nested", "list", "number", "method", "large"],
)
def test_config_that_is_not_ours_is_refused(copied: Path, text: bytes, message: str) -> None:
    (copied / CONFIG).write_bytes(text)
    refuse(copied, f"{CONFIG}.*{message}")


def test_directories_in_place_of_files_are_refused(copied: Path) -> None:
    (copied / SHARD).unlink()
    (copied / SHARD).mkdir()
    refuse(copied, "no model.safetensors")
    (copied / CONFIG).unlink()
    (copied / CONFIG).mkdir()
    refuse(copied, CONFIG)
    refuse(copied / "nothing", "missing")


def test_forged_copy_of_a_good_file_is_good(specimen: Path, tmp_path: Path) -> None:
    again = forge(tmp_path / "again", dismantle(specimen))
    found = Decoder(again).tensors()
    for name, expected in Decoder(specimen).tensors().items():
        assert np.array_equal(found[name].float().numpy(), expected.float().numpy())
    verify(again)
