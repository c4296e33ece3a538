"""Tensors of a directory that is read by ranges of bytes, wherever it lies."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

import trueaxis
from trueaxis.container import Container
from trueaxis.remote import RemotePath, place
from trueaxis.types import FormatError, TrueaxisError

NUMBERS = itertools.count()


class Counting(MemoryFileSystem):
    """Counts the bytes that are read of its files."""

    protocol = "counting"
    cachable = False
    read = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("counting:/"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **options)
        content = bytes(self.store[self._strip_protocol(path)].getbuffer())

        class Counted(MemoryFile):
            def read(self, size: int | None = -1) -> bytes:
                found = super().read(-1 if size is None else size)
                Counting.read += len(found)
                return found

        return Counted(self, path, content)


fsspec.register_implementation("counting", Counting, clobber=True)


@pytest.fixture
def uploaded(compressed_llama: Path) -> Iterator[tuple[str, int]]:
    """(address, bytes) of a compressed model that is behind an address."""
    folder, system = f"/models{next(NUMBERS)}", Counting()
    for file in compressed_llama.iterdir():
        system.pipe(f"{folder}/{file.name}", file.read_bytes())
    Counting.read = 0
    yield f"counting:/{folder}", sum(file.stat().st_size for file in compressed_llama.glob("*.safetensors"))
    system.rm(folder, recursive=True)


def test_a_tensor_is_the_same_as_from_disk(uploaded: tuple[str, int], compressed_llama: Path) -> None:
    model = trueaxis.load(compressed_llama)
    for name, expected in model.state_dict().items():
        assert torch.equal(trueaxis.load_tensor(uploaded[0], name), expected), name
        assert torch.equal(trueaxis.load_tensor(compressed_llama, name), expected), name
    wide = trueaxis.load_tensor(uploaded[0], "model.norm.weight", torch.float32)
    assert wide.dtype == torch.float32


def test_nothing_else_is_fetched(demo_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trueaxis.compress_lossless(demo_model, out)
    system = Counting()
    for file in out.iterdir():
        system.pipe(f"/large/{file.name}", file.read_bytes())
    Counting.read = 0
    name = "model.layers.2.mlp.up_proj.weight"
    found = trueaxis.load_tensor("counting:///large", name)
    assert torch.equal(found, trueaxis.load_tensor(out, name))
    container, config = Container(out), (out / "config.json").stat().st_size
    needed = container.tensors[name].length + container.header["model_bytes"] + config
    assert needed < Counting.read < needed + 40_000 < container.file_bytes


def test_an_unknown_tensor_is_told_with_those_near(uploaded: tuple[str, int]) -> None:
    with pytest.raises(TrueaxisError, match=r"holds no tensor 'model\.norm'; near it: model\.norm\.weight"):
        trueaxis.load_tensor(uploaded[0], "model.norm")


def test_damage_and_absence_are_told_by_address(uploaded: tuple[str, int], compressed_llama: Path) -> None:
    address = uploaded[0]
    with pytest.raises(FormatError, match=r"counting://.*nowhere/config\.json: missing"):
        trueaxis.load_tensor("counting:///nowhere", "model.norm.weight")
    with pytest.raises(TrueaxisError, match="nosuch"):
        trueaxis.load_tensor("nosuch://models", "model.norm.weight")
    file = f"{address.removeprefix('counting:/')}/model.safetensors"
    data = bytearray((compressed_llama / "model.safetensors").read_bytes())
    data[-1] ^= 1
    Counting().pipe(file, bytes(data))
    last = list(Container(compressed_llama).tensors)[-1]
    with pytest.raises(FormatError, match=f"counting://.*{last}: checksum mismatch"):
        trueaxis.load_tensor(address, last)


def test_sharded_directories_are_read_too(compressed_llama: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(compressed_llama, tmp_path / "copied")
    address = f"file://{copied}"
    assert torch.equal(trueaxis.load_tensor(address, "lm_head.weight"), trueaxis.load_tensor(copied, "lm_head.weight"))
    assert isinstance(place(copied), Path) and isinstance(place(address), RemotePath)
    (copied / "model.safetensors").rename(copied / "model-00001-of-00002.safetensors")
    with pytest.raises(FormatError, match="counts 1 shards"):
        trueaxis.load_tensor(address, "lm_head.weight")
