"""The measures behind the claims on samples whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trueaxis
from trueaxis.analyze import journey
from trueaxis.analyze.axes import conditional_energies, degrees, inside
from trueaxis.analyze.claim import Claim, Measured, judge
from trueaxis.analyze.halves import balanced_halves, interval
from trueaxis.analyze.quantizers import uniform_losses
from trueaxis.analyze.rank import dimensions
from trueaxis.metric.metric import water_level


def claim(holds: float, fails: float) -> Claim:
    return Claim("name", "topic", "statement", "unit", holds, fails, lambda subject: Measured(None))


@pytest.mark.parametrize(
    ("holds", "fails", "value", "verdict"),
    [
        (0.5, 0.2, 0.6, "holds"),
        (0.5, 0.2, 0.1, "does not hold"),
        (0.5, 0.2, 0.3, "undecided"),
        (0.2, 0.5, 0.1, "holds"),
        (0.2, 0.5, 0.6, "does not hold"),
        (0.2, 0.5, 0.3, "undecided"),
    ],
)
def test_verdict(holds: float, fails: float, value: float, verdict: str) -> None:
    assert judge(claim(holds, fails), Measured(np.full(8, value))).verdict == verdict


def test_an_interval_that_reaches_back_decides_nothing() -> None:
    wide = 0.6 + np.array([-1, 1] * 4)
    assert judge(claim(0.5, 0.2), Measured(wide)).verdict == "undecided"


def test_no_number_is_undecided_with_its_reason() -> None:
    assert judge(claim(0.5, 0.2), Measured(None, {}, "too few")).reason == "too few"
    finding = judge(claim(0.5, 0.2), Measured(np.full(8, np.inf)))
    assert finding.verdict == "undecided" and "finite" in str(finding.reason)


def test_halves_give_the_exact_variance_of_a_mean() -> None:
    """Of 7 pairs: Σ (a − b)² / 4 over 7², whatever the values."""
    values = np.random.default_rng(0).normal(size=14)
    halves = np.array([values[half.fitted].mean() for half in balanced_halves()])
    low, high = interval(halves)
    assert (low + high) / 2 == pytest.approx(values.mean())
    pairs = values.reshape(7, 2)
    exact = np.sqrt(np.square(pairs[:, 0] - pairs[:, 1]).sum() / 4) / 7
    assert (high - low) / 2 == pytest.approx(2.365 * exact)


def test_halves_of_rows_are_even() -> None:
    for half in balanced_halves():
        assert half.rows(140).sum() == 70


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_dimension_of_a_flat_sheet(dimension: int) -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(size=(1500, dimension)) @ np.linalg.qr(rng.normal(size=(20, dimension)))[0].T
    for found in dimensions(points).values():
        assert found == pytest.approx(dimension, rel=0.15)


def test_inside_is_zero_for_random_spaces_and_one_for_its_own() -> None:
    rng = np.random.default_rng(2)
    axes = np.linalg.qr(rng.normal(size=(256, 256)))[0]
    space = np.linalg.qr(rng.normal(size=(256, 32)))[0].T
    assert abs(inside(space, np.linalg.qr(rng.normal(size=(256, 32)))[0].T)) < 0.05
    assert inside(axes, axes[40:72]) == pytest.approx(1)


def test_angles_are_right_between_a_space_and_axes_turned_out_of_it() -> None:
    turned = np.eye(8)
    turned[:2, :2] = turned[:2, 2:4] = np.eye(2) / np.sqrt(2)  # half way between the first two axes and the next two
    turned[2:4, :2], turned[2:4, 2:4] = np.eye(2) / np.sqrt(2), -np.eye(2) / np.sqrt(2)
    assert degrees(turned, np.eye(8)[:2]) == pytest.approx(45)
    assert degrees(np.eye(8), np.eye(8)[:2]) == pytest.approx(0, abs=1e-6)
    assert degrees(np.eye(8)[2:], np.eye(8)[:2]) == pytest.approx(90)


def test_conditional_energies_multiply_to_the_determinant() -> None:
    rng = np.random.default_rng(3)
    moment = np.cov(rng.normal(size=(12, 500)) * np.arange(1, 13)[:, None])
    turned = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    one, other = (np.log(conditional_energies(m)).sum() for m in (moment, turned @ moment @ turned.T))
    assert one == pytest.approx(other, abs=0.1)  # up to damping
    assert one == pytest.approx(np.linalg.slogdet(moment)[1], abs=0.1)


def test_water_level_meets_its_distortion() -> None:
    variances = np.random.default_rng(4).uniform(size=50)
    level = water_level(variances, 3.0)
    assert np.minimum(variances, level).sum() == pytest.approx(3.0)
    assert water_level(variances, 100.0) == np.inf


def test_uniform_loses_on_heavy_tails_but_not_behind_a_coder() -> None:
    """Against Lloyd–Max at four levels: Gaussian 0.0077 bits, Laplacian 0.079 (Max 1960; Paez & Glisson 1972)."""
    rng = np.random.default_rng(5)
    gaussian, laplacian = uniform_losses(rng.normal(size=20000)), uniform_losses(rng.laplace(size=20000) / np.sqrt(2))
    assert gaussian["uniform_loss_bits"] == pytest.approx(0.0077, abs=0.006)
    assert laplacian["uniform_loss_bits"] == pytest.approx(0.079, abs=0.02)
    assert gaussian["coded_uniform_loss_bits"] < 0.02 and laplacian["coded_uniform_loss_bits"] < 0.02


def test_missing_library_and_too_little_text_are_said(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "few.npy", np.zeros((13, 32), np.int64))
    with pytest.raises(trueaxis.CalibrationError, match=r"too little text: 13 sequences of 32 tokens; at least 14"):
        trueaxis.analyze(tiny_llama, text=[tmp_path / "few.npy"])
    monkeypatch.setattr(journey, "find_spec", lambda name: None)
    with pytest.raises(trueaxis.TrueaxisError, match=r"pip install 'trueaxis\[analyze\]'"):
        trueaxis.analyze(tiny_llama)
