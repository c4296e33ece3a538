"""Trial: the matrices of a network in the axes tried at one step of learning.

pieces, metrics (at the start) ─▶ turned by the rotations tried ─▶ relaxed rate and distortion of sampled rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from trueaxis.align.network import Alignment, Network
from trueaxis.align.part import Site, Turn
from trueaxis.align.proxy import Relaxed, Visit, relaxed, visit
from trueaxis.quantize.plan import effective_moment, row_importance, tempered
from trueaxis.stages import Feedback
from trueaxis.types import Weight

if TYPE_CHECKING:
    import torch

Moments = dict[str, tuple["torch.Tensor", list[tuple[int, Site]]]]
"""Key of a space ─▶ its metric and the turns of its coordinates."""


@dataclass(frozen=True, eq=False)
class Piece:
    """One matrix at the start of learning, as float32 tensors.

    Attributes:
        weight: Which one.
        matrix: W [m, n] in the gauge's axes.
        moment: Key of its metric, or None for the identity.
        unit: √g / c.
        rows, share: See `proxy.relaxed`, [m].
        sites: (number of the turn, site) of all that turns it.
    """

    weight: Weight
    matrix: torch.Tensor
    moment: str | None
    unit: float
    rows: torch.Tensor
    share: torch.Tensor
    sites: tuple[tuple[int, Site], ...]

    @cached_property
    def reads(self) -> list[tuple[int, Site]]:
        """Turns of the columns."""
        return [pair for pair in self.sites if pair[1].side == "reads"]

    @cached_property
    def writes(self) -> list[tuple[int, Site]]:
        """Turns of the rows."""
        return [pair for pair in self.sites if pair[1].side == "writes"]


class Tried(NamedTuple):
    """A matrix at one step of learning: sampled row numbers, its relaxation there, and the metric's factor."""

    piece: Piece
    rows: torch.Tensor
    relaxation: Relaxed
    visited: Visit


def pieces_of(network: Network, start: Alignment, turns: Sequence[Turn]) -> tuple[list[Piece], Moments]:
    """Every quantized matrix that turns, and metrics by key with the turns of their space."""
    import torch

    sites: dict[str, list[tuple[int, Site]]] = {}
    for number, turn in enumerate(turns):
        for site in turn.sites:
            sites.setdefault(site.tensor, []).append((number, site))
    pieces, moments, cache = [], {}, {}
    c = float(np.sqrt(network.water))
    for weight in network.weights:
        if weight.role == "exact" or weight.name not in sites:
            continue
        matrix = network.checkpoint.matrix(weight).float().contiguous().numpy()
        metric = network.metric(weight)
        aligned = start.aligned(weight, matrix, metric, cache)
        moment, key = effective_moment(aligned.metric, weight.shape[1]), None
        if moment is not None:
            key = f"{weight.space}/{weight.role}"
            reading = [pair for pair in sites[weight.name] if pair[1].side == "reads"]
            moments.setdefault(key, (torch.from_numpy(moment).float(), reading))
        importance = row_importance(metric, weight.shape[0])
        softened = tempered(importance, Feedback().row_exponent)
        rows, share = (torch.from_numpy(values).float() for values in (np.sqrt(softened), importance / softened))
        unit = float(np.sqrt(metric.sensitivity)) / c
        pieces.append(
            Piece(weight, torch.from_numpy(aligned.weight), key, unit, rows, share, tuple(sites[weight.name]))
        )
    return pieces, moments


def tried(pieces: Sequence[Piece], moments: Moments, rotations: Sequence[torch.Tensor], most_rows: int) -> list[Tried]:
    """Every matrix in the axes tried, at most so many rows of each, drawn at random."""
    import torch

    factors: dict[str | None, Visit] = {}
    for key, (moment, reading) in moments.items():
        factors[key] = visit(turned_rows(turned_rows(moment, reading, rotations).T, reading, rotations))
    found = []
    for piece in pieces:
        count = piece.matrix.shape[0]
        rows = torch.randperm(count)[:most_rows]
        matrix = turned_rows(piece.matrix, piece.writes, rotations)[rows]
        matrix = turned_rows(matrix.T, piece.reads, rotations).T
        columns = matrix.shape[1]
        visited = factors.get(piece.moment) or Visit(torch.arange(columns), torch.eye(columns))
        noise = torch.rand(matrix.shape) - 0.5
        relaxation = relaxed(matrix, visited, piece.unit, piece.rows[rows], piece.share[rows], noise)
        found.append(Tried(piece, rows, relaxation, visited))
    return found


def turned_rows(
    values: torch.Tensor, sites: Sequence[tuple[int, Site]], rotations: Sequence[torch.Tensor]
) -> torch.Tensor:
    """T X for X [n, k], T the rotations of all sites; differentiable in both."""
    import torch

    for number, site in sites:
        index = torch.from_numpy(site.coordinates.ravel())
        blocks = rotations[number][torch.from_numpy(site.owner)]
        part = values[index].reshape(*site.coordinates.shape, -1)
        values = values.index_copy(0, index, (blocks @ part).reshape(index.numel(), -1))
    return values


def summed(found: Sequence[Tried], name: str) -> torch.Tensor:
    """Sum over all matrices; what some rows give stands for all."""
    import torch

    values = [getattr(one.relaxation, name) * (one.piece.matrix.shape[0] / one.rows.numel()) for one in found]
    return torch.stack(values).sum()
