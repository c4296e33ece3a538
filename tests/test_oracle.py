"""The package and a reader written from docs/format.md alone decode the same bits."""

from __future__ import annotations

from pathlib import Path

import torch

from forge import write_specimen
from oracle import Oracle
from trueaxis.runtime.decode import Decoder


def bits_of(decoder: Decoder, name: str) -> bytes:
    return decoder.tensor(name).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_specimen(tmp_path: Path) -> None:
    path = write_specimen(tmp_path / "specimen", 100)
    decoder, found = Decoder(path), Oracle(path).tensors()
    assert list(decoder.names()) == sorted(found, key=decoder.names().index)
    for name, bits in found.items():
        assert bits == bits_of(decoder, name), name


def test_compressed_model(compressed_tied: Path) -> None:
    decoder, found = Decoder(compressed_tied), Oracle(compressed_tied).tensors()
    for name, bits in found.items():
        assert bits == bits_of(decoder, name), name
