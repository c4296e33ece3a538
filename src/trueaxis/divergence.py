"""Divergence control: the smallest file whose KL from the original stays within a bound.

    bits per parameter ─▶ files ─▶ KL on text apart from the calibration text ─▶ next bits per parameter

ln KL falls almost linearly with the rate, by 2 ln 2 per bit in theory, so the next trial is where a line through the
nearest trials crosses the bound; where that leaves the bracket, it is the bracket's middle.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from trueaxis.assemble import Assembled, write_files
from trueaxis.evaluation import Comparison, read_evaluation, require_unseen
from trueaxis.preparation import Prepared
from trueaxis.types import Evaluation, TargetError, TrueaxisError

ASSUMED_BITS = 4.0  # per parameter: the first trial, and the rate that axes are judged at while none is known
MOST_BITS = 16.0
NATS_PER_BIT = -2 * math.log(2)  # slope of ln KL in theory
AIM, ENOUGH = 0.975, 0.95  # of the bound: where a trial aims, and from where on it is close enough
NARROW = 0.01  # bits: a bracket that ends the search
TRIALS = 12

P = TypeVar("P")


def smallest_within(trial: Callable[[float], tuple[P, float] | None], limit: float) -> P:
    """Searches the lowest rate whose KL is at most `limit`.

    Args:
        trial: What comes out at so many bits per parameter, and its KL in nats; None where no file is that small.
        limit: Nats per token.

    Returns:
        What the best trial gave.

    Raises:
        TrueaxisError: Even at 16 bits the KL is above the limit.
    """
    low = high = None  # (bits, ln(KL / limit)): above the limit, within it
    best, bits, least = None, ASSUMED_BITS, math.inf
    for _ in range(TRIALS):
        found = trial(bits)
        excess = math.inf if found is None else math.log(max(found[1], 1e-12) / limit)
        least = min(least, math.inf if found is None else found[1])
        if found is not None and excess <= 0:
            best, high = found[0], (bits, excess)
            if excess >= math.log(ENOUGH):
                break
        else:
            low = (bits, excess)
        if (low and high and high[0] - low[0] < NARROW) or (high is None and bits >= MOST_BITS):
            break
        bits = _next(bits, excess, low, high)
    if best is None:
        raise TrueaxisError(
            f"max_kl: no file of up to {MOST_BITS:g} bits per parameter comes within {limit:g} nats, "
            f"the closest is at {least:.3g}; raise --max-kl"
        )
    return best


def _next(bits: float, excess: float, low: tuple[float, float] | None, high: tuple[float, float] | None) -> float:
    aim = math.log(AIM)
    if low and high:
        if not math.isfinite(low[1]):
            return (low[0] + high[0]) / 2
        guess = low[0] + (aim - low[1]) * (high[0] - low[0]) / (high[1] - low[1])
        margin = (high[0] - low[0]) / 16  # keeps an end from standing still
        return min(max(guess, low[0] + margin), high[0] - margin)
    step = 2.0 if not math.isfinite(excess) else (aim - excess) / NATS_PER_BIT
    return min(max(bits + 1.05 * step, bits / 2), bits + 4.0, MOST_BITS)


def compress_within(
    prepared: Prepared, max_kl: float, evaluation: Sequence[str | Path], device: str
) -> tuple[Assembled, Evaluation]:
    """The smallest files within `max_kl` nats per token of the original, and how they fare on the text.

    Args:
        prepared: The checkpoint.
        max_kl: Nats per token.
        evaluation: Text files or one .npy of token ids.
        device: Torch device that runs both models.

    Raises:
        CalibrationError: The text was calibrated on.
        TrueaxisError: No file is close enough.
    """
    tokens = read_evaluation(prepared.checkpoint.path, evaluation)
    require_unseen(tokens, prepared.statistics)
    compare = Comparison(prepared.checkpoint.path, tokens, device, prepared.progress, prepared.checkpoint.scratch)

    def trial(bits: float) -> tuple[tuple[Assembled, Evaluation], float] | None:
        try:
            files = prepared.fit(prepared.checkpoint.bytes_at(bits))
        except TargetError:  # not even zeros are that small
            return None
        with tempfile.TemporaryDirectory() as directory:
            write_files(files, prepared.checkpoint, Path(directory))
            found = compare(directory)
        assert found.kl_nats is not None  # compared with a reference
        return (files, found), found.kl_nats

    return smallest_within(trial, max_kl)
