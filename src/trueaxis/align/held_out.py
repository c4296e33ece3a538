"""Held out: statistics that axes are not learned from, and what a network costs when they are the judge.

    calibration text ─▶ its last quarter ─▶ held;  statistics − held ─▶ learned from
    alignment ─▶ every matrix quantized with the steps of the one part, its D measured by the other ─▶ bits + λ·D

Without text to hold out, text is sampled from the model. Evaluation text is never seen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from trueaxis import _core
from trueaxis.align.estimate import SLOPE
from trueaxis.align.network import Alignment, Change, Network
from trueaxis.align.part import join
from trueaxis.entropy.model import CLASSES, MAGNITUDES, fit_tables
from trueaxis.entropy.stream import segment
from trueaxis.metric.calibrate import calibrate, hash_tokens, minimum_tokens
from trueaxis.metric.metric import distance
from trueaxis.metric.sample import sample_tokens
from trueaxis.metric.source import read_tokens
from trueaxis.metric.statistics import Statistics, without
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import Planner
from trueaxis.quantize.start import settled_tables
from trueaxis.stages import Feedback
from trueaxis.types import Array

SHARE = 4  # one of so many sequences is held out
JUDGE = Feedback(effort="scalar")


def divided(network: Network) -> tuple[Network, Network, Array]:
    """The network with the statistics to learn from, with those held out, and the tokens to learn from."""
    texts = read_tokens(network.checkpoint.path, network.text) if network.text else []
    minimum = minimum_tokens(network.weights)
    tokens = texts[0] if texts else np.zeros((0, 1), np.int64)
    first = tokens.shape[0] - max(tokens.shape[0] // SHARE, -(-minimum // tokens.shape[1]))
    if first <= 0:
        sampled = sample_tokens(network.checkpoint, minimum, seed=network.seed + 1)
        held = calibrate(network.checkpoint, sampled, seed=network.seed)
        return network, _measured_by(network, held), tokens if tokens.size else sampled
    held = calibrate(network.checkpoint, tokens, seed=network.seed, sequences=range(first, tokens.shape[0]))
    learned_from = network.statistics
    if _contains(learned_from, hash_tokens(tokens), first):
        learned_from = without(learned_from, held)
    return _measured_by(network, learned_from), _measured_by(network, held), tokens[:first]


def coded_cost(seen: Network, held: Network, alignment: Alignment) -> float:
    """Bits per weight of the scalar quantizer and its coder, plus λ·D on held-out statistics, at the water level.

    Args:
        seen: Its statistics set steps and order.
        held: Its statistics measure the error.
        alignment: The axes.
    """
    planner, tables = Planner(JUDGE), settled_tables(0, JUDGE.rate_weight)
    c = float(np.sqrt(seen.water))
    matrices, lost, moments, held_moments = [], 0.0, {}, {}
    for weight in seen.weights:
        if weight.role == "exact":
            continue
        matrix = seen.checkpoint.matrix(weight).float().contiguous().numpy()
        aligned = alignment.aligned(weight, matrix, seen.metric(weight), moments)
        judged = alignment.aligned(weight, matrix, held.metric(weight), held_moments)
        outcome = quantize(planner.plan(weight, aligned.weight, aligned.metric), c, tables)
        lost += seen.metric(weight).sensitivity * distance(outcome.errors, judged.metric)
        matrices.append(segment(outcome.quantized))
    fitted = fit_tables(_core.count_symbols(CLASSES, MAGNITUDES[-1], matrices), tables.offsets)
    bits = float(_core.stream_bits(fitted.coder, matrices))
    size = sum(weight.size for weight in seen.weights if weight.role != "exact")
    return float((bits + SLOPE * lost / seen.water) / size)


def turned(alignment: Alignment, changes: Mapping[str, Change]) -> Alignment:
    """An alignment with more changes after its own."""
    found = dict(alignment.changes)
    for name, change in changes.items():
        join(found, name, change)
    return replace(alignment, changes=found, checked={})


def _contains(statistics: Statistics, text: str, first: int) -> bool:
    return any(chunk.text == text and chunk.first <= first <= chunk.last for chunk in statistics.chunks)


def _measured_by(network: Network, statistics: Statistics) -> Network:
    return replace(network, statistics=replace(statistics, sensitivities=network.statistics.sensitivities))
