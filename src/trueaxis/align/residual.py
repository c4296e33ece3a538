"""The residual stream: one rotation for everything that reads or writes it.

    RMS norms     readers W·diag(γ)·Qᵀ, writers Q·W, tables E·Qᵀ, norms of ones
    layer norms   the same in the space of vectors without a mean: β moves into the readers' biases

A layer norm subtracts the mean, so what writers put there is never read. In the coordinates of the file the mean is the
last one: that column, or row, is zero. The loaded model has them reflected (runtime/transforms.py), so that its mean is
the mean again and its layer norms do what they did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trueaxis.align.basis import Term
from trueaxis.align.maps import Blank, Map, Reflect, Rotate, Unscale, Within, moment
from trueaxis.align.network import Change, Network, merged, shifted
from trueaxis.align.part import Part, Site, Turn, chosen_axes
from trueaxis.runtime.transforms import COLUMNS, ROWS
from trueaxis.types import Array, Space, Weight

DEPTH_GROUPS = 2  # blocks enter the search for one rotation as so many averages
WORTHWHILE_BITS = 0.002  # axes that save less per weight are not worth a change


def residual(network: Network, axes: str) -> Part:
    """One orthogonal Q for the residual stream, chosen by all that reads or writes it."""
    if reason := _obstacle(network):
        return Part("residual", reason)
    readers = [weight for weight in network.weights if weight.norm is not None]
    writers = [weight for weight in network.weights if weight.writes == "residual" and weight.role != "exact"]
    terms = _terms(network, readers, writers)
    centred = network.family is not None and network.family.norms.kind == "layer"
    chosen, rotation, saved = chosen_axes(axes, _without_mean(terms) if centred else terms, network)
    if saved < WORTHWHILE_BITS and axes == "best":
        told = f"own axes: others would save {saved:.4f} bits" if saved else "own axes: others save no more than chance"
        return Part("residual", told, spaces=(Space("residual", "identity", 0.0),))
    name = f"residual:{chosen}"
    changes = _around_layer_norms(network, name, rotation) if centred else _around_rms_norms(network, name, rotation)
    turn = _turn(network, changes, rotation.shape[0])
    space = Space("residual", chosen, saved)
    return Part("residual", f"{chosen}, saves {saved:.4f} bits", changes, (turn,), (space,))


def _turn(network: Network, changes: dict[str, Change], width: int) -> Turn:
    """The same rotation of everything again: a tensor that reads or writes the stream still does."""
    reading = {
        weight.name
        for weight in network.weights
        if weight.norm is not None or (weight.writes == "residual" and weight.role in ("embedding", "exact"))
    }
    sites = [
        Site(name, "reads" if name in reading else "writes", np.arange(width)[None], np.zeros(1, np.int64))
        for name, change in changes.items()
        if change.reads or change.writes
    ]
    return Turn("residual", 1, width, tuple(sites))


def _around_rms_norms(network: Network, name: str, rotation: Array) -> dict[str, Change]:
    turn = Rotate(rotation[None])
    changes = _writers_changed(network, Change(name, writes=(turn,)), Change(name, reads=(turn,)))
    for weight in network.weights:
        if weight.norm is not None:
            changes[weight.name] = Change(name, (Unscale(network.norm(weight)), turn))
            changes[weight.norm] = Change(name, constant=1.0 - weight.norm_offset)
    return changes


def _around_layer_norms(network: Network, name: str, rotation: Array) -> dict[str, Change]:
    """As around RMS norms, in n − 1 coordinates."""
    width = rotation.shape[0]
    whole: Map = (Reflect(), Within(np.arange(width), Rotate(rotation[None])))
    without_mean: Map = (*whole, Blank())
    changes = _writers_changed(
        network,
        Change(name, writes=without_mean, reflected=ROWS),
        Change(name, reads=without_mean, reflected=COLUMNS),
    )
    for norm in dict.fromkeys(weight.norm for weight in network.weights if weight.norm is not None):
        readers = [weight for weight in network.weights if weight.norm == norm]
        unscale, found = Unscale(network.norm(readers[0])), network.norm_bias(readers[0])
        changes[norm] = Change(name, constant=1.0)
        if found is None or all(reader.bias is not None for reader in readers):
            for reader in readers:
                changes[reader.name] = Change(name, (unscale, *without_mean), reflected=COLUMNS)
                if found is not None and reader.bias is not None:
                    mean = network.mean(reader)
                    shift = None if mean is None else (found[1], mean)
                    changes[reader.name] = replace(changes[reader.name], shift=shift)
                    taken = network.checkpoint.matrix(reader).double().numpy() @ found[1]
                    changes[reader.bias] = Change(name, added=taken)
            if found is not None:
                changes[found[0]] = Change(name, constant=0.0)
        else:  # the norm keeps its bias in the new axes, mean included
            for reader in readers:
                changes[reader.name] = Change(name, (unscale, *whole), reflected=COLUMNS)
            changes[found[0]] = Change(name, writes=(unscale, *whole), reflected=ROWS)
    return changes


def _writers_changed(network: Network, matrix: Change, table: Change) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for weight in network.weights:
        if weight.writes == "residual":
            looked_up = weight.role in ("embedding", "exact")
            changes[weight.name] = table if looked_up else matrix
            if weight.bias is not None:
                changes[weight.bias] = matrix
    return changes


def _obstacle(network: Network) -> str | None:
    """Why the residual stream cannot turn, or None."""
    family = network.family
    if family is None:
        return "family is not known by name"
    if family.norms.placement == "post":
        return "post norms: the stream itself is normalized, coordinate by coordinate"
    if family.norms.placement == "sandwich":
        return "sandwich norms scale coordinates on their way into the stream"
    if any(weight.role == "tied" for weight in network.weights):
        return "embedding and head are tied: one table cannot be read both with and without the last norm's factor"
    stray = [
        weight.name
        for weight in network.weights
        if weight.role != "exact" and weight.norm is None and weight.writes != "residual"
    ]
    if stray or any(weight.role == "linear" and weight.space is None for weight in network.weights):
        return f"{(stray or ['a matrix'])[0]} reads or writes an unknown space"
    if not any(weight.role == "head" for weight in network.weights):
        return "the model has no head: the stream is its output"
    widths = {weight.shape[1] for weight in network.weights if weight.norm is not None or weight.role == "embedding"}
    if len(widths) > 1:
        return f"the stream has no one width, but {' and '.join(map(str, sorted(widths)))}"
    return _lost_bias(network)


def _lost_bias(network: Network) -> str | None:
    """A norm that multiplies a coordinate by 0 and adds a bias there that none of its readers could add."""
    for weight in network.weights:
        found = network.norm_bias(weight) if weight.norm is not None and weight.bias is None else None
        if found is not None and bool(np.any((network.norm(weight) == 0) & (found[1] != 0))):
            return f"{weight.norm}: a factor is 0 where the bias is not, and {weight.name} has no bias to take it"
    return None


def _terms(network: Network, readers: Sequence[Weight], writers: Sequence[Weight]) -> list[Term]:
    moments: dict[str, Array | None] = {}

    def reader(weight: Weight) -> Term:
        space = str(weight.space)
        if space not in moments:
            moments[space] = _moment_without_bias(network, weight)
        return network.reader_term(weight, network.matrix(weight), moments[space])

    def term(weight: Weight) -> Term:
        if weight.norm is not None:
            return reader(weight)
        if weight.role == "embedding":
            return network.reader_term(weight, network.matrix(weight), None)
        return network.writer_term(weight, network.matrix(weight))

    touching = {weight.name for weight in (*readers, *writers)}
    blocks = [[term(weight) for weight in block if weight.name in touching] for block in network.blocks]
    inside = {weight.name for block in network.blocks for weight in block}
    outside = [term(weight) for weight in (*readers, *writers) if weight.name not in inside]
    groups = np.array_split(np.arange(len(blocks)), min(DEPTH_GROUPS, len(blocks)))
    alike = all(len(block) == len(blocks[0]) for block in blocks)
    if not alike:
        return [term for block in blocks for term in block] + outside
    return [term for group in groups for term in merged([blocks[i] for i in group])] + outside


def _moment_without_bias(network: Network, weight: Weight) -> Array | None:
    found, bias, mean = network.metric(weight).second_moment, network.norm_bias(weight), network.mean(weight)
    if found is None or bias is None or mean is None or weight.bias is None:
        return network.moment(weight)
    return network.unscaled(weight, shifted(found, bias[1], mean))


def _without_mean(terms: Sequence[Term]) -> list[Term]:
    """Terms in the n − 1 coordinates across the mean."""
    found: dict[int, Array] = {}

    def across(matrix: Array) -> Array:
        if id(matrix) not in found:
            found[id(matrix)] = np.ascontiguousarray(moment((Reflect(),), matrix)[:-1, :-1])
        return found[id(matrix)]

    return [
        replace(
            term,
            covariance=moment((Reflect(),), term.covariance)[:-1, :-1],
            moment=None if term.moment is None else across(term.moment),
        )
        for term in terms
    ]
