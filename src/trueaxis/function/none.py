"""f = 0: the whole weight is the residual."""

from __future__ import annotations

from trueaxis.recipe import NoFunction
from trueaxis.types import Aligned, Split


def no_function(stage: NoFunction, aligned: Aligned) -> Split:
    """r = W. In place: nothing is copied."""
    return Split(aligned.weight)


FUNCTIONS = {NoFunction: no_function}
