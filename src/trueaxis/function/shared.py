"""Shared: matrices of one kind over depth as sums of a few that they share, W_l = Σ θ_lk B_k + r_l.

    W_1 … W_L in steps ─▶ principal directions B_k, coded once, in the record of the first ─▶ θ_l of each

That is the tangent model of one kind of matrix over depth (one B_k near their mean, the others their differences), and
holds whatever is smooth in the layer's index, with fewer numbers than a basis given beforehand would take for θ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trueaxis.function.member import Fit, Member
from trueaxis.runtime.terms import MOST_SHARED, Rows, Shared
from trueaxis.types import Array


def shared(members: Sequence[Member]) -> list[Fit]:
    """As many shared matrices as pay; none for a single member."""
    if len(members) < 2:
        return []
    steps = _common_steps(members)
    found = np.stack([(member.matrix / steps).reshape(-1) for member in members]).astype(np.float64)
    _, directions = np.linalg.eigh(found @ found.T)
    directions = directions[:, ::-1].T  # [k, l]
    fits = [_fits(members, directions[:count], steps) for count in range(1, min(len(members), MOST_SHARED))]
    return min(fits, key=lambda row: sum(fit.bits for fit in row))


def _common_steps(members: Sequence[Member]) -> Array:
    """Of one shared matrix [m, n]: the geometric mean of the members'."""
    rows = np.mean([np.log(member.row_steps) for member in members], axis=0)
    columns = np.mean([np.log(member.column_steps) for member in members], axis=0)
    return np.exp(rows)[:, None] * np.exp(columns)


def _fits(members: Sequence[Member], directions: Array, steps: Array) -> list[Fit]:
    matrices = np.stack([member.matrix for member in members]).astype(np.float64)
    bases = np.einsum("kl,lmn->kmn", directions, matrices)
    energies = [
        member.resolution(np.einsum("k,kmn->mn", direction, bases))
        for member, direction in zip(members, directions.T, strict=True)
    ]
    step = float(np.exp(np.log(energies).mean()))
    count, (rows, columns) = len(bases), members[0].matrix.shape
    row_steps = np.tile(np.exp(np.log(steps).mean(axis=1) - np.log(steps).mean()), count)
    own = Rows.rounded(bases.reshape(count * rows, columns), step * row_steps, np.exp(np.log(steps).mean(axis=0)))
    decoded = own.values().reshape(bases.shape)
    weights = [_weights(member, decoded) for member in members]
    terms = [Shared(weights[0], (rows, columns), own)]
    terms += [Shared(one, (rows, columns), None, members[0].name) for one in weights[1:]]
    return [Fit.of("shared", member, term, lambda name: decoded) for member, term in zip(members, terms, strict=True)]


def _weights(member: Member, bases: Array) -> Array:
    """θ [K] of a matrix, least squares in steps."""
    scaled = (bases / member.row_steps[:, None] / member.column_steps).reshape(len(bases), -1)
    target = (member.matrix / member.row_steps[:, None] / member.column_steps).reshape(-1)
    return np.linalg.lstsq(scaled.T, target, rcond=None)[0].astype(np.float32)
