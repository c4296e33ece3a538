"""Structure: how much of a matrix a function of few numbers holds, and how much is left as residual.

decoded weights ─▶ singular values ─▶ energy that is left beside a low-rank f, rank by rank, against noise ─▶ Figure

What the file itself stores as f, products of two factors, is told from its records. Few matrices are decoded, spread
over the depth, because a singular value decomposition costs more than all the rest of the page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trueaxis.depth import block_of, kinds
from trueaxis.report.facts import Facts
from trueaxis.report.figure import COLOURS, Figure, Plot, Table, plain
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.matrices import matrices
from trueaxis.types import Array

BLOCKS = 3  # that are looked at
LARGEST = 1 << 26  # weights of a matrix that is decomposed
SHARES = np.linspace(0, 1, 33)
SHOWN = (0.125, 0.25, 0.5)


@dataclass(frozen=True, eq=False)
class Kind:
    """Energy left at every rank of `SHARES`, the mean over a kind's matrices; the same of noise of their shapes."""

    name: str
    left: Array
    noise: Array


def function_residual(facts: Facts) -> Figure:
    """Energy in f against energy in r, as the rank of f grows."""
    decoder = Decoder(facts.path)
    products = {name: rank for name in decoder.names() if (rank := _rank(decoder, name))}
    found = _measured(decoder)
    name, title = "function-residual", "Function and residual"
    if not any(map(decoder.residuals, decoder.names())):
        return Figure(name, title, "Every tensor of this file is kept exactly: there is neither f nor r.")
    if functions := _functions(facts):
        told = _sums_told(functions)
    elif products:
        told = (
            f"This file stores {len(products)} matrices as f alone, products of two factors of rank "
            f"{min(products.values())} to {max(products.values())}; the rest is residual."
        )
    else:
        told = "In this file f is nothing and every matrix is residual: its recipe has no function."
    sentence = (
        "A matrix W = f + r, f of low rank: the share of the energy that is left in r as f grows. Where a curve falls "
        f"faster than noise of the same shape, the matrix has structure that a function could hold. {told}"
    )
    if not found:
        return Figure(name, title, sentence + " No matrix is small enough to look at.")
    noise = np.mean([kind.noise for kind in found], axis=0)
    curves = [
        {
            "type": "scatter", "mode": "lines", "name": plain(kind.name), "x": SHARES.tolist(), "y": kind.left.tolist(),
            "line": {"color": COLOURS[number % len(COLOURS)]},
            "hovertemplate": f"{plain(kind.name)}: %{{y:.1%}} left at %{{x:.0%}} of the rank<extra></extra>",
        }
        for number, kind in enumerate(found)
    ] + [{
        "type": "scatter", "mode": "lines", "name": "noise", "x": SHARES.tolist(), "y": noise.tolist(),
        "line": {"color": "var(--muted)", "dash": "dash"},
        "hovertemplate": "noise: %{y:.1%} left at %{x:.0%} of the rank<extra></extra>",
    }]  # fmt: skip
    return Figure(
        name, title, sentence,
        plots=(Plot(
            "Curves of the share of energy left in the residual over the rank of f, one per kind of tensor", curves,
            {"xaxis": {"title": {"text": "rank of f, of full rank"}, "tickformat": ".0%", "range": [-0.01, 1.01]},
             "yaxis": {"title": {"text": "energy left in r"}, "tickformat": ".0%", "range": [-0.02, 1.02]}},
            height=460,
        ),),
        tables=(Table(
            "Energy left in the residual (and what noise would leave)",
            ("kind", *(f"rank {share:.3g} of full" for share in SHOWN)),
            [(kind.name, *(_left(kind, share) for share in SHOWN)) for kind in found],
            folded=True,
        ), *_stored(products), *_sums(functions)),
    )  # fmt: skip


def _left(kind: Kind, share: float) -> str:
    here = int(np.argmin(np.abs(SHARES - share)))
    return f"{kind.left[here]:.1%} ({kind.noise[here]:.1%})"


def _stored(products: dict[str, int]) -> list[Table]:
    if not products:
        return []
    rows = [(name, str(rank)) for name, rank in products.items()]
    return [Table("Matrices stored as products", ("tensor", "rank"), rows, folded=True)]


def _functions(facts: Facts) -> list[dict[str, Any]]:
    """Matrices with an f beside their residual, as the report of the compression has them."""
    report = facts.inspection["report"]
    return report.get("functions", []) if report else []


def _sums_told(functions: list[dict[str, Any]]) -> str:
    spent = sum(row["function_bits"] for row in functions)
    saved = sum(row["estimated_saved_bits"] for row in functions)
    return (
        f"In this file {len(functions)} matrices have an f, of {spent:,} bits together; by estimate they take "
        f"{saved:,.0f} bits less than as residuals alone."
    )


def _sums(functions: list[dict[str, Any]]) -> list[Table]:
    rows = [
        (row["name"], row["candidate"], f"{row['function_bits']:,}", f"{row['estimated_saved_bits']:,.0f}")
        for row in functions
    ]
    columns = ("tensor", "f", "bits in f", "saved, estimated")
    return [Table("Matrices stored as f + r", columns, rows, folded=True)] if rows else []


def _rank(decoder: Decoder, name: str) -> int:
    """Of the product that a tensor is stored as; 0 where it is none."""
    parts = matrices(decoder.container.tensors[name], decoder.container.records(name))
    return max((part.columns for part in parts if part.factor == "left"), default=0)


def _measured(decoder: Decoder) -> list[Kind]:
    names = [name for name in decoder.names() if block_of(name) is not None and decoder.residuals(name)]
    names = [name for name in names if _size(decoder, name) <= LARGEST]
    blocks = sorted({block_of(name) for name in names})  # type: ignore[type-var]
    chosen = {blocks[i] for i in np.linspace(0, len(blocks) - 1, min(BLOCKS, len(blocks))).round().astype(int)}
    groups: dict[str, list[Array]] = {}
    for name, kind in kinds(names).items():
        if block_of(name) in chosen and len(groups.get(kind, ())) < BLOCKS:
            groups.setdefault(kind, []).append(_matrix(decoder, name))
    generator = np.random.default_rng(0)
    return [
        Kind(kind, np.mean([energy_left(one) for one in members], axis=0),
             energy_left(generator.normal(size=members[0].shape)))
        for kind, members in groups.items()
    ]  # fmt: skip


def _size(decoder: Decoder, name: str) -> int:
    rows, columns = decoder.container.tensors[name].shape[-2:]
    return rows * columns


def _matrix(decoder: Decoder, name: str) -> Array:
    """float32 [m, n]; of a tensor with experts the first."""
    import torch

    value = decoder.tensor(name, torch.float32)
    return (value if value.ndim == 2 else value[0]).numpy()


def energy_left(matrix: Array) -> Array:
    """Share of the energy beyond the strongest singular values, at every rank of `SHARES`.

    Args:
        matrix: [m, n].

    Example:
        >>> energy_left(np.ones((4, 4)))[-1].item()
        0.0
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    energies = np.maximum(np.linalg.eigvalsh(tall.T.astype(np.float64) @ tall)[::-1], 0.0)
    held = np.concatenate([[0.0], np.cumsum(energies)]) / max(float(energies.sum()), 1e-300)
    ranks = np.linspace(0, 1, held.size)
    return np.maximum(0.0, 1 - np.interp(SHARES, ranks, held))
