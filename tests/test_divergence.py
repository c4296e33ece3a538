"""Divergence control: on synthetic models of KL, and on a model through the command."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trueaxis
from trueaxis.cli import main
from trueaxis.divergence import TRIALS, smallest_within
from trueaxis.types import CalibrationError, TrueaxisError


def searched(kl: Callable[[float], float], limit: float, least_bits: float = 0.0) -> tuple[float, int]:
    """(bits found, trials)."""
    tried: list[float] = []

    def trial(bits: float) -> tuple[float, float] | None:
        tried.append(bits)
        return None if bits < least_bits else (bits, kl(bits))

    return smallest_within(trial, limit), len(tried)


@pytest.mark.parametrize("slope", [1.0, 1.386, 2.5])
@pytest.mark.parametrize("limit", [1e-4, 0.01, 0.1, 1.0])
def test_exponential_divergence_is_met_closely_and_soon(slope: float, limit: float) -> None:
    bits, trials = searched(lambda bits: 3 * math.exp(-slope * (bits - 1)), limit)
    assert 0.95 * limit <= 3 * math.exp(-slope * (bits - 1)) <= limit
    assert trials <= 6


@pytest.mark.parametrize("seed", range(20))
def test_rough_divergence_stays_within_the_limit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.normal(scale=0.03, size=1 << 12)

    def kl(bits: float) -> float:
        return 2 * 4.0**-bits * math.exp(noise[int(bits * 200)]) + 0.1 * math.exp(-3 * bits)

    limit = 10 ** rng.uniform(-4, -1)
    bits, trials = searched(kl, limit)
    assert 0.8 * limit <= kl(bits) <= limit
    assert trials <= TRIALS


def test_a_limit_that_every_file_meets_ends_near_the_smallest() -> None:
    bits, _ = searched(lambda bits: 0.01, 1.0, least_bits=0.8)
    assert 0.8 <= bits < 0.82


def test_a_limit_out_of_reach_says_how_close_it_came() -> None:
    with pytest.raises(TrueaxisError, match=r"within 0\.001 nats, the closest is at 0\.5"):
        searched(lambda bits: 0.5, 0.001)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("divergence") / "unseen.npy"
    np.save(path, np.random.default_rng(1).integers(0, 128, (12, 80)))
    return path


def test_command_prints_size_and_divergence(
    tiny_llama: Path, compressed_llama: Path, unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statistics = compressed_llama.parent / "statistics.safetensors"
    arguments = ["compress", str(tiny_llama), str(tmp_path / "out"), "--max-kl", "0.01", "--evaluation", str(unseen)]
    assert main([*arguments, "--statistics", str(statistics)]) == 0
    text = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "trueaxis.json").read_text())
    found = trueaxis.evaluate(tmp_path / "out", tokens=unseen, reference=tiny_llama)
    assert found.kl_nats is not None and 0.008 <= found.kl_nats <= 0.01
    assert report["evaluation"]["kl_nats"] == pytest.approx(found.kl_nats, rel=1e-3)
    assert f"{report['file_bytes']:,} bytes" in text
    assert f"KL {found.kl_nats:.5f} nats per token" in text and "at most 0.01 asked for" in text


def test_calibration_text_is_refused_before_anything_is_fitted(
    tiny_llama: Path, compressed_llama: Path, tokens: Path, tmp_path: Path
) -> None:
    def progress(stage: str, done: int, total: int) -> None:
        assert stage != "search"

    with pytest.raises(CalibrationError, match=r"100\.0% of the evaluation text was calibrated on, at most 1%"):
        trueaxis.compress(
            tiny_llama, tmp_path / "out", max_kl=0.1, evaluation=[tokens], progress=progress,
            statistics=compressed_llama.parent / "statistics.safetensors",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_targets_exclude_each_other_and_text_belongs_to_a_divergence(
    tiny_llama: Path, unseen: Path, tmp_path: Path
) -> None:
    for arguments in ({"max_kl": 0.1, "bits": 4}, {"max_kl": 0.1, "size": 10**6}):
        with pytest.raises(TrueaxisError, match="give one target"):
            trueaxis.compress(tiny_llama, "out", evaluation=[unseen], **arguments)
    for arguments in ({"max_kl": 0.1}, {"bits": 4, "evaluation": [unseen]}):
        with pytest.raises(TrueaxisError, match="go together"):
            trueaxis.compress(tiny_llama, "out", **arguments)
    for value in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(TrueaxisError, match="max_kl: expected a positive number"):
            trueaxis.compress(tiny_llama, "out", max_kl=value, evaluation=[unseen])
    np.save(tmp_path / "shorter.npy", np.load(unseen)[:, :-1])
    with pytest.raises(CalibrationError, match=r"as \.npy files of token ids of one length"):
        trueaxis.compress(tiny_llama, "out", max_kl=0.1, evaluation=[unseen, tmp_path / "shorter.npy"])
