"""Units: seconds that this machine needs for one unit of each kind of work, measured on a few matrices.

    shapes of a model ─▶ the real functions on random matrices of such shapes, one thread ─▶ seconds per unit

Large shapes are cut down: a unit costs about the same from a few hundred rows and columns on. Time of the processor
counts, and the best of a few repetitions, since whatever else runs on a machine only ever makes them slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from trueaxis.assemble import count_symbols
from trueaxis.entropy.model import fit_tables
from trueaxis.entropy.stream import pack_residual
from trueaxis.likelihood import Prediction
from trueaxis.parallel import one_thread
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import factorize, plan_feedback, reference_for
from trueaxis.quantize.start import settled_tables
from trueaxis.recipe import Recipe
from trueaxis.stages import EFFORTS
from trueaxis.types import Metric
from trueaxis.workload import Matrix, Work

LARGEST = 1024  # rows and columns of what is timed
TOKENS = 512
REPETITIONS = 3
C = 1.0  # steps of about the weights' own deviation: two bits or so


@dataclass(frozen=True)
class Units:
    """Seconds per unit of `Work`, on one processor."""

    products: float
    factors: float
    spectra: float
    logits: float
    rounded: float
    coded: float
    read: float

    def seconds(self, work: Work) -> float:
        """Of some work, one unit after another."""
        return sum(getattr(self, one.name) * getattr(work, one.name) for one in fields(Units))


@one_thread()
def measure_units(shapes: Sequence[Matrix], vocabulary: int, recipe: Recipe) -> Units:
    """Times every kind of unit on matrices like those of a model.

    Args:
        shapes: Of matrices that stand for all; each takes about half a second.
        vocabulary: Of the model.
        recipe: Whose rounding is timed.

    Returns:
        Means over the shapes.
    """
    found = [_of_shape(min(one.m, LARGEST), min(one.n, LARGEST), recipe) for one in shapes]
    mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    logits = torch.from_numpy(_random(64, max(vocabulary, 2)))
    prediction = Prediction(logits)
    return Units(**mean, logits=_seconds(lambda: prediction.kl_nats(logits)) / logits.numel())


def _of_shape(m: int, n: int, recipe: Recipe) -> dict[str, float]:
    weight, tokens = torch.from_numpy(_random(m, n)), torch.from_numpy(_random(TOKENS, n))
    moment = (tokens.T @ tokens).double().numpy() + TOKENS * np.eye(n)
    half = weight.bfloat16()
    stage = reference_for(recipe.quantize)
    plan = plan_feedback(stage, weight.numpy(), Metric(moment), lambda damping: factorize(moment, damping))
    tables = settled_tables(EFFORTS[stage.effort].trellis, stage.rate_weight)
    quantized = quantize(plan, C * float(np.sqrt(moment.diagonal().mean())), tables).quantized
    coder = fit_tables(count_symbols([quantized]), tables.offsets)
    product = _seconds(lambda: tokens @ weight.T) / (2 * TOKENS * m * n)
    rounding = _seconds(lambda: quantize(plan, C * float(np.sqrt(moment.diagonal().mean())), tables))
    return {
        "products": product,
        "factors": _seconds(lambda: np.linalg.cholesky(moment)) / (n**3 / 3),
        "spectra": _seconds(lambda: np.linalg.eigh(moment)) / n**3,
        "rounded": max(rounding - product * m * n * n, 0.0) / (m * n),
        "coded": _seconds(lambda: pack_residual(quantized, coder, recipe.entropy.lanes, recipe.entropy.chain))
        / (m * n),
        "read": _seconds(half.float) / (4 * m * n),
    }


def _random(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns), np.float32)


def _seconds(call: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPETITIONS):
        begun = time.thread_time()
        call()
        taken.append(time.thread_time() - begun)
    return min(taken)
