"""The symmetries of a network, one function each: which spaces can change axes for free, and to which.

    residual   one rotation of the residual stream; norms fold into their readers      every writer and reader of it
    heads      one rotation per key-value head between values and output               V rows, O columns
    planes     one rotation per head between queries and keys, as positions allow      Q rows, K rows
    order      a permutation of the attention heads, by energy                          Q, K, V rows, O columns
    channels   a permutation of the MLP's hidden channels, by energy                    gate and up rows, down columns

Each takes the network and a choice of axes and gives a `Part`: changes of tensors, or the reason why there are none.
What stays exact for which family is listed in docs/theory.md; every claim is checked on the model itself in gauge.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from trueaxis.align.attention import heads, order, planes
from trueaxis.align.maps import Permute
from trueaxis.align.network import Change, Network
from trueaxis.align.part import Part, join, within
from trueaxis.align.residual import residual
from trueaxis.types import Array, Weight

CHANNEL_WRITERS = ("gate", "up", "fused:gate,up")


def channels(network: Network, axes: str) -> Part:
    """Hidden channels of every MLP by descending energy, so that steps become a smooth function of the index."""
    changes: dict[str, Change] = {}
    for down, writers in hidden_channels(network):
        second_moment = network.moment(down)
        if second_moment is not None:
            put_channels(changes, down, writers, np.argsort(-np.diag(second_moment), kind="stable"))
    return Part("channels", "by energy", changes) if changes else Part("channels", "no hidden channels are known")


def hidden_channels(network: Network) -> Iterator[tuple[Weight, list[Weight]]]:
    """Of every MLP, or expert, whose channels are known: what reads them, and what writes them."""
    for block in network.blocks:
        for down in block:
            if down.writes != "residual" or not (down.space or "").endswith(".hidden"):
                continue
            if writers := _channel_writers(block, down):
                yield down, writers


def channel_parts(weight: Weight, down: Weight) -> list[Array]:
    """Rows of a writer that write the channels in their order: all of them, or of two fused ones each half."""
    return np.split(np.arange(weight.shape[0]), weight.shape[0] // down.shape[1])


def put_channels(changes: dict[str, Change], down: Weight, writers: Sequence[Weight], order: Array) -> None:
    """Channels in another order: the new i is the old order[i]."""
    step = Permute(order)
    join(changes, down.name, Change("channels", (step,)))
    for weight in writers:
        for name in filter(None, (weight.name, weight.bias)):
            for part in channel_parts(weight, down):
                join(changes, name, Change("channels", (), (within(part, step, weight.shape[0]),)))


SYMMETRIES: dict[str, Callable[[Network, str], Part]] = {
    "residual": residual,
    "heads": heads,
    "planes": planes,
    "order": order,
    "channels": channels,
}


def _channel_writers(block: Sequence[Weight], down: Weight) -> list[Weight]:
    """What writes the channels that a matrix reads: of its own MLP or expert, or of the block where that has one."""
    found = [weight for weight in block if weight.writes in CHANNEL_WRITERS]
    own = [weight for weight in found if _owner(weight) == _owner(down)]
    readers = [weight for weight in block if (weight.space or "").endswith(".hidden")]
    return own or (found if len(readers) == 1 else [])


def _owner(weight: Weight) -> tuple[str, int | None] | None:
    """The MLP, or the expert, that a matrix belongs to; None where the running model does not have it."""
    if weight.place is None:
        return None
    module, expert = weight.place.module, weight.place.expert
    return (module.rpartition(".")[0], None) if expert is None else (module, expert)
