"""Curves: KL over rate of every method in a sweep or a comparison, and the limit, for whoever draws them.

Sweep, ComparisonReport ─▶ method → rows, smallest file first ─▶ plot.py, report/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trueaxis.recipe import name_of

if TYPE_CHECKING:
    from trueaxis.comparison.run import ComparisonReport, ComparisonRow
    from trueaxis.sweep import Sweep, SweepRow

    Row = ComparisonRow | SweepRow
    Found = ComparisonReport | Sweep

OWN = "default"
LEAST = 1e-6  # nats of KL that arithmetic in float32 can tell from none


def curves(found: Found) -> dict[str, list[Row]]:
    """Rows by recipe or peer, in the order of their first row."""
    rows: dict[str, list[Row]] = {}
    for row in found.rows:
        rows.setdefault(getattr(row, "name", "") or name_of(getattr(found, "recipe", {})), []).append(row)
    return {name: sorted(one, key=lambda row: row.file_bytes) for name, one in rows.items()}


def drawn(rows: Sequence[Row]) -> list[Row]:
    """Those that a logarithmic axis can show: with a loss that can be measured."""
    return [row for row in rows if row.kl_nats >= LEAST]


def is_peer(row: Row) -> bool:
    """Whether other people's quantizer made it: of such files no limit is known."""
    return row.limit_bits_per_param is None


def limit_curve(found: Found) -> list[tuple[float, float]]:
    """(bits per parameter, KL): where files of the default recipe would lie had they no more bits than the limit of
    Gaussian weights has at their distortion; of the first recipe where the default is not there."""
    by_name = curves(found)
    for name in (OWN, *by_name):
        points = _limits(by_name.get(name, ()))
        if points:
            return points
    return []


def _limits(rows: Sequence[Row]) -> list[tuple[float, float]]:
    limits = [(row.limit_bits_per_param, row.kl_nats) for row in drawn(rows)]
    return [(bits, kl_nats) for bits, kl_nats in limits if bits is not None]
