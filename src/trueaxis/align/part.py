"""Part: one symmetry put to use, and what the symmetries share.

terms of a space ─▶ chosen axes ─▶ changes of the tensors that touch it ─▶ Part
                                   └▶ turns: the rotations that it leaves free, for align/learned.py
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from trueaxis.align.basis import AXES, best
from trueaxis.align.estimate import Term, saved_bits
from trueaxis.align.maps import Rotate, Step, Within
from trueaxis.align.network import Change, Network, Product
from trueaxis.journal import NO_JOURNAL
from trueaxis.types import Array, Space


class Site(NamedTuple):
    """Where turning blocks lie in a tensor: on the side that reads (columns) or writes (rows) the space.

    `coordinates` int [blocks, side] of that side; `owner` int [blocks], the rotation that turns each block.
    """

    tensor: str
    side: Literal["reads", "writes"]
    coordinates: Array
    owner: Array


@dataclass(frozen=True, eq=False)
class Turn:
    """Rotations that a symmetry leaves free: `count` of them, each [side, side], and every place they turn.

    Attributes:
        name: Of the symmetry.
        count, side: Number of rotations, and their size.
        sites: All tensors that follow.
    """

    name: str
    count: int
    side: int
    sites: tuple[Site, ...]

    def changes(self, rotations: Array) -> dict[str, Change]:
        """What orthogonal `rotations` [count, side, side] do to the tensors, after whatever alignment did to them."""
        found: dict[str, Change] = {}
        for site in self.sites:
            steps = (Within(site.coordinates.ravel(), Rotate(rotations[site.owner])),)
            reads, writes = (steps, ()) if site.side == "reads" else ((), steps)
            join(found, site.tensor, Change("learned", reads, writes))
        return found


@dataclass(frozen=True, eq=False)
class Part:
    """One symmetry put to use, or the reason why it is not.

    Attributes:
        name: Of the symmetry.
        choice: The axes chosen and what they save, or why the symmetry is left alone.
        changes: Name of a tensor → its change; empty if nothing changes.
        turns: Rotations that could follow the changes and leave the network exact.
        spaces: The axes that each space got.
        products: Tensors that the loaded model then has beside the original's.
    """

    name: str
    choice: str
    changes: Mapping[str, Change] = field(default_factory=dict)
    turns: tuple[Turn, ...] = ()
    spaces: tuple[Space, ...] = ()
    products: tuple[Product, ...] = ()


def chosen_axes(axes: str, terms: Sequence[Term], network: Network, threads: int = 1) -> tuple[str, Array, float]:
    """(name, R, bits saved per weight) of the axes named, or of the best of all, by so many workers."""
    key = _key(axes, terms, network)
    if (known := network.journal.recall(key)) is not None:
        return known.facts[0], known.arrays["rotation"], known.facts[1]
    if axes == "best":
        name, rotation, saved = best(terms, network.water, threads)
    else:
        name, rotation = axes, AXES[axes](terms, network.water, network.seed, threads)
        saved = saved_bits(rotation, terms, network.water, threads)
    network.journal.keep(key, {"rotation": rotation}, [name, saved])
    return name, rotation, saved


def _key(axes: str, terms: Sequence[Term], network: Network) -> str:
    """What axes depend on, for the journal; nothing where none is kept."""
    if network.journal is NO_JOURNAL:
        return ""
    digest = hashlib.blake2b(repr((axes, network.water, network.seed)).encode(), digest_size=16)
    for term in terms:
        digest.update(repr((term.count, term.level)).encode())
        for matrix in (term.covariance, term.moment):
            digest.update(b"none" if matrix is None else np.ascontiguousarray(matrix).data)
    return f"axes {digest.hexdigest()}"


def within(part: Array, step: Step, size: int) -> Step:
    """A step on some of `size` coordinates; the step itself where they are all, in order."""
    return step if np.array_equal(part, np.arange(size)) else Within(part, step)


def join(changes: dict[str, Change], name: str, change: Change) -> None:
    """Adds a change to what is there already."""
    changes[name] = changes[name].joined(change) if name in changes else change
