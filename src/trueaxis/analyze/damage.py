"""Damage: what the model loses when its weights move along the tangent space, lose rank, or are pruned.

every linear layer of the blocks edited at once ─▶ KL(model ‖ edited) per group of the text
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.analyze.axes import tangent_directions
from trueaxis.analyze.claim import Claim, Measured
from trueaxis.parallel import ordered_map
from trueaxis.types import Array, Weight

if TYPE_CHECKING:
    from trueaxis.analyze.subject import Subject

NOISES = (0.05, 0.1)  # ‖E‖ / ‖W‖ of every matrix; the last one is judged
RANKS = (0.125, 0.25, 0.5)
PRUNED = (0.25, 0.5, 0.75)
JUDGED_RANK, JUDGED_PRUNED = 0.25, 0.5
TINY = 1e-12

Edit = Callable[[Array, int], Array]
"""(W [m, n], number of the matrix) ─▶ what stands in its place."""


def noise_directions(subject: Subject) -> Measured:
    """log₂ of the KL by noise along the tangent space over that by equal noise normal to it."""
    curves, judged = [], {}
    for noise in NOISES:
        row: dict[str, float] = {"noise": noise}
        for direction in ("tangent", "normal", "random"):
            judged[direction] = _damage(subject, _noisy(direction, noise))
            row[direction] = float(judged[direction].mean())
        curves.append(row)
    tangent, normal = (np.maximum(subject.by_half(judged[name]), TINY) for name in ("tangent", "normal"))
    return Measured(np.log2(tangent / normal), {"kl_nats": curves})


def low_rank(subject: Subject) -> Measured:
    """KL with a quarter of the rank left, over that with all matrices zero."""
    return _share_of_all(subject, {share: _truncated(share) for share in RANKS}, JUDGED_RANK, "rank")


def pruning(subject: Subject) -> Measured:
    """KL with the smaller half of every matrix pruned, over that with all matrices zero."""
    return _share_of_all(subject, {share: _pruned(share) for share in PRUNED}, JUDGED_PRUNED, "pruned")


def _share_of_all(subject: Subject, edits: dict[float, Edit], judged: float, label: str) -> Measured:
    found = {share: _damage(subject, edit) for share, edit in edits.items()}
    curve = [{label: share, "kl_nats": float(groups.mean())} for share, groups in found.items()]
    ratio = subject.by_half(found[judged]) / np.maximum(subject.by_half(subject.without_blocks), TINY)
    return Measured(ratio, {"curve": curve, "all_zero_kl_nats": float(subject.without_blocks.mean())})


def _damage(subject: Subject, edit: Edit) -> Array:
    """KL [14] of every group with every matrix edited."""

    def edited(numbered: tuple[int, Weight]) -> Array:
        number, weight = numbered
        return edit(subject.view(weight).double().numpy(), number)

    matrices = ordered_map(edited, enumerate(subject.weights), subject.threads)
    names = [weight.name for weight in subject.weights]
    return subject.divergence(dict(zip(names, matrices, strict=True)))


def _noisy(direction: str, size: float) -> Edit:
    """Gaussian noise of a relative size, in the tangent space of the rows, normal to it, or anywhere."""

    def edit(matrix: Array, number: int) -> Array:
        noise = np.random.default_rng(number).normal(size=matrix.shape)
        if direction != "random":
            space = tangent_directions(matrix)
            along = (noise @ space.T) @ space
            noise = along if direction == "tangent" else noise - along
        return matrix + noise * (size * np.linalg.norm(matrix) / max(float(np.linalg.norm(noise)), TINY))

    return edit


def _truncated(share: float) -> Edit:
    def edit(matrix: Array, number: int) -> Array:
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        rank = max(1, round(share * values.size))
        return (left[:, :rank] * values[:rank]) @ right[:rank]

    return edit


def _pruned(share: float) -> Edit:
    def edit(matrix: Array, number: int) -> Array:
        return np.where(np.abs(matrix) < np.quantile(np.abs(matrix), share), 0.0, matrix)

    return edit


CLAIMS = (
    Claim("tangent-noise-is-cheap", "loss", "Noise along the tangent space costs less than noise normal to it.",
          "octaves of KL", -0.5, -0.2, noise_directions),
    Claim("low-rank-suffices", "loss", "A quarter of the rank keeps almost all of the model.",
          "of the KL without blocks", 0.05, 0.15, low_rank),
    Claim("half-can-be-pruned", "loss", "Half of the weights can be pruned at almost no loss.",
          "of the KL without blocks", 0.005, 0.02, pruning),
)  # fmt: skip
