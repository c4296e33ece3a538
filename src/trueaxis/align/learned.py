"""Learned axes: min_T R(TW) + λ·D over the rotations that the network's symmetries leave free.

    gauge ─▶ turns, each an orthogonal matrix that starts at the identity ─▶ descent on a smooth rate ─▶ turned axes
                                                                         └▶ judged on statistics held out: kept or not

What turns stays exact, so nothing is stored and nothing runs later, as with every gauge. Positive scalings of channels
are symmetries too but nothing to learn: steps follow them, and the indices stay the same (tests/align/test_learned.py).

References: SpinQuant (arXiv:2405.16406) for learned rotations and the KL straight through rounding; Lezcano-Casado
2019 (trivializations) for the parametrization of the orthogonal group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.align.gauge import LARGEST_KL_NATS, aligned_by, exact_parts, moved_nats
from trueaxis.align.held_out import coded_cost, divided, turned
from trueaxis.align.network import Alignment, Network
from trueaxis.align.part import Turn
from trueaxis.align.straight import StraightThrough
from trueaxis.align.trial import Tried, pieces_of, summed, tried
from trueaxis.stages import Learned
from trueaxis.types import Array, Learning, Space

if TYPE_CHECKING:
    import torch

ROWS = 256  # of every matrix, drawn anew at every step
LEARNING_RATE = 1e-3  # radians per step and pair of axes at first; a cosine brings it to zero


def learned(stage: Learned, network: Network) -> Alignment:
    """The gauge's axes, turned further by descent, where that costs less on statistics held out.

    Args:
        stage: Axes at the start, what is minimized, and for how many steps.
        network: Checkpoint and statistics; its text is what is held out from, and what "kl" reads.
    """
    parts, notes = exact_parts(stage, network)
    start = aligned_by(parts, notes)
    turns = [turn for part in parts for turn in part.turns]
    if not turns or not stage.steps:
        return start
    seen, held, tokens = divided(network)
    rotations, curve = _descended(stage, seen, start, turns, tokens)
    found = start
    for turn, rotation in zip(turns, rotations, strict=True):
        found = turned(found, turn.changes(rotation))
    costs = {"start": coded_cost(seen, held, start), "learned": coded_cost(seen, held, found)}
    better = costs["learned"] < costs["start"] and moved_nats(network, found.changes, found.products) < LARGEST_KL_NATS
    learning = Learning(stage.proxy, stage.distortion, tuple(curve), costs, "learned" if better else "start")
    note = f"learned: {costs['start']:.4f} → {costs['learned']:.4f} bits + λ·D held out, {learning.kept} kept"
    if not better:
        return replace(start, gauges=(*notes, note), learning=learning)
    gained = Space("all that turns", "learned", costs["start"] - costs["learned"])
    return replace(found, gauges=(*notes, note), spaces=(*start.spaces, gained), learning=learning)


def _descended(
    stage: Learned, network: Network, start: Alignment, turns: Sequence[Turn], tokens: Array
) -> tuple[list[Array], list[dict[str, float]]]:
    """Rotations [count, side, side] of every turn, and the curve."""
    import torch

    pieces, moments = pieces_of(network, start, turns)
    size = sum(piece.weight.size for piece in pieces)
    distortion, most_rows = DISTORTIONS[stage.distortion](network, start, tokens)
    curve = []
    with torch.random.fork_rng([]):
        torch.manual_seed(network.seed)
        free = [_Free(turn) for turn in turns]
        optimizer = torch.optim.Adam([one.angles for one in free], lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, stage.steps)
        for number in range(stage.steps):
            rotations = [one.rotations() for one in free]
            found = tried(pieces, moments, rotations, most_rows)
            bits = {name: summed(found, f"{name}_bits") / size for name in ("noise", "sparsity")}
            lost = distortion(found, rotations) / size
            optimizer.zero_grad()
            (bits[stage.proxy] + lost).backward()
            optimizer.step()
            schedule.step()
            told = {"noise": bits["noise"], "sparsity": bits["sparsity"], "distortion": lost}
            curve.append({"step": float(number), **{name: float(value.detach()) for name, value in told.items()}})
        final = [one.rotations().detach().double().numpy() for one in free]
    return [_orthogonal(rotation) for rotation in final], curve


class _Free:
    """The rotations of one turn as functions of free parameters: torch's orthogonal parametrization, from identity."""

    def __init__(self, turn: Turn) -> None:
        import torch

        self._module = torch.nn.Module()
        self._module.weight = torch.nn.Parameter(torch.eye(turn.side).repeat(turn.count, 1, 1))
        torch.nn.utils.parametrizations.orthogonal(self._module, "weight", orthogonal_map="cayley")
        (self.angles,) = self._module.parameters()

    def rotations(self) -> torch.Tensor:
        """[count, side, side]."""
        return self._module.weight  # type: ignore[return-value]


Distortion = Callable[[Sequence[Tried], Sequence["torch.Tensor"]], "torch.Tensor"]
"""(matrices tried, rotations) ─▶ λ·D of the network in bits."""


def _by_metric(network: Network, start: Alignment, tokens: Array) -> tuple[Distortion, int]:
    """λ·D of the statistics, and the rows that are enough for it."""
    return lambda found, rotations: summed(found, "distortion_bits"), ROWS


def _by_kl(network: Network, start: Alignment, tokens: Array) -> tuple[Distortion, int]:
    """λ·KL on the tokens; the model needs all rows."""
    return StraightThrough(network, start, tokens), max(weight.shape[0] for weight in network.weights)


DISTORTIONS = {"metric": _by_metric, "kl": _by_kl}


def _orthogonal(rotations: Array) -> Array:
    left, _, right = np.linalg.svd(rotations)
    return left @ right
