"""The Hub: what is uploaded, and a card that claims nothing that was not measured."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import trueaxis
from trueaxis.types import TrueaxisError


class Recorder:
    """Stands for HfApi and keeps what it is told."""

    calls: ClassVar[list[Any]] = []

    def __init__(self, token: str | None) -> None:
        self.calls.append(token)

    def create_repo(self, repository: str, **settings: Any) -> str:
        self.calls.append((repository, settings))
        return f"https://huggingface.co/{repository}"

    def create_commit(self, repository: str, operations: Any, **settings: Any) -> None:
        self.calls.append({one.path_in_repo: one.path_or_fileobj for one in operations})


def test_every_file_goes_up_and_the_card_is_ours(
    compressed_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(compressed_llama, tmp_path / "out")
    (out / "stray.txt").write_text("mine")
    monkeypatch.setattr("huggingface_hub.HfApi", Recorder)
    Recorder.calls.clear()
    address = trueaxis.push_to_hub(out, "me/tiny", base_model="you/tiny", private=True, token="secret")
    assert address == "https://huggingface.co/me/tiny"
    token, created, files = Recorder.calls
    assert token == "secret" and created == ("me/tiny", {"private": True, "exist_ok": True})
    assert files.keys() == {file.name for file in compressed_llama.iterdir()} | {"README.md"}
    card = files["README.md"].decode()
    assert "base_model: you/tiny" in card and 'from_pretrained("me/tiny")' in card
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    growth = int(card.split("weight files | ")[1].split(" |")[0].replace(",", "")) - size
    assert 0 < growth < 200  # of config.json
    assert "not measured" in card


def test_the_card_keeps_the_licence_and_shows_what_was_measured(
    compressed_llama: Path, tiny_llama: Path, tokens: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(compressed_llama, tmp_path / "out")
    (out / "README.md").write_text("---\nlicense: mit\nlanguage: en\ntags: [other]\n---\n\n# Original\n")
    found = trueaxis.evaluate(out, tokens=tokens, reference=tiny_llama, allow_overlap=True)
    card = trueaxis.model_card(out, evaluation=found)
    assert "license: mit" in card and "language: en" in card and "other" not in card
    assert f"{found.kl_nats:.5f} nats, on {found.tokens:,} tokens" in card
    with pytest.raises(TrueaxisError, match="evaluation is of another compressed model"):
        trueaxis.model_card(out, evaluation=replace(found, fingerprint="0" * 32))


def test_a_damaged_directory_is_not_uploaded(
    compressed_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(compressed_llama, tmp_path / "out")
    data = bytearray((out / "model.safetensors").read_bytes())
    data[-20] ^= 1
    (out / "model.safetensors").write_bytes(data)
    monkeypatch.setattr("huggingface_hub.HfApi", Recorder)
    Recorder.calls.clear()
    with pytest.raises(TrueaxisError, match=r"model\.safetensors: hash of header and records differs"):
        trueaxis.push_to_hub(out, "me/tiny")
    assert Recorder.calls in ([], [None])
