"""The checkpoint's own axes: the baseline of every other coordinate system, and free."""

from __future__ import annotations

from trueaxis.recipe import Identity
from trueaxis.types import Aligned, Array, Metric


def identity(stage: Identity, weight: Array, metric: Metric) -> Aligned:
    """W and its metric as they are. In place: nothing is copied."""
    return Aligned("identity", weight, metric)


ALIGNERS = {Identity: identity}
