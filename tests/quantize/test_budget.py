"""Rate control on synthetic size functions: at most the target, as close below it as the function allows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trueaxis.quantize.budget import ENOUGH, LEARNING_PASSES, PASSES, finest_c, first_c, search
from trueaxis.quantize.plan import Planner
from trueaxis.stages import Feedback, RoundToNearest
from trueaxis.types import Metric, TargetError, TrueaxisError, Weight

WEIGHTS = 1_000_000
FIXED = 5_000


@dataclass(frozen=True)
class File:
    file_bytes: int
    c: float


def gaussian_bytes(c: float) -> float:
    """Size of a file of `WEIGHTS` Gaussian weights with a floor of `FIXED` bytes."""
    return FIXED + WEIGHTS / 8 * 0.5 * math.log2(1 + 17 / (4 * c * c))


class Passes:
    """A size function that counts its calls; `size` gets (c, number of the pass)."""

    def __init__(self, size: Callable[[float, int], float]) -> None:
        self.size, self.calls = size, 0

    def __call__(self, c: float) -> File:
        self.calls += 1
        return File(int(self.size(c, self.calls)), c)


def settle(size: Callable[[float, int], float], target: int, start: float = 1.0) -> tuple[File, Passes]:
    run = Passes(size)
    return search(run, start, WEIGHTS, target, FIXED), run


@settings(max_examples=200, deadline=None)
@given(st.floats(0.1, 9), st.floats(-8, 8))
def test_smooth_sizes_are_met_closely_and_soon(bits: float, octaves_off: float) -> None:
    target = FIXED + int(bits * WEIGHTS / 8)
    found, run = settle(lambda c, _: gaussian_bytes(c), target, 2.0**octaves_off)
    assert ENOUGH * target <= found.file_bytes <= target
    assert run.calls <= PASSES


@pytest.mark.parametrize("decay", [0.3, 0.6])
@pytest.mark.parametrize("bits", [0.5, 2, 4])
def test_sizes_that_drift_while_tables_are_learned(decay: float, bits: float) -> None:
    target = FIXED + int(bits * WEIGHTS / 8)
    for start in (-0.2, 0.2):
        found, _ = settle(
            lambda c, n, start=start: gaussian_bytes(c) * (1 + start * decay ** min(n, LEARNING_PASSES)), target
        )
        assert ENOUGH * target <= found.file_bytes <= target


@pytest.mark.parametrize("seed", range(20))
def test_rough_sizes(seed: int) -> None:
    """Size falls in small stairs with noise on top, as rounding to grid codes makes it."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(scale=5e-4, size=1 << 12)
    target = FIXED + int(rng.uniform(0.3, 6) * WEIGHTS / 8)

    def size(c: float, _: int) -> float:
        stair = round(math.log2(c) * 64)
        return gaussian_bytes(2.0 ** (stair / 64)) * (1 + noise[stair % noise.size])

    found, _ = settle(size, target, 2.0 ** rng.uniform(-3, 3))
    assert 0.98 * target <= found.file_bytes <= target


@pytest.mark.parametrize("position", [-0.7, 0.01, 1.3])
def test_a_jump_over_the_target_ends_at_its_lower_edge(position: float) -> None:
    target = 100_000

    def size(c: float, _: int) -> float:
        octave = math.log2(c) - position
        return 110_000 - 2_000 * octave if octave < 0 else 95_000 - 2_000 * octave

    found, _ = settle(size, target)
    assert 0.94 * target <= found.file_bytes <= 95_000


def test_steep_and_flat_parts_of_one_function() -> None:
    """Up to 2.7 bits per weight and octave in the middle, where one is usual; nearly none at both ends."""

    def size(c: float, _: int) -> float:
        octave = math.log2(c)
        return 50_000 + 450_000 / (1 + math.exp(3 * (octave - 2)))

    for target in (60_000, 200_000, 480_000):
        found, _ = settle(size, target)
        assert ENOUGH * target <= found.file_bytes <= target


def test_what_it_returns_is_a_pass_it_made() -> None:
    made = []

    def run(c: float) -> File:
        made.append(File(int(gaussian_bytes(c)), c))
        return made[-1]

    assert search(run, 1.0, WEIGHTS, 300_000, FIXED) in made


def test_target_below_the_fixed_bytes_is_refused_after_one_pass_that_finds_the_minimum() -> None:
    run = Passes(lambda c, _: gaussian_bytes(c))
    with pytest.raises(TrueaxisError, match=f"4000 bytes.*about {FIXED} bytes"):
        search(run, 1.0, WEIGHTS, 4_000, FIXED)
    assert run.calls == 1


def test_target_below_the_smallest_file_says_the_minimum() -> None:
    with pytest.raises(TrueaxisError, match=r"target of 5600 bytes.*about 6000 bytes"):
        settle(lambda c, _: 6_000 + gaussian_bytes(c) - FIXED, 5_600)


def test_target_just_above_the_smallest_file_is_reached() -> None:
    for target in (6_010, 6_100, 7_000):
        found, _ = settle(lambda c, _: 6_000 + gaussian_bytes(c) - FIXED, target)
        assert ENOUGH * target <= found.file_bytes <= target


def test_target_above_every_size_ends_at_the_largest_found() -> None:
    """A file cannot be padded: where no step is small enough the result is what there is."""
    found, _ = settle(lambda c, _: min(gaussian_bytes(c), 400_000), 500_000)
    assert found.file_bytes == 400_000


def test_the_finest_c_is_never_undercut() -> None:
    """Below it indices leave the coder's range; what fits there is what there is."""
    run = Passes(lambda c, _: gaussian_bytes(c) if c >= 2.0**-16 else 10**9)
    found = search(run, 1.0, WEIGHTS, 10**7, FIXED, finest=2.0**-16)
    assert found.file_bytes == int(gaussian_bytes(2.0**-16))
    assert run.calls < PASSES
    with pytest.raises(TargetError):
        search(run, 2.0**-20, WEIGHTS, 100, FIXED, finest=2.0**-16)


def test_the_finest_c_keeps_the_largest_weight_in_range() -> None:
    weight = np.random.default_rng(0).normal(size=(24, 16)).astype(np.float32)
    plan = Planner(Feedback()).plan(Weight("w", weight.shape, "F32", "linear", "s"), weight, Metric(np.eye(16)))
    steps = 2 * finest_c([plan]) * plan.column_steps * plan.row_steps
    assert np.abs(weight / steps).max() == pytest.approx(2.0**22)


@pytest.mark.parametrize("target", [7, 31, 100])
def test_tiny_files(target: int) -> None:
    run = Passes(lambda c, _: 3 + round(64 / (1 + c)))
    found = search(run, 1.0, 100, target, 2)
    assert found.file_bytes <= target
    reachable = [n for n in range(3, 68) if n <= target]
    assert found.file_bytes >= max(reachable) - 1


@pytest.mark.parametrize("stage", [Feedback(), RoundToNearest()], ids=lambda stage: type(stage).__name__)
@pytest.mark.parametrize("bits", [1.0, 4.0])
def test_first_guess_is_near_for_gaussian_weights(stage: Feedback, bits: float) -> None:
    weight = np.random.default_rng(0).normal(size=(128, 64)).astype(np.float32)
    plan = Planner(stage).plan(Weight("w", weight.shape, "F32", "linear", "s"), weight, Metric(np.eye(64)))
    c = first_c([plan], bits * weight.size)
    scaled = weight / (2 * c * plan.column_steps * plan.row_steps)
    _, counts = np.unique(np.rint(scaled), return_counts=True)
    entropy = -(counts / counts.sum() * np.log2(counts / counts.sum())).sum()
    assert entropy == pytest.approx(bits, abs=0.2)


def test_a_size_that_falls_in_coarse_stairs_ends_soon_at_the_best_below() -> None:
    """As in a model of a few weights: no file lies within 0.3 % of the target, and no pass finds one."""

    def size(c: float, _: int) -> float:
        return 100_000 - 2_000 * math.floor(8 * math.log2(c))

    found, run = settle(size, 101_500)
    assert found.file_bytes == 100_000
    assert run.calls < PASSES
