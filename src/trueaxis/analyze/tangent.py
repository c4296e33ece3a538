"""Tangent spaces of the rows: how much energy they hold, how much of the quantizer's error, how they turn over depth.

    rows of one half ─▶ n / 8 strongest directions ─▶ share of the other rows' energy in them        W ≈ J θ + ε
    W ─▶ noise feedback at about 3 bits ─▶ error ε ─▶ share of its energy in them
    the same matrix one block further ─▶ principal angles between the two spaces

What a least-squares fit leaves is normal to the space by construction, so ε is taken to be the error of the quantizer.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from trueaxis.analyze.axes import RATE, conditional_energies, inside, tangent_directions
from trueaxis.analyze.claim import Claim, Measured
from trueaxis.entropy.model import first_tables
from trueaxis.model.graph import route
from trueaxis.parallel import ordered_map
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import Planner
from trueaxis.stages import Feedback
from trueaxis.types import Array, Metric, Weight

if TYPE_CHECKING:
    from trueaxis.analyze.subject import Subject

PAIRS = 12  # of matrices in neighbouring blocks
TINY = 1e-30


def tangent_energy(subject: Subject) -> Measured:
    """Share of the energy of rows in the tangent space of other rows."""

    def shares(weight: Weight) -> list[float]:
        matrix, found = subject.matrix(weight), []
        for half in subject.halves:
            rows = half.rows(matrix.shape[0])
            space, others = tangent_directions(matrix[rows]), matrix[~rows]
            found.append(_share(others, space))
        return found

    return _over_matrices(subject, ordered_map(shares, subject.sampled, subject.threads))


def error_avoids_tangent(subject: Subject) -> Measured:
    """Share of the quantizer's error in the tangent space, over the share of its directions (1 / 8)."""
    planner = Planner(Feedback(effort="scalar"))
    moments = {space: [subject.moment(space, half.fitted) for half in subject.halves] for space in subject.spaces}

    def ratios(weight: Weight) -> list[float]:
        found = []
        for moment in moments[str(weight.space)]:
            matrix, folded = subject.folded(weight, moment)
            error, space = _quantizer_error(planner, weight, matrix, folded), tangent_directions(matrix)
            found.append(_share(error, space) * matrix.shape[1] / space.shape[0])
        return found

    return _over_matrices(subject, ordered_map(ratios, subject.sampled, subject.threads))


def _quantizer_error(planner: Planner, weight: Weight, matrix: Array, moment: Array) -> Array:
    """Ŵ − W [m, n] of noise feedback at about `RATE` bits."""
    worth = np.square(matrix).mean(axis=0) * conditional_energies(moment)
    c = np.sqrt(12.0) * 2.0 ** (0.5 * np.log2(np.maximum(worth, TINY)).mean() - RATE)
    plan = planner.plan(weight, matrix.astype(np.float32), Metric(moment))
    return quantize(plan, float(c), first_tables()).errors.astype(np.float64)


def shared_over_depth(subject: Subject) -> Measured:
    """How far the tangent space of a matrix lies in that of the same matrix one block further."""
    pairs = _neighbours(subject)
    if not pairs:
        return Measured(None, {}, "no two neighbouring blocks have matrices that read the same stream")

    def angles(pair: tuple[Weight, Weight]) -> tuple[list[float], list[float]]:
        one, other = subject.matrix(pair[0]), subject.matrix(pair[1])
        shared, cosines = [], []
        for half in subject.halves:
            first = tangent_directions(one[half.rows(one.shape[0])])
            second = tangent_directions(other[~half.rows(other.shape[0])])
            shared.append(inside(first, second))
            cosines.append(np.linalg.svd(first @ second.T, compute_uv=False))
        degrees = np.degrees(np.arccos(np.clip(np.mean(cosines, axis=0), -1, 1)))
        return shared, [float(degrees[0]), float(np.median(degrees)), float(degrees[-1])]

    found = ordered_map(angles, pairs, subject.threads)
    rows = [
        {"matrix": one.name, "next": other.name, "shared": float(np.mean(shared)), "degrees": degrees}
        for (one, other), (shared, degrees) in zip(pairs, found, strict=True)
    ]
    return Measured(np.median([shared for shared, _ in found], axis=0), {"pairs": rows})


def _neighbours(subject: Subject) -> list[tuple[Weight, Weight]]:
    """Matrices that read the residual stream behind a norm, each with its like in the next block."""
    blocks = route(subject.checkpoint).blocks
    readers: list[dict[str, Weight]] = [{} for _ in blocks]
    for weight in subject.weights:
        for index, block in enumerate(blocks):
            if weight.norm is not None and str(weight.space).startswith(f"{block}."):
                readers[index][weight.name.rpartition(f"{block.rpartition('.')[2]}.")[2]] = weight
    pairs = [
        (weight, after[kind])
        for before, after in itertools.pairwise(readers)
        for kind, weight in before.items()
        if kind in after and after[kind].shape == weight.shape
    ]
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(PAIRS, len(pairs))).round().astype(int)) if pairs else []
    return [pairs[index] for index in chosen]


def _share(rows: Array, space: Array) -> float:
    """Of the energy of rows [k, n], what lies in a space [r, n]."""
    return float(np.square(rows @ space.T).sum() / max(np.square(rows).sum(), TINY))


def _over_matrices(subject: Subject, found: list[list[float]]) -> Measured:
    details = {"matrices": {w.name: float(np.mean(row)) for w, row in zip(subject.sampled, found, strict=True)}}
    return Measured(np.median(found, axis=0), details)


CLAIMS = (
    Claim("tangent-holds-energy", "manifold", "An eighth of the directions holds most of the energy of unseen rows.",
          "share", 0.5, 0.25, tangent_energy),
    Claim("error-avoids-tangent", "manifold", "The error of the quantizer avoids the tangent space.",
          "of its share of directions", 0.5, 0.8, error_avoids_tangent),
    Claim("depth-shares-tangent", "depth", "Neighbouring blocks share tangent directions.",
          "0 chance to 1 the same", 0.2, 0.1, shared_over_depth),
)  # fmt: skip
