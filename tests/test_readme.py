"""Every code block of the README runs, in a directory that has the files it names; only `make` lines are left out."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from trueaxis.cli import main

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
VOCABULARY = 128


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` with a tokenizer of 128 words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("readme") / "MODEL"
    shutil.copytree(tiny_llama, directory)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(directory)
    return directory


def write_text(path: Path, seed: int) -> None:
    words = np.random.default_rng(seed).integers(0, VOCABULARY, 2100)
    path.write_text(" ".join(f"w{word}" for word in words), encoding="utf-8")


def run_shell(block: str) -> None:
    """Each line is a trueaxis command; `make` lines are skipped, anything else is a mistake in the README."""
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        if program != "make":
            assert program == "trueaxis", line
            assert main(arguments) == 0, line


def test_there_are_blocks_of_both_kinds() -> None:
    assert [language for language, _ in BLOCKS].count("python") >= 2
    assert sum(block.count("trueaxis ") for language, block in BLOCKS if language == "sh") >= 5


@pytest.mark.parametrize(("language", "block"), BLOCKS, ids=[f"{n}-{block[0]}" for n, block in enumerate(BLOCKS)])
def test_block_runs(
    language: str, block: str, model: Path, compressed_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for copy in ("MODEL", "BASE"):
        shutil.copytree(model, tmp_path / copy)
    write_text(tmp_path / "text.txt", seed=1)
    write_text(tmp_path / "test.txt", seed=2)
    if "compress" not in block:
        shutil.copytree(compressed_llama, tmp_path / "OUT")
    monkeypatch.chdir(tmp_path)
    if language == "sh":
        run_shell(block)
    else:
        exec(compile(block, str(README), "exec"), {})
