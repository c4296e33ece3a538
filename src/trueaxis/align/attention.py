"""Symmetries of attention: rotations inside a head, between values and output, queries and keys; the order of heads.

    heads    value rows A·V of a key-value head, O·Aᵀ in every query head that reads it
    order    key-value heads by energy, each with the query heads that read it
    planes   queries and keys of a head turn together: by one angle in every rotary plane (the rotary embedding
             commutes with it), by any rotation in coordinates without positions

Fused projections are parts of one matrix's rows; biases turn with their rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from trueaxis.align.basis import SIGNIFICANT, chance_bits
from trueaxis.align.estimate import Term
from trueaxis.align.maps import Map, Permute, Planes, Rotate, Step
from trueaxis.align.network import Change, Network
from trueaxis.align.part import Part, Site, Turn, chosen_axes, join, within
from trueaxis.model.architecture import skeleton
from trueaxis.parallel import ordered_map
from trueaxis.types import Array, Space, Weight

ANGLES = 64


class Rows(NamedTuple):
    """Rows of a matrix that write queries, keys or values, in the order of heads."""

    weight: Weight
    rows: Array


class Attention(NamedTuple):
    """The attention of one block; `groups` query heads read one key-value head of `side` coordinates."""

    query: Rows
    key: Rows
    value: Rows
    output: Weight
    side: int
    groups: int


def heads(network: Network, axes: str) -> Part:
    """One orthogonal A per key-value head: its value rows A·V, and O·Aᵀ in every query head that reads it."""
    changes: dict[str, Change] = {}
    spaces, turns = [], []
    known = [found for block in network.blocks if (found := attention(network, block)) is not None]

    def chosen_heads(found: Attention) -> list[tuple[str, Array, float]]:
        return [chosen_axes(axes, terms, network) for terms in _value_terms(network, found)]

    for found, heads_of_block in zip(known, ordered_map(chosen_heads, known, network.threads), strict=True):
        names, rotations, gains = zip(*heads_of_block, strict=True)
        chosen, blocks = " and ".join(sorted(set(names))), np.stack(rotations)
        spaces.append(Space(f"{found.output.name}: value heads", chosen, float(np.mean(gains))))
        if set(names) == {"identity"}:
            continue
        _turn(changes, f"heads:{chosen}", found.value, Rotate(blocks))
        read = Rotate(np.repeat(blocks, found.groups, axis=0))
        join(changes, found.output.name, Change(f"heads:{chosen}", (read,)))
        turns.append(_turn_of_heads(found))
    if not spaces:
        return Part("heads", "no attention whose heads are known")
    saved = f"saves {np.mean([space.estimated_saved_bits for space in spaces]):.4f} bits"
    told = ", ".join((*dict.fromkeys(space.axes for space in spaces), saved))
    return Part("heads", told, changes, tuple(turns), tuple(spaces))


def _turn_of_heads(found: Attention) -> Turn:
    side = found.side
    count = found.value.rows.size // side
    written = np.arange(found.value.rows.size).reshape(-1, side)
    read = np.arange(found.output.shape[1]).reshape(-1, side)
    sites = _written_sites(found.value, written, np.arange(count))
    sites.append(Site(found.output.name, "reads", read, np.repeat(np.arange(count), found.groups)))
    return Turn("heads", count, side, tuple(sites))


def _value_terms(network: Network, found: Attention) -> list[list[Term]]:
    """Per key-value head: its value rows as writer, and the output's columns of each query head that reads it."""
    written, read = network.matrix(found.value.weight)[found.value.rows], network.matrix(found.output)
    moment, side = network.moment(found.output), found.side
    per_head = []
    for index in range(found.value.rows.size // side):
        terms = [network.writer_term(found.value.weight, written[index * side : (index + 1) * side])]
        for head in range(index * found.groups, (index + 1) * found.groups):
            columns = slice(head * side, (head + 1) * side)
            inside = None if moment is None else np.ascontiguousarray(moment[columns, columns])
            terms.append(network.reader_term(found.output, read[:, columns], inside))
        per_head.append(terms)
    return per_head


def planes(network: Network, axes: str) -> Part:
    """Queries and keys turned together, per key-value head: rotary planes by an angle, the rest by a rotation."""
    family = network.family
    if family is not None and family.norms.queries_keys:
        return Part("planes", "queries and keys are normalized coordinate by coordinate")
    changes: dict[str, Change] = {}
    spaces, turns, known = [], [], False
    for block in network.blocks:
        found = attention(network, block)
        width = None if found is None else _rotary_width(network, found.side)
        if found is None or width is None:
            continue
        known = True
        for turned in (
            _turn_planes(network, axes, found, width, changes),
            _turn_rest(network, axes, found, width, changes),
        ):
            spaces += turned.spaces
            turns += turned.turns
    told = ", ".join(dict.fromkeys(space.axes for space in spaces)) if known else "no attention whose heads are known"
    return Part("planes", told, changes, tuple(turns), tuple(spaces))


def _turn_planes(network: Network, axes: str, found: Attention, width: int, changes: dict[str, Change]) -> Part:
    """One angle per rotary plane, where that makes the energies of its two rows more unequal than chance would."""
    if not width:
        return Part("planes", "")
    name, half, side = f"{found.output.name}: rotary planes", width // 2, found.side
    angles, saved = _plane_angles(network, found, width)
    alike = [Term(np.eye(2), found.key.weight.shape[1], None, 1.0)] * (1 + found.groups)  # a key row, query rows
    if axes == "best" and saved < SIGNIFICANT * chance_bits(alike):
        return Part("planes", "", spaces=(Space(name, "identity", 0.0),))
    sites: list[Site] = []
    for rows, repeats in ((found.query, found.groups), (found.key, 1)):
        count = rows.rows.size // side
        first = (np.arange(count)[:, None] * side + np.arange(half)).ravel()
        _turn(changes, "planes", rows, Planes(first, first + half, np.repeat(angles, repeats, axis=0).ravel()))
        owner = np.repeat(np.arange(angles.size).reshape(angles.shape), repeats, axis=0).ravel()
        sites += _written_sites(rows, np.stack([first, first + half], axis=1), owner)
    return Part(
        "planes", "", turns=(Turn("planes", angles.size, 2, tuple(sites)),), spaces=(Space(name, "angles", saved),)
    )


def _written_sites(rows: Rows, coordinates: Array, owner: Array) -> list[Site]:
    """Sites of blocks of the projection's own coordinates, in its matrix and in its bias."""
    tensors = filter(None, (rows.weight.name, rows.weight.bias))
    return [Site(name, "writes", rows.rows[coordinates], owner) for name in tensors]


def _plane_angles(network: Network, found: Attention, width: int) -> tuple[Array, float]:
    """[key-value heads, width / 2]: of a grid of angles, the one with the smallest Σ log energy over all rows; and the
    bits it saves per weight of those rows at high rate."""
    angles = np.arange(ANGLES) * (np.pi / 2 / ANGLES)
    cosine, sine = np.cos(angles), np.sin(angles)
    total: Array | float = 0.0
    for (weight, rows), repeats in ((found.key, 1), (found.query, found.groups)):
        matrix = network.matrix(weight)[rows].reshape(-1, repeats, found.side, weight.shape[1])
        one, other = matrix[:, :, : width // 2], matrix[:, :, width // 2 : width]
        a, b, c = (np.einsum("grpn,grpn->grp", x, y)[..., None] for x, y in ((one, one), (other, other), (one, other)))
        first = cosine**2 * a + sine**2 * b + 2 * cosine * sine * c
        second = sine**2 * a + cosine**2 * b - 2 * cosine * sine * c
        total = total + np.log(np.maximum(first * second, 1e-300)).sum(axis=1)
    total = np.asarray(total)
    saved = float((total[..., 0] - total.min(axis=-1)).mean())
    return angles[np.argmin(total, axis=-1)], saved / (4 * math.log(2) * (1 + found.groups))


def _turn_rest(network: Network, axes: str, found: Attention, width: int, changes: dict[str, Change]) -> Part:
    """Coordinates `width` and up of every head: one rotation per key-value head."""
    side, groups = found.side, found.groups
    if width == side:
        return Part("planes", "")
    written = [(rows.weight, network.matrix(rows.weight)[rows.rows]) for rows in (found.key, found.query)]
    names, blocks, gains = [], [], []
    count = found.key.rows.size // side
    for index in range(count):
        parts = [index, *range(index * groups, (index + 1) * groups)]
        terms = [
            network.writer_term(weight, matrix[head * side + width : (head + 1) * side])
            for (weight, matrix), head in zip([written[0], *[written[1]] * groups], parts, strict=True)
        ]
        name, rotation, gain = chosen_axes(axes, terms, network)
        names, blocks, gains = [*names, name], [*blocks, rotation], [*gains, gain]
    chosen = " and ".join(sorted(set(names)))
    spaces = (Space(f"{found.output.name}: coordinates without positions", chosen, float(np.mean(gains))),)
    if set(names) == {"identity"}:
        return Part("planes", "", spaces=spaces)
    sites: list[Site] = []
    for rows, repeats in ((found.query, groups), (found.key, 1)):
        part = np.arange(rows.rows.size).reshape(-1, side)[:, width:]
        turn = within(part.ravel(), Rotate(np.repeat(np.stack(blocks), repeats, axis=0)), rows.rows.size)
        _turn(changes, "planes", rows, turn)
        sites += _written_sites(rows, part, np.repeat(np.arange(count), repeats))
    return Part("planes", "", turns=(Turn("planes", count, side - width, tuple(sites)),), spaces=spaces)


def order(network: Network, axes: str) -> Part:
    """Key-value heads by descending energy of what is read of them, and inside each the query heads that read it."""
    changes: dict[str, Change] = {}
    for block in network.blocks:
        found = attention(network, block)
        second_moment = None if found is None else network.moment(found.output)
        if found is None or second_moment is None:
            continue
        energies = np.diag(second_moment).reshape(-1, found.groups, found.side).sum(axis=2)
        groups = np.argsort(-energies.sum(axis=1), kind="stable")
        inside = np.argsort(-energies[groups], axis=1, kind="stable")
        put_heads(changes, found, groups, (groups[:, None] * found.groups + inside).ravel())
    return Part("order", "by energy" if changes else "no attention whose heads are known", changes)


def put_heads(changes: dict[str, Change], found: Attention, groups: Array, queries: Array) -> None:
    """Heads in another order: the new key-value head i is the old groups[i], query heads likewise."""
    read, written = _coordinates(queries, found.side), _coordinates(groups, found.side)
    for rows, moved in ((found.query, read), (found.key, written), (found.value, written)):
        _turn(changes, "order", rows, Permute(moved))
    join(changes, found.output.name, Change("order", (Permute(read),)))


def _coordinates(heads: Array, side: int) -> Array:
    """Coordinates of heads in this order."""
    return (heads[:, None] * side + np.arange(side)).ravel()


def _turn(changes: dict[str, Change], name: str, rows: Rows, step: Step) -> None:
    """The step on these rows of the matrix and of its bias."""
    written: Map = (within(rows.rows, step, rows.weight.shape[0]),)
    for tensor in filter(None, (rows.weight.name, rows.weight.bias)):
        join(changes, tensor, Change(name, (), written))


def attention(network: Network, block: Sequence[Weight]) -> Attention | None:
    """The attention of a block; None where its heads cannot be told."""
    side = _head_side(network)
    output = next((w for w in block if w.writes == "residual" and (w.space or "").endswith(".out")), None)
    if side is None or output is None or output.shape[1] % side:
        return None
    found = _projections(block, output, side)
    if found.keys() != {"query", "key", "value"}:
        return None
    query, key, value = (found[name] for name in ("query", "key", "value"))
    sizes = (query.rows.size, key.rows.size, value.rows.size)
    if sizes[0] != output.shape[1] or sizes[1] != sizes[2] or sizes[1] % side or sizes[0] % sizes[1]:
        return None
    return Attention(query, key, value, output, side, sizes[0] // sizes[1])


def _projections(block: Sequence[Weight], output: Weight, side: int) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for weight in block:
        rows = np.arange(weight.shape[0])
        if weight.writes in ("query", "key", "value"):
            found[weight.writes] = Rows(weight, rows)
        elif weight.writes == "fused:query,key,value":
            key_value = (rows.size - output.shape[1]) // 2
            parts = np.split(rows, [output.shape[1], output.shape[1] + key_value])
            found.update(zip(("query", "key", "value"), (Rows(weight, part) for part in parts), strict=True))
        elif weight.writes == "fused:query_key_value" and rows.size % (3 * side) == 0:
            for index, name in enumerate(("query", "key", "value")):
                found[name] = Rows(weight, rows.reshape(-1, 3, side)[:, index].ravel())
    return found


def _head_side(network: Network) -> int | None:
    """Size of an attention head; None where the configuration does not say."""
    config, family = network.checkpoint.config, network.family
    if family is None:
        return None
    if isinstance(side := config.get("head_dim"), int):
        return side
    count = config.get(family.heads)
    width = config.get("hidden_size", config.get("n_embd"))
    return (
        width // count if isinstance(count, int) and isinstance(width, int) and count and width % count == 0 else None
    )


def _rotary_width(network: Network, side: int) -> int | None:
    """Coordinates of a head that turn with the position, the first ones; None where the model does not tell."""
    family = network.family
    if family is None or family.positions == "learned":
        return None if family is None else 0
    model: Any = skeleton(network.checkpoint.config)
    modules = () if model is None else model.modules()
    found = {2 * module.inv_freq.numel() for module in modules if hasattr(module, "inv_freq")}
    if len(found) == 1 and (width := found.pop()) <= side:
        return width
    return side if family.positions == "rope" else None
