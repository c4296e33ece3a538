"""Figures against a plain computation, refusal of calibration text, and what the command prints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import trueaxis
from trueaxis.cli import main
from trueaxis.evaluation import interval_of_mean
from trueaxis.scratch import Scratch, scratch_in
from trueaxis.types import Array, CalibrationError, TrueaxisError


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token ids [12, 80] that no model was calibrated on."""
    path = tmp_path_factory.mktemp("unseen") / "tokens.npy"
    np.save(path, np.random.default_rng(1).integers(0, 128, (12, 80)))
    return path


def log_probabilities(path: Path, ids: Array, *, compressed: bool) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = trueaxis.load(path) if compressed else AutoModelForCausalLM.from_pretrained(path)
    with torch.inference_mode():
        return model.float()(torch.from_numpy(ids)).logits[:, :-1].double().log_softmax(-1)


def test_figures_against_a_plain_computation(compressed_llama: Path, tiny_llama: Path, unseen: Path) -> None:
    ids = np.load(unseen)
    found = trueaxis.evaluate(compressed_llama, tokens=unseen, reference=tiny_llama)
    p = log_probabilities(tiny_llama, ids, compressed=False)
    q = log_probabilities(compressed_llama, ids, compressed=True)
    nats = -q.gather(-1, torch.from_numpy(ids)[:, 1:, None]).mean().item()
    assert found.tokens == 12 * 79
    assert found.nats_per_token == pytest.approx(nats, rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(nats), rel=1e-4)
    assert found.kl_nats == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-3)
    assert found.top1_agreement == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item(), abs=2e-3)
    assert found.kl_interval is not None
    assert 0 < found.kl_interval[0] < found.kl_nats < found.kl_interval[1]
    assert found.overlap == 0


def test_batches_do_not_matter(
    compressed_llama: Path, tiny_llama: Path, unseen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trueaxis.evaluate(compressed_llama, tokens=np.load(unseen), reference=tiny_llama)
    monkeypatch.setattr("trueaxis.evaluation.BATCH_LOGITS", 5 * 80 * 128)
    steps: list[tuple[str, int, int]] = []
    parts = trueaxis.evaluate(
        compressed_llama, tokens=unseen, reference=tiny_llama, progress=lambda *step: steps.append(step)
    )
    assert steps == [("evaluate", 5, 12), ("evaluate", 10, 12), ("evaluate", 12, 12)]
    assert parts.kl_nats == pytest.approx(whole.kl_nats, rel=1e-4)
    assert parts.perplexity == pytest.approx(whole.perplexity, rel=1e-6)


def test_the_same_figures_with_weights_in_files(
    compressed_llama: Path, tiny_llama: Path, unseen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trueaxis.scratch.SMALLEST", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made: list[Scratch] = []

    def within(folder: Path, memory: int | None) -> Scratch:
        made.append(scratch_in(folder, memory))
        return made[-1]

    monkeypatch.setattr("trueaxis.evaluation.scratch_in", within)
    found = [
        trueaxis.evaluate(compressed_llama, tokens=unseen, reference=tiny_llama, memory=memory) for memory in (None, 0)
    ]
    assert found[0] == found[1]
    assert made[0].spilled_bytes == 0
    assert made[1].spilled_bytes >= 2 * 4 * trueaxis.inspect(compressed_llama)["parameters"]
    assert not list(tmp_path.iterdir())


def test_original_alone_and_against_itself(tiny_llama: Path, unseen: Path) -> None:
    alone = trueaxis.evaluate(tiny_llama, tokens=unseen)
    assert (alone.kl_nats, alone.kl_interval, alone.top1_agreement, alone.overlap) == (None,) * 4
    itself = trueaxis.evaluate(tiny_llama, tokens=unseen, reference=tiny_llama)
    assert itself.perplexity == alone.perplexity
    assert itself.kl_nats == 0
    assert itself.top1_agreement == 1


def test_calibration_text_is_refused_unless_allowed(
    compressed_llama: Path, tokens: Path, unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(compressed_llama), "--tokens", str(tokens)]) == 1
    assert "100.0% of this text was calibrated on, at most 5% may be" in capsys.readouterr().err
    assert main(["eval", str(compressed_llama), "--tokens", str(tokens), "--allow-overlap", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["overlap"] == 1
    # One sequence in fifty: the 2 % pass the sketch's limit but not that of the statistics.
    mixed = np.concatenate([np.load(unseen)[:, :64], np.random.default_rng(2).integers(0, 128, (37, 64))])
    mixed = np.concatenate([mixed, np.load(tokens)[:1]])
    np.save(tmp_path / "mixed.npy", mixed)
    arguments = ["eval", str(compressed_llama), "--tokens", str(tmp_path / "mixed.npy")]
    assert main(arguments) == 0
    assert "overlap with the calibration text: " in capsys.readouterr().out
    assert main([*arguments, "--statistics", str(compressed_llama.parent / "statistics.safetensors")]) == 1
    assert "at most 1% may be" in capsys.readouterr().err


def test_statistics_of_other_text_are_refused(compressed_llama: Path, tiny_llama: Path, unseen: Path) -> None:
    from trueaxis.metric.calibrate import calibrate
    from trueaxis.model.checkpoint import Checkpoint

    ids = np.random.default_rng(3).integers(0, 128, (20, 64))
    other = compressed_llama.parent / "other.safetensors"
    calibrate(Checkpoint.open(tiny_llama), ids, seed=0).save(other)
    with pytest.raises(CalibrationError, match=r"was calibrated on other text than these statistics"):
        trueaxis.evaluate(compressed_llama, tokens=unseen, statistics=other)
    assert trueaxis.evaluate(tiny_llama, tokens=unseen, statistics=other).overlap == 0


def test_bad_input_is_named(compressed_llama: Path, tied_llama: Path, tmp_path: Path, unseen: Path) -> None:
    ids = np.load(unseen)
    for arguments in ({}, {"tokens": ids, "text": ["a.txt"]}):
        with pytest.raises(CalibrationError, match=r"either text files \(--text\) or token ids"):
            trueaxis.evaluate(compressed_llama, **arguments)
    with pytest.raises(CalibrationError, match=r"found 1000, but the vocabulary of .* has 128 tokens"):
        trueaxis.evaluate(compressed_llama, tokens=np.where(ids == 7, 1000, ids))
    with pytest.raises(CalibrationError, match=r"sequences of 1 tokens predict nothing"):
        trueaxis.evaluate(compressed_llama, tokens=ids[:, :1])
    with pytest.raises(CalibrationError, match=r"has no tokenizer"):
        trueaxis.evaluate(compressed_llama, text=[unseen])
    with pytest.raises(trueaxis.CheckpointError):
        trueaxis.evaluate(tmp_path, tokens=ids)
    shutil.copytree(tied_llama, tmp_path / "encoder")
    config = json.loads((tied_llama / "config.json").read_text())
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    with pytest.raises(TrueaxisError, match=r"BertModel is no causal language model"):
        trueaxis.evaluate(tmp_path / "encoder", tokens=ids)


def test_reference_of_another_vocabulary(compressed_llama: Path, unseen: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=130, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "other")
    with pytest.raises(TrueaxisError, match=r"a vocabulary of 130 tokens, the model 128"):
        trueaxis.evaluate(compressed_llama, tokens=unseen, reference=tmp_path / "other")


def test_the_interval_covers_the_mean_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = interval_of_mean(generator.gamma(2.0, 1.0, 40))
        assert found is not None
        hits += found[0] <= 2 <= found[1]
    assert 0.88 <= hits / 200 <= 0.99
    assert interval_of_mean(np.ones(1)) is None


def test_the_module_does_not_hide_the_function() -> None:
    import importlib

    importlib.import_module("trueaxis.compress")
    assert callable(trueaxis.compress)
