"""Part: one symmetry put to use, and what the symmetries share.

terms of a space ─▶ chosen axes ─▶ changes of the tensors that touch it ─▶ Part
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from trueaxis.align.basis import Term, best
from trueaxis.align.maps import Step, Within
from trueaxis.align.network import Change, Network, Product
from trueaxis.types import Array


@dataclass(frozen=True, eq=False)
class Part:
    """One symmetry put to use, or the reason why it is not.

    Attributes:
        name: Of the symmetry.
        choice: The axes chosen and what they save, or why the symmetry is left alone.
        changes: Name of a tensor → its change; empty if nothing changes.
        products: Tensors that the loaded model then has beside the original's.
    """

    name: str
    choice: str
    changes: Mapping[str, Change] = field(default_factory=dict)
    products: tuple[Product, ...] = ()


def chosen_axes(axes: str, terms: Sequence[Term], network: Network) -> tuple[str, Array, float]:
    """(name, R, bits saved per weight) of the axes named, or of the best of all."""
    return best(("identity", "joint") if axes == "best" else (axes,), terms, network.water, network.seed)


def within(part: Array, step: Step, size: int) -> Step:
    """A step on some of `size` coordinates; the step itself where they are all, in order."""
    return step if np.array_equal(part, np.arange(size)) else Within(part, step)


def join(changes: dict[str, Change], name: str, change: Change) -> None:
    """Adds a change to what is there already."""
    changes[name] = changes[name].joined(change) if name in changes else change
