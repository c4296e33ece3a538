"""Tables to begin with: what the quantizer would learn on Gaussian columns of every scale class.

    Gaussian columns, one per class ─▶ quantize, count, fit ─▶ again, until code lengths and choices agree

A trellis and its code lengths settle together and slowly, and at low rates the two quantizers end up with very
different tables. Settling on synthetic columns costs a fraction of a second; a model's own passes then start close.
"""

from __future__ import annotations

import math

import numpy as np

from trueaxis import _core
from trueaxis.entropy.model import (
    CLASSES,
    CODES_PER_OCTAVE,
    MAGNITUDES,
    ZERO_CLASS,
    Tables,
    first_tables,
    offsets_from,
    tables_for,
)
from trueaxis.entropy.stream import segment
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import Plan
from trueaxis.types import Metric

ROWS = 2048
PASSES = 16
SEED = 0


def settled_tables(trellis: int, rate_weight: float) -> Tables:
    """Tables and offsets at which quantizing Gaussian columns with them gives the same tables again.

    Args:
        trellis: Trellis identifier.
        rate_weight: λ in scalar steps squared per bit.
    """
    mean_magnitude = 2.0 ** ((np.arange(CLASSES) - ZERO_CLASS) / CODES_PER_OCTAVE)
    deviation = 2 * mean_magnitude * math.sqrt(math.pi / 2)  # in fine steps, of which |k| counts two
    weight = (np.random.default_rng(SEED).standard_normal((ROWS, CLASSES)) * deviation).astype(np.float32)
    ones = np.ones(CLASSES)
    plan = Plan(
        weight, Metric(None), np.arange(CLASSES), None, ones, np.ones((ROWS, 1)), CLASSES, rate_weight, True, trellis
    )
    tables = first_tables()
    for _ in range(PASSES):
        outcome = quantize(plan, 1.0, tables)
        counts = _core.count_symbols(CLASSES, MAGNITUDES[-1], [segment(outcome.quantized)])
        offsets = offsets_from([(outcome.residual_sums, outcome.residual_counts)])
        tables = tables_for(counts, offsets, MAGNITUDES[-1])
    return tables
