"""Products: f of low rank in the metric, as many pairs of singular vectors as pay for themselves.

    W in white coordinates = U S Vᵀ ─▶ f = A B of rank 1, 2, 4, …, then between ─▶ the rank of least description length

Unlike the factors of lowrank.py it leaves a residual, so that it may stop where the spectrum becomes that of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from trueaxis.function.member import Fit, Member, no_bases
from trueaxis.runtime.terms import Product, Rows
from trueaxis.types import Array


def products(members: Sequence[Member]) -> list[Fit]:
    """The best product for each matrix."""
    return [best_product(member) for member in members]


def best_product(member: Member) -> Fit:
    """Ranks are doubled as long as that helps, then moved by a half, a quarter, … of the best one."""
    left, values, right = np.linalg.svd(member.whitened, full_matrices=False)
    right = np.linalg.solve(member.root.T, (values[:, None] * right).T).T

    @cache
    def fit(rank: int) -> Fit:
        return _fit(member, left, right, rank)

    best, rank = 1, 2
    while rank <= len(values):
        if fit(rank).bits >= fit(best).bits and rank > 4:
            break
        best, rank = min(best, rank, key=lambda one: fit(one).bits), 2 * rank
    move = best // 2
    while move:
        near = [one for one in (best - move, best, best + move) if 1 <= one <= len(values)]
        best, move = min(near, key=lambda one: fit(one).bits), move // 2
    return fit(best)


def _fit(member: Member, left: Array, right: Array, rank: int) -> Fit:
    first, second = (left[:, :rank] * member.row_steps[:, None]).T, right[:rank]
    step = member.resolution(first.T @ second)
    spread = np.maximum(np.linalg.norm(second / member.column_steps, axis=1), 1e-12)
    term = Product(
        Rows.rounded(first, step / spread, member.row_steps),
        Rows.rounded(second, np.full(rank, step), member.column_steps),
    )
    return Fit.of("product", member, term, no_bases)
