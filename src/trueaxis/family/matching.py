"""Matching: channels and heads of a member in the order that the base has them in, before the difference is taken.

    cost [i, j] of member's channel i in the place of the base's j, in the metric ─▶ assignment ─▶ permutation, if it is
    one and takes away enough of the difference ─▶ checked on the model ─▶ a plain checkpoint of the same function

Hidden channels of an MLP are one problem each. Of attention, key-value heads are matched with the query heads that read
them, whose own order inside is found for every pair of key-value heads first.

Reference: Ainsworth, Hayase & Srinivasa, arXiv:2209.04836 (weight matching).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.align.attention import Attention, Rows, attention, put_heads
from trueaxis.align.gauge import LARGEST_KL_NATS, moved_nats
from trueaxis.align.network import Change, Network
from trueaxis.align.symmetry import channel_parts, hidden_channels, put_channels
from trueaxis.family.measured import Measured
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.staging import writing
from trueaxis.types import Array, Weight

if TYPE_CHECKING:
    import torch

LEAST_GAIN = 0.1  # of the difference's energy in the metric: a fine-tune's own channels nearly never gain as much


def matched(member: Measured) -> dict[str, Change]:
    """Changes that bring a member into the base's order; none where it is in it, or is not the better for it.

    Args:
        member: Measured.
    """
    network = replace(member.network, checkpoint=member.checkpoint)
    pairs = _Pairs(member, network)
    changes: dict[str, Change] = {}
    for down, writers in hidden_channels(network):
        if pairs.known([down, *writers]):
            cost = pairs.columns(down, 1) + sum(
                pairs.rows(Rows(weight, part), 1) for weight in writers for part in channel_parts(weight, down)
            )
            order = _better(cost)
            if order is not None:
                put_channels(changes, down, writers, order)
    for block in network.blocks:
        found = attention(network, block)
        if found is not None and pairs.known([found.query.weight, found.key.weight, found.value.weight, found.output]):
            _match_heads(changes, pairs, found)
    if changes and moved_nats(network, changes) >= LARGEST_KL_NATS:
        return {}  # positions that depend on the head, or another reason why order is no symmetry here
    return changes


def write_matched(member: Measured, changes: Mapping[str, Change], out: Path) -> Path:
    """A plain checkpoint with changes of its tensors, every value rounded as it was.

    Args:
        member: The original.
        changes: From `matched`.
        out: Directory to create.
    """
    import torch

    checkpoint = member.checkpoint
    weights = {weight.name: weight for weight in member.weights}
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.entries if name not in checkpoint.aliases}
    for name, change in changes.items():
        weight = weights.get(name)
        whole = tensors[name if weight is None else weight.tensor]
        part = whole if weight is None or weight.slice is None else whole[weight.slice]
        part = part.T if weight is not None and weight.transposed else part
        part.copy_(torch.from_numpy(change.tensor(part.float().numpy())))
    out.mkdir()
    return write_checkpoint(checkpoint, tensors, out)


def write_checkpoint(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor], out: Path) -> Path:
    """A directory with these tensors and all else that belongs to a checkpoint.

    Args:
        checkpoint: The original.
        tensors: By name.
        out: Directory that exists.
    """
    from safetensors.torch import save_file

    with writing(out):
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, out / "model.safetensors", {"format": "pt"}
        )
        (out / "config.json").write_text(json.dumps(dict(checkpoint.config), indent=2) + "\n")
        for file in checkpoint.files_to_copy():
            shutil.copyfile(file, out / file.name)
    return out


def _match_heads(changes: dict[str, Change], pairs: _Pairs, found: Attention) -> None:
    queries = pairs.rows(found.query, found.side) + pairs.columns(found.output, found.side)
    count, groups = queries.shape[0] // found.groups, found.groups
    own = pairs.rows(found.key, found.side) + pairs.rows(found.value, found.side)
    cost = own.copy()
    inside = np.zeros((count, count, groups), int)
    for i in range(count):
        for j in range(count):
            part = queries[i * groups : (i + 1) * groups, j * groups : (j + 1) * groups]
            inside[i, j] = _assigned(part)
            cost[i, j] += part[inside[i, j], np.arange(groups)].sum()
    order = _assigned(cost)
    heads = (order[:, None] * groups + inside[order, np.arange(count)]).ravel()
    before = np.trace(own) + np.trace(queries)
    after = own[order, np.arange(count)].sum() + queries[heads, np.arange(heads.size)].sum()
    if (heads != np.arange(heads.size)).any() and after < (1 - LEAST_GAIN) * before:
        put_heads(changes, found, order, heads)


class _Pairs:
    """What it costs to take parts of a member's matrices for parts of the base's.

    Args:
        member: Measured.
        network: Of the member itself.
    """

    def __init__(self, member: Measured, network: Network) -> None:
        self._member, self._network = member, network

    def known(self, weights: Sequence[Weight]) -> bool:
        """Whether the base has all of them, in the same shapes."""
        return all(self._member.moved(weight.tensor) for weight in weights)

    def rows(self, rows: Rows, side: int) -> Array:
        """Σ g (a − b) H (a − b)ᵀ of blocks of so many rows [member's, base's]."""
        ours, theirs = (matrix[rows.rows] for matrix in self._matrices(rows.weight))
        metric = self._network.metric(rows.weight)
        moment = np.eye(ours.shape[1]) if metric.second_moment is None else metric.second_moment
        return metric.sensitivity * _distances(_blocks(ours, side), _blocks(theirs, side), moment)

    def columns(self, weight: Weight, side: int) -> Array:
        """The same of columns, each as important as the input that it reads; inputs are the member's."""
        ours, theirs = (_blocks(matrix.T, side) for matrix in self._matrices(weight))
        moment = self._network.metric(weight).second_moment
        energies = np.ones(ours.shape[:2]) if moment is None else np.diag(moment).reshape(ours.shape[:2])
        total = np.zeros((len(ours), len(theirs)))
        for at in range(side):
            found = _distances(ours[:, at : at + 1], theirs[:, at : at + 1], None)
            total += energies[:, at, None] * found
        return self._network.metric(weight).sensitivity * total

    def _matrices(self, weight: Weight) -> tuple[Array, Array]:
        """A matrix of the member and the base's, float64 [m, n]."""
        ours = self._member.checkpoint.matrix(weight).double().numpy()
        return ours, ours - self._member.delta.matrix(weight).double().numpy()


def _blocks(matrix: Array, side: int) -> Array:
    return matrix.reshape(-1, side, matrix.shape[1])


def _distances(ours: Array, theirs: Array, moment: Array | None) -> Array:
    """Σ (a − b) H (a − b)ᵀ over the rows of every pair of blocks; never below zero."""

    def weighed(blocks: Array) -> Array:
        return blocks if moment is None else blocks @ moment

    one, other = weighed(ours).reshape(len(ours), -1), weighed(theirs)
    own = np.einsum("ij,ij->i", one, ours.reshape(len(ours), -1))
    their = np.einsum("ijk,ijk->i", other, theirs)
    cross = one @ theirs.reshape(len(theirs), -1).T
    return np.maximum(own[:, None] + their - 2 * cross, 0)


def _assigned(cost: Array) -> Array:
    """For every place j, which i takes it at the least cost in all."""
    from scipy.optimize import linear_sum_assignment

    places = np.arange(len(cost))
    if (cost.argmin(axis=0) == places).all():  # as of nearly every fine-tune; nothing needs to be solved
        return places
    return linear_sum_assignment(cost.T)[1]


def _better(cost: Array) -> Array | None:
    """The order of least cost, or None where it is the one there is or gains too little."""
    order = _assigned(cost)
    places = np.arange(order.size)
    gains = cost[order, places].sum() < (1 - LEAST_GAIN) * np.trace(cost)
    return order if gains and (order != places).any() else None
