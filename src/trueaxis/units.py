"""Units: seconds that this machine needs for one unit of each kind of work, measured on a few matrices.

    shapes of a model ─▶ the real functions on random matrices of such shapes, one thread ─▶ seconds per unit

Large shapes are cut down: a unit costs about the same from a few hundred rows and columns on. Time of the processor
counts, and the best of a few repetitions, since whatever else runs on a machine only ever makes them slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from trueaxis.align.basis import joint
from trueaxis.align.estimate import Term
from trueaxis.assemble import count_symbols
from trueaxis.entropy.model import fit_tables
from trueaxis.entropy.stream import pack_residual
from trueaxis.likelihood import Prediction
from trueaxis.metric.metric import damped_cholesky
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
HEADS, SIDE = 4, 64
REPETITIONS = 3
C = 1.0  # steps of about the weights' own deviation: two bits or so


@dataclass(frozen=True)
class Units:
    """Seconds per unit of `Work`, on one processor."""

    products: float
    doubles: float
    factors: float
    spectra: float
    logits: float
    drawn: float
    passed: float
    attended: float
    turned: float
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
    return Units(
        **mean, logits=_seconds(lambda: prediction.kl_nats(logits)) / logits.numel(),
        drawn=_seconds(lambda: _drawn(logits)) / logits.numel(), attended=_of_attention(), turned=_of_axes(),
    )  # fmt: skip


def _drawn(logits: torch.Tensor) -> None:
    """What gradient.py does with logits, there and back."""
    leaf = logits.clone().requires_grad_()
    shares = logits.softmax(-1)
    labels = torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(0))
    (shares * (1 - shares)).sum(0, dtype=torch.float64)
    leaf.log_softmax(-1).gather(1, labels).sum().backward()


def _of_attention() -> float:
    """Per multiplication and addition, as if none were left out."""
    queries = torch.from_numpy(_random(HEADS * TOKENS, SIDE)).reshape(1, HEADS, TOKENS, SIDE)
    attend = torch.nn.functional.scaled_dot_product_attention
    return _seconds(lambda: attend(queries, queries, queries, is_causal=True)) / (4 * HEADS * TOKENS**2 * SIDE)


def _of_axes() -> float:
    """Of one key-value head that two query heads read."""
    covariances = [found @ found.T / TOKENS for found in np.split(_random(3 * SIDE, TOKENS).astype(np.float64), 3)]
    writer, *readers = (Term(found, TOKENS, None, 1.0) for found in covariances)
    terms = [writer, *(replace(one, moment=covariances[0]) for one in readers)]
    return _seconds(lambda: joint(terms, 1.0, 0))


def _of_shape(m: int, n: int, recipe: Recipe) -> dict[str, float]:
    weight, tokens = torch.from_numpy(_random(m, n)), torch.from_numpy(_random(TOKENS, n))
    moment = (tokens.T @ tokens).double().numpy() + TOKENS * np.eye(n)
    half = weight.bfloat16()
    stage = reference_for(recipe.quantize)
    plan = plan_feedback(stage, weight.numpy(), Metric(moment), lambda damping: factorize(moment, damping))
    wide, wider = tokens.double(), weight.double()
    outputs = torch.from_numpy(_random(TOKENS, m))
    tables = settled_tables(EFFORTS[stage.effort].trellis, stage.rate_weight)
    quantized = quantize(plan, C * float(np.sqrt(moment.diagonal().mean())), tables).quantized
    coder = fit_tables(count_symbols([quantized]), tables.offsets)
    product = _seconds(lambda: tokens @ weight.T) / (2 * TOKENS * m * n)
    rounding = _seconds(lambda: quantize(plan, C * float(np.sqrt(moment.diagonal().mean())), tables))
    return {
        "products": product,
        "doubles": _seconds(lambda: wide @ wider.T) / (2 * TOKENS * m * n),
        "factors": _seconds(lambda: damped_cholesky(moment)) / (n**3 / 3),
        "spectra": _seconds(lambda: torch.linalg.eigvalsh(torch.from_numpy(moment))) / n**3,
        "passed": _seconds(lambda: torch.nn.functional.silu(outputs) * outputs) / (TOKENS * m),
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
