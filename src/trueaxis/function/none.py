"""f = 0: the whole weight is the residual."""

from __future__ import annotations

from trueaxis.align.network import Network
from trueaxis.stages import NoFunction, Selected
from trueaxis.types import Aligned, Coded, Weight


def no_function(stage: NoFunction | Selected, network: Network) -> NoSplit:
    """r = W. In place: nothing is copied."""
    return NoSplit()


class NoSplit:
    """Call it with a matrix for what is quantized of it: all."""

    def __call__(self, weight: Weight, aligned: Aligned) -> tuple[Coded, ...]:
        return (Coded(weight, aligned.weight, aligned.metric),)
