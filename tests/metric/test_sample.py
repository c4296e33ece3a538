"""Sampled calibration text: the model's own distribution, the same for the same seed, less of it when time is short."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import families
from transformers import BertConfig, BertForMaskedLM

import trueaxis
from trueaxis.cli import main
from trueaxis.container import Container
from trueaxis.metric import sample
from trueaxis.metric.calibrate import load_model, minimum_tokens
from trueaxis.metric.sample import continue_text, sample_tokens
from trueaxis.metric.statistics import load_statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.types import CalibrationError


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches of short sequences."""
    monkeypatch.setattr(sample, "LENGTH", 64)
    monkeypatch.setattr(sample, "BATCH", 16)


@pytest.fixture
def no_start(tiny_llama: Path, tmp_path: Path) -> Path:
    """The tiny model without a start token."""
    path = tmp_path / "no-start"
    shutil.copytree(tiny_llama, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "bos_token_id": None}))
    (path / "generation_config.json").unlink(missing_ok=True)
    return path


def test_tokens_are_drawn_from_the_models_own_distribution(tiny_llama: Path) -> None:
    """Twin without a cache: the whole sequence is run again for every token."""
    checkpoint = Checkpoint.open(tiny_llama)
    model = load_model(checkpoint)
    seed = np.random.SeedSequence([3, 0])
    starts = torch.nn.functional.one_hot(torch.tensor(0), 128).double()
    with torch.inference_mode():
        found = sample._sample_batch(model, starts, 4, 24, seed)
        generator = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
        ids = torch.multinomial(starts, 4, replacement=True, generator=generator)[:, None]
        while ids.shape[1] < 24:
            probabilities = model(ids).logits[:, -1].double().softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    assert np.array_equal(found, ids.numpy())


def test_same_seed_same_tokens_and_more_begin_with_fewer(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    first = sample_tokens(checkpoint, 1024, seed=1, tokens=1024)
    assert first.shape == (16, 64)
    assert (first[:, 0] == 0).all()  # the start token
    longer = sample_tokens(checkpoint, 1024, seed=1, tokens=1025)
    assert longer.shape == (32, 64)
    assert np.array_equal(longer[:16], first)
    assert not np.array_equal(sample_tokens(checkpoint, 1024, seed=2, tokens=1024), first)


def test_without_a_start_token_sequences_begin_differently(no_start: Path) -> None:
    tokens = sample_tokens(Checkpoint.open(no_start), 1024, seed=1, tokens=1024)
    assert np.unique(tokens[:, 0]).size > 4
    many = sample._start_distribution(load_model(Checkpoint.open(no_start)))
    assert float(many.sum()) == pytest.approx(1)
    assert 1 / 128 < float(many.max()) < 0.5


@pytest.mark.parametrize(
    ("minimum", "most_tokens", "batches"),
    [(1024, 10**9, 4), (1024, 40_000, 2), (1024, 1000, 1), (70_000, 1000, 5), (70_000, 10**9, 5)],
)
def test_size_of_the_model_limits_the_number_of_batches(minimum: int, most_tokens: int, batches: int) -> None:
    assert sample._batches(65_536, minimum, 16_384, most_tokens) == batches


def test_batches_side_by_side_are_the_same(tiny_llama: Path) -> None:
    one, several = (
        sample_tokens(Checkpoint.open(tiny_llama), 1024, seed=4, tokens=10_000, threads=threads) for threads in (1, 3)
    )
    assert one.size >= 10_000
    assert np.array_equal(one, several)


def test_text_goes_on_from_its_beginnings(tiny_llama: Path) -> None:
    """Twin without a cache; batches have numbers of their own, whichever thread has them."""
    text = np.random.default_rng(2).integers(0, 128, (20, 24)).astype(np.int32)
    checkpoint = Checkpoint.open(tiny_llama)
    found = continue_text(checkpoint, text, 18, threads=1)
    assert found.shape == (18, 24)
    assert np.array_equal(found[:, :6], text[:18, :6])
    assert np.array_equal(continue_text(checkpoint, text, 18, threads=3), found)
    model, ids = load_model(checkpoint), torch.from_numpy(text[16:18, :6].astype(np.int64))
    seed = np.random.SeedSequence([24, 2])
    generator = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
    with torch.inference_mode():
        while ids.shape[1] < 24:
            probabilities = model(ids).logits[:, -1].double().softmax(-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    assert np.array_equal(found[16:], ids.numpy())


def test_no_sequence_goes_on_twice_and_none_of_a_model_that_writes_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    text = np.zeros((3, 8), np.int64)
    assert len(continue_text(Checkpoint.open(tiny_llama), text, 100, threads=1)) == 3
    assert continue_text(Checkpoint.open(tiny_llama), text, 0, threads=1).shape == (0, 8)
    torch.manual_seed(0)
    BertForMaskedLM(
        BertConfig(vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "masked")
    assert continue_text(Checkpoint.open(tmp_path / "masked"), text, 3, threads=1).shape == (0, 8)


@pytest.mark.parametrize(
    "case", [families.Case("BertLMHeadModel"), families.Case("OpenAIGPTLMHeadModel", families.GPT2)]
)
def test_models_that_hand_no_cache_back(case: families.Case, tmp_path: Path) -> None:
    """One takes a cache that it leaves alone where it is no decoder, the other takes none."""
    families.build(case).save_pretrained(tmp_path / "model")
    checkpoint = Checkpoint.open(tmp_path / "model")
    assert continue_text(checkpoint, np.zeros((3, 8), np.int64), 3, threads=1).shape == (0, 8)
    with pytest.raises(CalibrationError, match=f"{case.cls} cannot be sampled from: .* give text or token ids"):
        sample_tokens(checkpoint, 1024, seed=0)


def test_a_large_model_writes_less(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    monkeypatch.setattr(sample, "MOST_WORK", 2 * 8 * checkpoint.parameters)
    assert len(continue_text(checkpoint, np.zeros((5, 8), np.int64), 5, threads=1)) == 2


def test_the_log_tells_tokens_and_time_beforehand(tiny_llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    with caplog.at_level(logging.WARNING):
        tokens = sample_tokens(checkpoint, minimum_tokens(trace(checkpoint)), seed=0, most_work=1, tokens=4096)
    assert tokens.size == 1024
    assert "sampling 1,024 tokens from the model itself, about" in caplog.text


def test_compress_without_text_samples_and_says_so(
    no_start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sample, "TOKENS", 2048)
    out = tmp_path / "out"
    assert main(["compress", str(no_start), str(out), "--bits", "5"]) == 0
    shown = capsys.readouterr().out
    report = json.loads((out / "trueaxis.json").read_text())
    assert report["calibration"]["source"] == "sampled"
    assert f"{report['calibration']['tokens']:,} tokens (sampled)" in shown
    assert Container(out).header["calibration"] == report["calibration"]
    again = trueaxis.compress(no_start, tmp_path / "again", bits=5)
    assert again.calibration == report["calibration"]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_text_given_is_called_text_and_files_remember(tiny_llama: Path, tokens: Path, tmp_path: Path) -> None:
    statistics = tmp_path / "statistics.safetensors"
    report = trueaxis.compress(tiny_llama, tmp_path / "out", bits=6, calibration=[tokens], statistics=statistics)
    assert report.calibration == {"source": "text", "tokens": 2048}
    assert load_statistics(statistics).source == "text"


def test_a_missing_statistics_file_is_not_replaced_by_samples(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="does not exist"):
        trueaxis.compress(tiny_llama, tmp_path / "out", bits=5, statistics=tmp_path / "none.safetensors")
