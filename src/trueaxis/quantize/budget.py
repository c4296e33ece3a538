"""Rate control: the c whose file is at most the target and as little below it as possible.

    c ─▶ quantize all matrices, fit tables, encode, count bytes ─▶ next c

Every candidate is a real encoding; nothing is padded and nothing is estimated but the starting point. The first
passes also teach the coder's tables to the quantizer, so that the size at one c still drifts; after the learning
passes the tables that quantize stay as they are, size is a function of c, and the search closes in on the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

from trueaxis.quantize.plan import Plan
from trueaxis.types import TargetError

AIM = 0.9985  # of the target; what the search heads for
ENOUGH = 0.997  # of the target; less than this is searched on
PASSES = 14
OCTAVE_BITS = 0.85  # per weight and octave of c, to begin with: from 0.75 at 2 bits to 0.9 at 4
NARROW = 2.0**-11  # octaves of c: where the sizes at both ends of less than this miss, the tensors are too small to hit
LEARNING_PASSES = 2  # what passes learn changes the size by less than 0.03 % after so many
LARGEST_INDEX = 2.0**22  # at the finest c: a quarter of the coder's range, since feedback moves what is rounded
WIDEST = 20.0  # octaves of c above the first guess at which everything is zero


class Sized(Protocol):
    """Result of a pass."""

    @property
    def file_bytes(self) -> int:
        """Real bytes of the whole file."""
        ...


P = TypeVar("P", bound=Sized)


def first_c(plans: Sequence[Plan], target_bits: float) -> float:
    """c at which Gaussian columns would take `target_bits` in total, with ½ log₂(1 + 17 σ²/Δ²) bits per weight."""
    energies, counts = [], []
    for plan in plans:
        scaled = plan.in_steps()
        energies.append(np.einsum("ij,ij->j", scaled, scaled, dtype=np.float64) / (4 * scaled.shape[0]))
        counts.append(np.full(plan.weight.shape[1], plan.weight.shape[0]))
    energy, count = np.concatenate(energies), np.concatenate(counts)
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        bits = float((count * 0.5 * np.log2(1 + 17 * energy / 4.0**middle)).sum())
        low, high = (middle, high) if bits > target_bits else (low, middle)
    return 2.0**high


def finest_c(plans: Sequence[Plan]) -> float:
    """c below which the largest weights would leave the coder's range of indices; far finer than float16's steps."""
    largest = 0.0
    for plan in plans:
        scaled = plan.in_steps()
        largest = max(largest, float(scaled.max(initial=0.0)) / 2, -float(scaled.min(initial=0.0)) / 2)
    return largest / LARGEST_INDEX


@dataclass
class _Search(Generic[P]):
    """Bracket of log₂ c: `above` is too small a step (file above target), `below` fits."""

    target: int
    above: tuple[float, int] | None = None
    below: tuple[float, int] | None = None
    best: P | None = None
    slope: float = 0.0
    history: list[tuple[float, int]] = field(default_factory=list)

    def record(self, position: float, result: P) -> None:
        size = result.file_bytes
        if size <= self.target:
            self.below = position, size
            if self.best is None or size > self.best.file_bytes:
                self.best = result
        else:
            self.above = position, size
        if self.history and abs(position - self.history[-1][0]) > 1e-6:
            found = (size - self.history[-1][1]) / (position - self.history[-1][0])
            self.slope = found if found < 0 else self.slope
        self.history.append((position, size))

    @property
    def is_narrow(self) -> bool:
        """Whether a finer c cannot be told from those tried."""
        return self.above is not None and self.below is not None and 0 < self.below[0] - self.above[0] < NARROW

    def next(self) -> float:
        position, size = self.history[-1]
        step = (self.target * AIM - size) / self.slope
        guess = position + float(np.clip(step, -4.0, 4.0))
        if self.above and self.below and self.below[0] > self.above[0]:
            low, high = self.above[0], self.below[0]
            if not low < guess < high:
                guess = (low + high) / 2
        return guess


def search(
    run: Callable[[float], P],
    start: float,
    weights: int,
    target: int,
    fixed: int,
    learning_passes: int = LEARNING_PASSES,
    finest: float = 0.0,
    taught: int = LEARNING_PASSES,
) -> P:
    """Runs passes until the file fits the target closely.

    Args:
        run: One pass at c; later passes may profit from tables learned by earlier ones.
        start: First c.
        weights: Quantized weights, for the first slope.
        target: Bytes not to exceed.
        fixed: Bytes that no step changes, for the message of an unreachable target.
        learning_passes: Passes after which size is a function of c.
        finest: Smallest c to try; where even that leaves the file below the target, that file is the result.
        taught: Passes that must have taught the tables before a file that fits is the result.

    Raises:
        TargetError: Even with every quantized weight zero the file is above the target; says the minimum.
    """
    state: _Search[P] = _Search(target, slope=-OCTAVE_BITS * weights / 8)
    floor = math.log2(finest) if finest > 0 else -math.inf
    position = first = max(math.log2(start), floor)
    for number in range(PASSES if fixed <= target else 0):
        result = run(2.0**position)
        state.record(position, result)
        spent = result.file_bytes >= target * ENOUGH or position == floor
        fits = spent and result.file_bytes <= target
        if fits and number >= taught:
            return result
        if number < learning_passes:
            state.best = state.above = state.below = None
        if state.is_narrow:
            break
        position = max(state.next(), floor)
        if position > first + WIDEST:
            break
    if state.best is not None:
        return state.best
    smallest = run(2.0 ** (first + WIDEST))
    if smallest.file_bytes > target:
        raise TargetError(_too_small(target, smallest.file_bytes))
    return smallest


def _too_small(target: int, minimum: int) -> str:
    return (
        f"target of {target} bytes is below the smallest reachable size, about {minimum} bytes: norms, headers and "
        "side information need that much; raise --bits or --size"
    )
