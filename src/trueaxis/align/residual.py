"""The residual stream: one rotation for everything that reads or writes it.

    RMS norms     readers W·diag(γ)·Qᵀ, writers Q·W, tables E·Qᵀ, norms of ones
    layer norms   the same in the space of vectors without a mean: β moves into the readers' biases
    tied          the embedding is A = E·Qᵀ, the head E·diag(γ)·Qᵀ = A·S with S = Q·diag(γ)·Qᵀ [d, d], which is
                  quantized and coded like any matrix: the loaded model has a head of its own

A layer norm subtracts the mean, so what writers put there is never read. In the coordinates of the file the mean is the
last one: that column, or row, is zero. The loaded model has them reflected (runtime/transforms.py), so that its mean is
the mean again and its layer norms do what they did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trueaxis.align.estimate import STEP_ENERGY, Term
from trueaxis.align.maps import Blank, Map, Reflect, Rotate, Unscale, Within, moment, on_columns, on_rows
from trueaxis.align.network import Change, Network, Product, merged, shifted
from trueaxis.align.part import Part, Site, Turn, chosen_axes
from trueaxis.parallel import ordered_map
from trueaxis.runtime.transforms import COLUMNS, ROWS
from trueaxis.types import Array, Metric, Space, Weight

SCALE_BITS, RECORD_BITS = 5.0, 1000.0  # what a row or column and the records of a matrix take
DEPTH_GROUPS = 2  # blocks enter the search for one rotation as so many averages
WORTHWHILE_BITS = 0.002  # axes that save less per weight are not worth a change


def residual(network: Network, axes: str) -> Part:
    """One orthogonal Q for the residual stream, chosen by all that reads or writes it."""
    if reason := _obstacle(network):
        return Part("residual", reason)
    readers = [weight for weight in network.weights if weight.norm is not None]
    writers = [w for w in network.weights if w.writes == "residual" and w.role != "exact" and w not in readers]
    terms = _terms(network, readers, writers)
    centred = network.family is not None and network.family.norms.kind == "layer"
    chosen, rotation, saved = chosen_axes(axes, _without_mean(terms) if centred else terms, network, network.threads)
    if saved < WORTHWHILE_BITS and axes == "best":
        told = f"own axes: others would save {saved:.4f} bits" if saved else "own axes: others save no more than chance"
        return _left_alone(told)
    name = f"residual:{chosen}"
    products = _products(network, name, rotation, centred)
    paid = sum(_map_bits(network, product) for product in products)
    weights = sum(weight.size for weight in (*readers, *writers))
    if paid >= saved * weights and axes == "best":
        told = f"own axes: {chosen} would save {saved:.4f} bits, and cost {paid / weights:.4f}"
        return _left_alone(told)
    changes = _around_layer_norms(network, name, rotation) if centred else _around_rms_norms(network, name, rotation)
    cost = f", and {products[0].name} costs {paid / weights:.4f}" if products else ""
    turns = () if products else (_turn(network, changes, rotation.shape[0]),)  # S follows only these axes
    space = Space("residual", chosen, saved)
    return Part("residual", f"{chosen}, saves {saved:.4f} bits{cost}", changes, turns, (space,), products)


def _left_alone(told: str) -> Part:
    return Part("residual", told, spaces=(Space("residual", "identity", 0.0),))


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


def _products(network: Network, name: str, rotation: Array, centred: bool) -> tuple[Product, ...]:
    """The head of a tied model, as its embedding times S = T diag(γ) T⁻¹; none where they are not tied."""
    tied = next((weight for weight in network.weights if weight.role == "tied"), None)
    if tied is None or network.family is None:
        return ()
    steps = _whole(rotation) if centred else (Rotate(rotation[None]),)
    gamma = np.diag(network.norm(tied) if tied.norm is not None else np.ones(tied.shape[1]))
    found = network.metric(tied)
    read = np.eye(tied.shape[1]) if found.second_moment is None else network.unscaled(tied, found.second_moment)
    table = on_columns(steps, network.matrix(tied))
    metric = Metric(moment(steps, read), np.square(table).sum(axis=0), found.sensitivity)
    stored = (alias for alias, target in network.checkpoint.aliases.items() if target == tied.name)
    head = next(stored, f"{network.family.head}.weight")
    return (Product(head, tied.name, f"{name}:head", on_rows(steps, on_columns(steps, gamma)), metric, centred),)


def _map_bits(network: Network, product: Product) -> float:
    """Estimated bits of S at the water level, with its scales and records."""
    coded = product.aligned()
    assert coded.metric.row_weights is not None
    assert coded.metric.second_moment is not None
    rows = np.square(coded.weight) * (coded.metric.row_weights * coded.metric.sensitivity)[:, None]
    worth = rows * np.diag(coded.metric.second_moment) / network.water
    return float(0.5 * np.log2(1 + STEP_ENERGY * worth).sum()) + SCALE_BITS * 2 * len(coded.weight) + RECORD_BITS


def _around_rms_norms(network: Network, name: str, rotation: Array) -> dict[str, Change]:
    turn = Rotate(rotation[None])
    changes = _writers_changed(network, Change(name, writes=(turn,)), Change(name, reads=(turn,)))
    for weight in network.weights:
        if weight.norm is not None:
            if weight.role != "tied":
                changes[weight.name] = Change(name, (Unscale(network.norm(weight)), turn))
            changes[weight.norm] = Change(name, constant=1.0 - weight.norm_offset)
    return changes


def _around_layer_norms(network: Network, name: str, rotation: Array) -> dict[str, Change]:
    """As around RMS norms, in n − 1 coordinates."""
    whole = _whole(rotation)
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
    tied = [weight.name for weight in network.weights if weight.role == "tied"]
    # As an embedding it is read without its rows' mean, as a head with it.
    return changes | dict.fromkeys(tied, Change(name, whole, reflected=COLUMNS))


def _whole(rotation: Array) -> Map:
    """The mean to the last coordinate, the rest rotated."""
    return (Reflect(), Within(np.arange(rotation.shape[0]), Rotate(rotation[None])))


def _writers_changed(network: Network, matrix: Change, table: Change) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for weight in network.weights:
        if weight.writes == "residual":
            looked_up = weight.role in ("embedding", "tied", "exact")
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
    stray = [
        weight.name
        for weight in network.weights
        if weight.role != "exact" and weight.norm is None and weight.writes != "residual"
    ]
    if stray or any(weight.role == "linear" and weight.space is None for weight in network.weights):
        return f"{(stray or ['a matrix'])[0]} reads or writes an unknown space"
    if not any(weight.role in ("head", "tied") for weight in network.weights):
        return "the model has no head: the stream is its output"
    widths = {weight.shape[1] for weight in network.weights if weight.norm is not None or weight.role == "embedding"}
    if len(widths) > 1:
        return f"the stream has no one width, but {' and '.join(map(str, sorted(widths)))}"
    if any(weight.role == "tied" and weight.norm is None for weight in network.weights):
        return "the head reads the stream itself, without a norm"
    return _lost_bias(network)


def _lost_bias(network: Network) -> str | None:
    """A norm that multiplies a coordinate by 0 and adds a bias there that none of its readers could add."""
    for weight in network.weights:
        found = network.norm_bias(weight) if weight.norm is not None and weight.bias is None else None
        if found is not None and bool(np.any((network.norm(weight) == 0) & (found[1] != 0))):
            return f"{weight.norm}: a factor is 0 where the bias is not, and {weight.name} has no bias to take it"
    return None


def _terms(network: Network, readers: Sequence[Weight], writers: Sequence[Weight]) -> list[Term]:

    def of_block(weights: Sequence[Weight]) -> list[Term]:
        moments: dict[str, Array | None] = {}
        return [_term(network, weight, moments) for weight in weights if weight.name in touching]

    touching = {weight.name for weight in (*readers, *writers)}
    inside = {weight.name for block in network.blocks for weight in block}
    rest = [weight for weight in (*readers, *writers) if weight.name not in inside]
    *blocks, outside = ordered_map(of_block, (*network.blocks, rest), network.threads)
    groups = np.array_split(np.arange(len(blocks)), min(DEPTH_GROUPS, len(blocks)))
    alike = all(len(block) == len(blocks[0]) for block in blocks)
    if not alike:
        return [term for block in blocks for term in block] + outside
    return [term for group in groups for term in merged([blocks[i] for i in group])] + outside


def _term(network: Network, weight: Weight, moments: dict[str, Array | None]) -> Term:
    """A matrix as the stream sees it; `moments` keeps those of spaces that several read."""
    matrix, space = network.matrix(weight), str(weight.space)
    if weight.role == "tied":
        return network.reader_term(weight, matrix, _moment_of_both_uses(network, weight))
    if weight.norm is None and weight.role != "embedding":
        return network.writer_term(weight, matrix)
    if weight.norm is not None and space not in moments:
        found = _moment_without_bias(network, weight)
        moments[space] = None if found is None else network.checkpoint.scratch.hold(found)
    return network.reader_term(weight, matrix, None if weight.norm is None else moments[space])


def _moment_without_bias(network: Network, weight: Weight) -> Array | None:
    found, bias, mean = network.metric(weight).second_moment, network.norm_bias(weight), network.mean(weight)
    if found is None or bias is None or mean is None or weight.bias is None:
        return network.moment(weight)
    return network.unscaled(weight, shifted(found, bias[1], mean))


def _moment_of_both_uses(network: Network, weight: Weight) -> Array:
    """Of a tied matrix: H as a head, and the identity as an embedding."""
    found = network.metric(weight)
    rows = 1.0 if found.embedding_weights is None else float(found.embedding_weights.mean())
    looked_up = rows * np.eye(weight.shape[1])
    return looked_up if found.second_moment is None else found.second_moment + looked_up


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
