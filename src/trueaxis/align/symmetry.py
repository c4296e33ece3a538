"""The symmetries of a network, one function each: which spaces can change axes for free, and to which.

    residual   one rotation of the residual stream; norms fold into their readers      every writer and reader of it
    heads      one rotation per key-value head between values and output               V rows, O columns
    planes     one angle per rotary plane between queries and keys (RoPE commutes)      Q rows, K rows
    channels   a permutation of the MLP's hidden channels, by energy                    gate and up rows, down columns

Each takes the network and a choice of axes and gives a `Part`: changes of tensors, or the reason why there are none.
What stays exact for which family is listed in docs/theory.md; every claim is checked on the model itself in gauge.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trueaxis.align.basis import AXES, Term, best, estimated_bits
from trueaxis.align.maps import Map, Permute, Planes, Rotate, Step, Unscale, Within
from trueaxis.align.network import Change, Network, merged
from trueaxis.types import Array, Weight

DEPTH_GROUPS = 2  # blocks enter the search for one rotation as so many averages
WORTHWHILE_BITS = 0.002  # axes that save less per weight are not worth a change
ANGLES = 64
CHANNEL_WRITERS = ("gate", "up", "fused:gate,up")


@dataclass(frozen=True, eq=False)
class Part:
    """One symmetry put to use, or the reason why it is not.

    Attributes:
        name: Of the symmetry.
        choice: The axes chosen and what they save, or why the symmetry is left alone.
        changes: Name of a tensor → its change; empty if nothing changes.
    """

    name: str
    choice: str
    changes: Mapping[str, Change] = field(default_factory=dict)


def residual(network: Network, axes: str) -> Part:
    """One orthogonal Q for the residual stream: readers W·diag(γ)·Qᵀ, writers Q·W, norms of ones, the table E·Qᵀ."""
    if reason := _residual_obstacle(network):
        return Part("residual", reason)
    readers = [weight for weight in network.weights if weight.norm is not None]
    writers = [weight for weight in network.weights if weight.writes == "residual"]
    chosen, rotation, saved = _chosen(axes, _residual_terms(network, readers, writers), network)
    if saved < WORTHWHILE_BITS and axes == "best":
        return Part("residual", f"own axes: {chosen} would save {saved:.4f} bits")
    turn = Rotate(rotation[None])
    changes: dict[str, Change] = {}
    for weight in readers:
        changes[weight.name] = Change(f"residual:{chosen}", (Unscale(network.norm(weight)), turn))
        changes[str(weight.norm)] = Change(f"residual:{chosen}", constant=1.0 - weight.norm_offset)
    for weight in writers:
        table = weight.role == "embedding"
        found = Change(f"residual:{chosen}", (turn,)) if table else Change(f"residual:{chosen}", (), (turn,))
        changes[weight.name] = found
        if weight.bias is not None:
            changes[weight.bias] = Change(f"residual:{chosen}", (), (turn,))
    return Part("residual", f"{chosen}, saves {saved:.4f} bits", changes)


def _residual_obstacle(network: Network) -> str | None:
    """Why the residual stream cannot turn, or None."""
    family = network.family
    if family is None:
        return "family is not known by name"
    if family.norms.kind != "rms":
        return f"{family.norms.kind} norms see the mean of the coordinates"
    if family.norms.placement != "pre":
        return f"{family.norms.placement} norms scale coordinates inside the stream"
    if any(weight.role == "tied" for weight in network.weights):
        return "embedding and head are tied: one table cannot be read both with and without the last norm's factor"
    stray = [
        weight.name
        for weight in network.weights
        if weight.role != "exact" and weight.norm is None and weight.writes not in ("residual",)
    ]
    if stray or any(weight.role == "linear" and weight.space is None for weight in network.weights):
        return f"{(stray or ['a matrix'])[0]} reads or writes an unknown space"
    return None


def _residual_terms(network: Network, readers: Sequence[Weight], writers: Sequence[Weight]) -> list[Term]:
    moments: dict[str, Array | None] = {}

    def reader(weight: Weight) -> Term:
        space = str(weight.space)
        if space not in moments:
            moments[space] = network.moment(weight)
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


def heads(network: Network, axes: str) -> Part:
    """One orthogonal A per key-value head: its value rows A·V, and O·Aᵀ in every query head that reads it."""
    changes: dict[str, Change] = {}
    names, saved = [], []
    for block in network.blocks:
        found = _attention(network, block)
        if found is None:
            continue
        value, rows, output, side = found
        key_value, groups = rows.size // side, output.shape[1] // rows.size
        blocks = []
        for index in range(key_value):
            terms = _head_terms(network, value, rows[index * side : (index + 1) * side], output, index, groups)
            name, rotation, gain = _chosen(axes, terms, network)
            blocks.append(rotation)
            names.append(name)
            saved.append(gain)
        turn, read = Rotate(np.stack(blocks)), Rotate(np.repeat(np.stack(blocks), groups, axis=0))
        chosen = f"heads:{max(set(names), key=names.count)}"
        written: Map = (_within(turn, rows, value.shape[0]),)
        _join(changes, value.name, Change(chosen, (), written))
        if value.bias is not None:
            _join(changes, value.bias, Change(chosen, (), written))
        _join(changes, output.name, Change(chosen, (read,)))
    if not changes:
        return Part("heads", "no attention whose heads are known")
    return Part("heads", f"{max(set(names), key=names.count)}, saves {np.mean(saved):.4f} bits", changes)


def _head_terms(network: Network, value: Weight, rows: Array, output: Weight, index: int, groups: int) -> list[Term]:
    """The value rows of one key-value head as writer, and the output's columns of each query head that reads it."""
    written, read = network.matrix(value), network.matrix(output)
    moment = network.moment(output)
    terms = [network.writer_term(value, written[rows])]
    for head in range(index * groups, (index + 1) * groups):
        columns = slice(head * rows.size, (head + 1) * rows.size)
        inside = None if moment is None else np.ascontiguousarray(moment[columns, columns])
        terms.append(network.reader_term(output, read[:, columns], inside))
    return terms


def planes(network: Network, axes: str) -> Part:
    """One angle per rotary plane of a key-value head, the same for its keys and all queries that meet them."""
    family = network.family
    if family is None or family.positions != "rope" or family.norms.queries_keys:
        return Part("planes", "no full rotary embedding between plain queries and keys")
    changes: dict[str, Change] = {}
    for block in network.blocks:
        query, key = (_written(block, name) for name in ("query", "key"))
        if query is None or key is None or query[0].name == key[0].name:
            continue
        side = _head_side(network)
        if side is None or key[1].size % side or query[1].size % key[1].size:
            continue
        groups = query[1].size // key[1].size
        angles = _plane_angles(network, query[0], key[0], side, groups)
        half = side // 2
        for weight, repeats in ((query[0], groups), (key[0], 1)):
            count = weight.shape[0] // side
            first = (np.arange(count)[:, None] * side + np.arange(half)).ravel()
            turn = Planes(first, first + half, np.repeat(angles, repeats, axis=0).ravel())
            for name in filter(None, (weight.name, weight.bias)):
                changes[name] = Change("planes", (), (turn,))
    if not changes:
        return Part("planes", "no queries and keys apart")
    return Part("planes", "one angle makes the energies of the two rows as unequal as it can", changes)


def _plane_angles(network: Network, query: Weight, key: Weight, side: int, groups: int) -> Array:
    """[key-value heads, side / 2]: of a grid of angles, the one with the smallest Σ log energy over all rows."""
    angles = np.arange(ANGLES) * (np.pi / 2 / ANGLES)
    cosine, sine = np.cos(angles), np.sin(angles)
    total: Array | float = 0.0
    for weight, repeats in ((key, 1), (query, groups)):
        matrix = network.matrix(weight).reshape(-1, repeats, 2, side // 2, weight.shape[1])
        one, other = matrix[:, :, 0], matrix[:, :, 1]
        a, b, c = (np.einsum("grpn,grpn->grp", x, y)[..., None] for x, y in ((one, one), (other, other), (one, other)))
        first = cosine**2 * a + sine**2 * b + 2 * cosine * sine * c
        second = sine**2 * a + cosine**2 * b - 2 * cosine * sine * c
        total = total + np.log(np.maximum(first * second, 1e-300)).sum(axis=1)
    return angles[np.argmin(total, axis=-1)]


def channels(network: Network, axes: str) -> Part:
    """Hidden channels of every MLP by descending energy, so that steps become a smooth function of the index."""
    changes: dict[str, Change] = {}
    for block in network.blocks:
        for down in block:
            if down.writes != "residual" or not (down.space or "").endswith(".hidden"):
                continue
            writers = [
                weight for weight in block if weight.writes in CHANNEL_WRITERS and _owner(weight) == _owner(down)
            ]
            second_moment = network.moment(down)
            if not writers or second_moment is None:
                continue
            order = Permute(np.argsort(-np.diag(second_moment), kind="stable"))
            _join(changes, down.name, Change("channels", (order,)))
            for weight in writers:
                for name in filter(None, (weight.name, weight.bias)):
                    for part in np.split(np.arange(weight.shape[0]), weight.shape[0] // down.shape[1]):
                        _join(changes, name, Change("channels", (), (_within(order, part, weight.shape[0]),)))
    return Part("channels", "by energy", changes) if changes else Part("channels", "no hidden channels are known")


SYMMETRIES: dict[str, Callable[[Network, str], Part]] = {
    "residual": residual,
    "heads": heads,
    "planes": planes,
    "channels": channels,
}


def _chosen(axes: str, terms: Sequence[Term], network: Network) -> tuple[str, Array, float]:
    """(name, R, bits saved per weight) of the axes named, or of the best of all."""
    size = terms[0].covariance.shape[0]
    names = ("identity", "joint") if axes == "best" else (axes,)
    name, rotation = best(names, terms, network.water, network.seed)
    own = estimated_bits(AXES["identity"](terms, network.water, 0), terms, network.water)
    return name, rotation if name != "identity" else np.eye(size), own - estimated_bits(rotation, terms, network.water)


def _written(block: Sequence[Weight], name: str) -> tuple[Weight, Array] | None:
    """The weight of a block that writes this, and the rows that do; None where they cannot be told."""
    for weight in block:
        if weight.writes == name:
            return weight, np.arange(weight.shape[0])
    return None


def _attention(network: Network, block: Sequence[Weight]) -> tuple[Weight, Array, Weight, int] | None:
    """(writer of values, its rows, reader of their mixture, head size) of one block."""
    side = _head_side(network)
    output = next((w for w in block if w.writes == "residual" and (w.space or "").endswith(".out")), None)
    if side is None or output is None or output.shape[1] % side:
        return None
    for weight, rows in _value_rows(network, block, output, side):
        if rows.size % side == 0 and output.shape[1] % rows.size == 0:
            return weight, rows, output, side
    return None


def _value_rows(network: Network, block: Sequence[Weight], output: Weight, side: int) -> Iterator[tuple[Weight, Array]]:
    for weight in block:
        rows = np.arange(weight.shape[0])
        if weight.writes == "value":
            yield weight, rows
        elif weight.writes == "fused:query,key,value":
            key_value = (weight.shape[0] - output.shape[1]) // 2
            yield weight, rows[weight.shape[0] - key_value :]
        elif weight.writes == "fused:query_key_value":
            yield weight, rows.reshape(-1, 3, side)[:, 2].ravel()


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


def _owner(weight: Weight) -> tuple[str, int | None] | None:
    """The MLP, or the expert, that a matrix belongs to; None where the running model does not have it."""
    if weight.place is None:
        return None
    module, expert = weight.place.module, weight.place.expert
    return (module.rpartition(".")[0], None) if expert is None else (module, expert)


def _within(step: Step, part: Array, size: int) -> Step:
    return step if part.size == size else Within(part, step)


def _join(changes: dict[str, Change], name: str, change: Change) -> None:
    changes[name] = changes[name].joined(change) if name in changes else change
