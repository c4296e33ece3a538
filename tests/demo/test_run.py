"""The model that comes with the package, and the demonstration at a small size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import trueaxis
from demo_card import KneserNey, token_bytes, unigram_nats
from trueaxis.cli import main
from trueaxis.demo.corpus import modules
from trueaxis.demo.run import RECIPES, Demonstration, Row
from trueaxis.demo.table import render
from trueaxis.demo.trial import attempt
from trueaxis.metric.calibrate import tokenize


@pytest.fixture(scope="module")
def evaluation(demo_model: Path) -> np.ndarray:
    """Two sequences of the evaluation split, int64 [2, 256]."""
    tokens = tokenize(demo_model, modules("evaluation")[:6], 256)
    return tokens[[0, len(tokens) // 2]]


def test_model_has_the_promised_size_and_parts(demo_model: Path) -> None:
    weights = demo_model / "model.safetensors"
    assert weights.stat().st_size <= 4_000_000
    with safe_open(weights, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {value.dtype for value in tensors.values()} == {torch.bfloat16}
    assert 1e6 <= sum(value.numel() for value in tensors.values()) <= 2e6
    config = json.loads((demo_model / "config.json").read_text())
    assert config["hidden_size"] % 64 == 0 and config["hidden_size"] >= 128
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    files = {"README.md", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert files <= {file.name for file in demo_model.iterdir()}


def test_model_predicts_new_text_better_than_counts(demo_model: Path, evaluation: np.ndarray) -> None:
    training = tokenize(demo_model, modules("training")[::8], 256).ravel()
    vocabulary = Tokenizer.from_file(str(demo_model / "tokenizer.json")).get_vocab_size()
    unigram = unigram_nats(training, evaluation, vocabulary).mean()
    found = trueaxis.evaluate(demo_model, tokens=evaluation)
    assert found.tokens == evaluation[:, 1:].size
    assert found.nats_per_token < 0.8 * unigram


def test_tokenizer_covers_every_byte(demo_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(demo_model / "tokenizer.json"))
    text = "def f(x):\n\treturn 'naïve 😀'\r\n"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert token_bytes(tokenizer)[ids].sum() == len(text.encode())


def test_five_gram_probabilities_sum_to_one() -> None:
    stream = np.random.default_rng(3).integers(0, 6, 400) % 5
    model = KneserNey(stream, vocabulary=6, order=3)
    for history in ([0, 1], [4, 4], [5, 5], [2, 5]):  # 5 never occurs
        nats = [model.nats(np.array([[*history, token]]))[0, -1] for token in range(6)]
        assert np.exp(-np.array(nats)).sum() == pytest.approx(1)


def test_five_gram_learns_what_a_unigram_cannot() -> None:
    stream = np.tile([0, 1, 2, 3, 4, 5, 6, 7], 50)
    windows = stream[:64].reshape(2, 32)
    assert KneserNey(stream, vocabulary=8).nats(windows)[:, 4:].max() < 0.2
    assert unigram_nats(stream, windows, 8).mean() == pytest.approx(np.log(8))


def test_demo_tells_what_it_did(demo_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json", "--bits", "4", "--sequences", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["recipe"]: row for row in found["rows"]}
    assert tuple(rows) == RECIPES
    original = AutoModelForCausalLM.from_pretrained(demo_model)
    assert found["parameters"] == original.num_parameters()
    for row in rows.values():
        assert 4 * 0.99 <= row["file_bytes"] * 8 / found["parameters"] == row["bits_per_param"] <= 4
        assert row["kl_interval"][0] <= row["kl_nats"] <= row["kl_interval"][1]
        assert row["load_seconds"] > 0 and row["perplexity_before"] == rows["rtn"]["perplexity_before"]
    assert 0 < rows["default"]["kl_nats"] < rows["rtn"]["kl_nats"]
    assert found["evaluation_tokens"] == 2 * 511
    assert list(found["completions"]) == ["original", "4 bits"]
    assert all(text.startswith("def ") for text in found["completions"].values())


def test_a_directory_that_cannot_be_loaded_is_named(demo_model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.zeros((1, 8), np.int64))
    with pytest.raises(trueaxis.TrueaxisError, match=f"{tmp_path}/absent: .* in a new process"):
        list(attempt([tmp_path / "absent"], [""], demo_model, tmp_path / "tokens.npy", 0))


def test_table_is_plain_text_without_a_terminal() -> None:
    rows = [Row(name, 4.0, 981_203, 3.989, 0.02, (0.01, 0.03), 0.9, 20.0, 21.0, 4.9, 0.6) for name in RECIPES]
    found = Demonstration(1_967_808, 3_939_696, 0.1, 1022, 7.0, tuple(rows), {"original": "def f[bold](x):"}, 60.0)
    plain, coloured = render(found, terminal=False), render(found, terminal=True)
    assert "\x1b" not in plain and "\x1b[" in coloured
    assert "981,203" in plain and "0.0200" in plain and "def f[bold](x):" in plain
    assert max(map(len, plain.splitlines())) <= 100
