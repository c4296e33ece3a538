"""Splines: rows, or columns, that change smoothly with the index of their channel; with one knot they are means.

W ≈ hats B  (rows)          W ≈ A hatsᵀ  (columns), least squares in the metric          knots 1, 2, 4, …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from trueaxis.function.member import Fit, Member, no_bases
from trueaxis.runtime.terms import ColumnSplines, Rows, RowSplines, hats

MOST_KNOTS = 64


def means(members: Sequence[Member]) -> list[Fit]:
    """The mean row, or the mean column in the metric, whichever describes more."""
    return [min(row_spline(member, 1), column_spline(member, 1), key=lambda fit: fit.bits) for member in members]


def splines(members: Sequence[Member]) -> list[Fit]:
    """Over rows or columns, with as many knots as pay."""
    return [
        min((_most(fit, member) for fit in (row_spline, column_spline)), key=lambda fit: fit.bits) for member in members
    ]


def _most(fit: Callable[[Member, int], Fit], member: Member) -> Fit:
    best, knots = fit(member, 2), 4
    while knots <= min(MOST_KNOTS, *member.matrix.shape):
        found = fit(member, knots)
        if found.bits >= best.bits and knots > 8:
            break
        best, knots = min(best, found, key=lambda fit: fit.bits), 2 * knots
    return best


def row_spline(member: Member, knots: int) -> Fit:
    """B [knots, n]: the metric weighs rows alone, whatever it is."""
    size = member.matrix.shape[0]
    basis = hats(knots, size) / member.row_steps[:, None]
    found = np.linalg.lstsq(basis, member.matrix / member.row_steps[:, None], rcond=None)[0]
    step = member.resolution(hats(knots, size) @ found)
    term = RowSplines(Rows.rounded(found, step / np.linalg.norm(basis, axis=0), member.column_steps), size)
    return Fit.of("means" if knots == 1 else "splines", member, term, no_bases)


def column_spline(member: Member, knots: int) -> Fit:
    """Aᵀ [knots, m] by least squares in the metric."""
    size = member.matrix.shape[1]
    basis = hats(knots, size).astype(np.float64)
    white = basis.T @ member.root
    found = np.linalg.lstsq(white.T, (member.matrix @ member.root).T, rcond=None)[0]
    step = member.resolution(found.T @ basis.T)
    spread = np.linalg.norm(basis.T / member.column_steps, axis=1)
    term = ColumnSplines(Rows.rounded(found, step / spread, member.row_steps), size)
    return Fit.of("means" if knots == 1 else "splines", member, term, no_bases)
