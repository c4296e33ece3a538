"""Which table an index is coded with: that of its own scale, or one for the whole layer.

    Quantized ─▶ the same integers with the scale codes of the recipe's coder

Pooled layers share the top classes, two per octave of a layer's mean |k|, where hardly any column of an embedding or
head lies; those stay classed, as they are under every recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from trueaxis.entropy.model import CLASSES
from trueaxis.stages import Rans, RansPooled
from trueaxis.types import Contexts, Quantized, Weight

POOLED_CLASSES = 8


def classed(stage: Rans, weight: Weight, matrix: Quantized) -> Quantized:
    """The scale codes that quantization measured. In place: nothing is copied."""
    return matrix


def pooled(stage: RansPooled, weight: Weight, matrix: Quantized) -> Quantized:
    """One class for all of a linear layer; other matrices as they are."""
    if weight.role != "linear":
        return matrix
    columns, rows = matrix.indices.shape
    octaves = np.log2(max(float(np.abs(matrix.indices).mean()), 2.0**-8))
    number = int(np.clip(np.rint(2 * octaves) + 1, 0, POOLED_CLASSES - 1)) + CLASSES - POOLED_CLASSES
    contexts = Contexts(np.zeros(rows, np.int32), np.full(columns, number, np.int32), 0)
    return replace(matrix, contexts=contexts)


POOLINGS: dict[type, Callable[[Any, Weight, Quantized], Quantized]] = {Rans: classed, RansPooled: pooled}
