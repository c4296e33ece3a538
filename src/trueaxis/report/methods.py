"""Methods: recipes and other people's quantizers at each rate, as a comparison or a sweep found them.

Facts ─▶ rate-distortion, and the tables of the headline
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trueaxis.comparison.run import ComparisonReport, ComparisonRow
from trueaxis.curve import LEAST, OWN, curves, drawn, is_peer, limit_curve
from trueaxis.report.facts import Facts
from trueaxis.report.figure import COLOURS, SYMBOLS, Cell, Figure, Missing, Plot, Table, digits, kl, plain

if TYPE_CHECKING:
    from trueaxis.curve import Found, Row

DASHES = ("solid", "dot", "dashdot")
TWIN = "as {0.name} {0.setting}"
"""Setting of our row beside a peer's row."""


def rate_distortion(facts: Facts) -> Figure:
    """KL over bits per parameter: a line per recipe, a mark per peer, the limit, and this file."""
    name, title, found = "rate-distortion", "Rate and distortion", facts.comparison
    if found is None:
        compare = "trueaxis compare MODEL --bits 3,4,5 --calibration text.txt --text test.txt --json > comparison.json"
        return Figure(
            name, title, "How far recipes and other people's quantizers are from the original at each rate.",
            missing=(Missing("No comparison was given.", (compare, facts.command("--comparison comparison.json"))),),
        )  # fmt: skip
    lossless = [(method, row) for method, rows in curves(found).items() for row in rows if row.kl_nats < LEAST]
    sentence = (
        f"KL from the original in nats per token on {found.tokens:,} tokens, over real bits per parameter: lower and "
        "further left is better. Bars are 95 % intervals. The dashed line says where the default recipe's files would "
        "lie at the limit of Gaussian weights with their distortion; weights that have structure can do better."
    )
    if lossless:
        sentence += " Without a loss that can be measured, and so not on this scale: " + ", ".join(
            f"{method} at {row.bits_per_param:.2f} bits" for method, row in lossless
        ) + "."  # fmt: skip
    return Figure(
        name, title, sentence,
        plots=(Plot(
            "Curves of KL over bits per parameter, one for every method, as in the table below", _traces(facts, found),
            {"xaxis": {"title": {"text": "bits per parameter, every byte counted"}, "nticks": 12},
             "yaxis": {"title": {"text": "KL, nats per token"}, "type": "log", "exponentformat": "power",
                       "minor": {"showgrid": True}, **_ticks(found)}},
            height=520,
        ),),
        tables=(_all_rows(found), *_absent(found)),
    )  # fmt: skip


def _ticks(found: Found) -> dict[str, int]:
    """Powers of ten where there are several; within a decade or two the numbers that suit."""
    known = [row.kl_nats for rows in curves(found).values() for row in rows if row.kl_nats >= LEAST]
    return {"dtick": 1} if known and max(known) > 100 * min(known) else {}


def _absent(found: Found) -> list[Table]:
    if not isinstance(found, ComparisonReport) or not found.absent:
        return []
    rows = [(method, Cell(reason, look="words")) for method, reason in found.absent.items()]
    return [Table("Not in the picture", ("method", "reason"), rows, folded=True, shape="reasons")]


def _traces(facts: Facts, found: Found) -> list[dict[str, Any]]:
    kept = {method: rows for method, all_rows in curves(found).items() if (rows := drawn(all_rows))}
    recipes = sorted((name for name in kept if not is_peer(kept[name][0])), key=lambda name: name != OWN)
    traces = [_recipe_trace(method, kept[method], number) for number, method in enumerate(recipes)]
    peers = [method for method in kept if method not in recipes]
    traces += [_peer_trace(method, kept[method], number) for number, method in enumerate(peers)]
    if limit := limit_curve(found):
        traces.append({
            "type": "scatter", "mode": "lines", "name": "limit of Gaussian weights", "x": [bits for bits, _ in limit],
            "y": [kl_nats for _, kl_nats in limit], "line": {"color": "var(--ink)", "dash": "dash", "width": 1.5},
            "hovertemplate": "limit: %{x:.3f} bits, KL %{y:.3g}<extra></extra>",
        })  # fmt: skip
    known = facts.evaluation
    if known is not None and known.kl_nats is not None and known.kl_nats > 0:
        traces.append({
            "type": "scatter", "mode": "markers", "name": "this file", "x": [facts.inspection["bits_per_param"]],
            "y": [known.kl_nats], "hovertemplate": "this file: %{x:.3f} bits, KL %{y:.3g}<extra></extra>",
            "marker": {"symbol": "circle-cross-open", "size": 17, "color": "var(--ink)", "line": {"width": 2}},
        })  # fmt: skip
    return traces


def _recipe_trace(method: str, rows: Sequence[Row], number: int) -> dict[str, Any]:
    """A line; a second round of colours has other marks and is dotted."""
    turn, place = divmod(number, len(COLOURS))
    return {
        **_points(method, rows),
        "mode": "lines+markers",
        "line": {
            "color": COLOURS[place],
            "width": 3.5 if method == OWN else 2,
            "dash": DASHES[turn % len(DASHES)],
        },
        "marker": {"color": COLOURS[place], "size": 8, "symbol": SYMBOLS[(place + turn) % len(SYMBOLS)]},
    }


def _peer_trace(method: str, rows: Sequence[Row], number: int) -> dict[str, Any]:
    """Open marks."""
    symbol = f"{SYMBOLS[number % len(SYMBOLS)]}-open"
    return {
        **_points(method, rows),
        "mode": "markers",
        "marker": {"color": "var(--ink)", "size": 11, "symbol": symbol, "line": {"width": 2}},
    }


def _points(method: str, rows: Sequence[Row]) -> dict[str, Any]:
    bounds = [row.kl_interval or (row.kl_nats, row.kl_nats) for row in rows]
    return {
        "type": "scatter",
        "name": plain(method),
        "x": [row.bits_per_param for row in rows],
        "y": [row.kl_nats for row in rows],
        "error_y": {
            "array": [high - row.kl_nats for row, (_, high) in zip(rows, bounds, strict=True)],
            "arrayminus": [row.kl_nats - low for row, (low, _) in zip(rows, bounds, strict=True)],
            "thickness": 1.2,
            "width": 3,
        },
        "text": [plain(_setting(row)) for row in rows],
        "hovertemplate": f"{plain(method)}, %{{text}}: %{{x:.3f}} bits, KL %{{y:.3g}}<extra></extra>",
    }


def method_tables(facts: Facts) -> list[Table]:
    """KL of every recipe at every rate; peers beside ours at the very same bytes."""
    found = facts.comparison
    if found is None:
        return []
    sizes = {TWIN.format(row) for row in found.rows if is_peer(row)}
    own = {
        (method, _setting(row)): row
        for method, rows in curves(found).items()
        for row in rows
        if not is_peer(row) and _setting(row) not in sizes
    }
    methods, settings = (list(dict.fromkeys(part)) for part in (zip(*own, strict=True) if own else ((), ())))
    least = {
        setting: min((row.kl_nats for (_, one), row in own.items() if one == setting), default=0.0)
        for setting in settings
    }
    rows = [
        [method, *(_kl_cell(own.get((method, setting)), least[setting]) for setting in settings)] for method in methods
    ]
    tables = [Table("KL from the original in nats per token, by recipe and rate", ("recipe", *settings), rows)]
    return [*tables, *_peer_table(found)] if rows else _peer_table(found)


def _peer_table(found: Found) -> list[Table]:
    twins = {row.setting: row for row in found.rows if isinstance(row, ComparisonRow) and not is_peer(row)}
    pairs = [
        (row, twins.get(TWIN.format(row))) for row in found.rows if isinstance(row, ComparisonRow) and is_peer(row)
    ]
    if not pairs:
        return []
    return [Table(
        "Other people's quantizers, embeddings and head as they leave them, and the default recipe at their size, "
        "or as large as finer steps still make it; beside a lossless one our lossless file",
        ("method", "bytes", "bits per parameter", "its KL", "our bytes", "our KL"),
        [
            (
                f"{row.name} {row.setting}", f"{row.file_bytes:,}", f"{row.bits_per_param:.2f}",
                _kl_cell(row, min(row.kl_nats, twin.kl_nats if twin else row.kl_nats)),
                f"{twin.file_bytes:,}" if twin else "–",
                _kl_cell(twin, min(row.kl_nats, twin.kl_nats)) if twin else Cell("not that large"),
            )
            for row, twin in sorted(pairs, key=lambda pair: pair[0].file_bytes)
        ],
    )]  # fmt: skip


def _kl_cell(row: Row | None, least: float) -> Cell:
    return Cell("–") if row is None else kl(row.kl_nats, row.kl_interval, "best" if row.kl_nats <= least else "")


def _all_rows(found: Found) -> Table:
    rows = [(method, row) for method, of_method in curves(found).items() for row in of_method]
    return Table(
        f"All files, smallest first; the original has perplexity {digits(found.perplexity, 4)}"
        if isinstance(found, ComparisonReport)
        else "All files, smallest first",
        ("method", "setting", "bytes", "bits per parameter", "KL, nats per token", "perplexity"),
        [
            (
                method,
                _setting(row),
                f"{row.file_bytes:,}",
                f"{row.bits_per_param:.3f}",
                kl(row.kl_nats, row.kl_interval),
                digits(row.perplexity, 4),
            )
            for method, row in sorted(rows, key=lambda one: (one[1].file_bytes, one[1].kl_nats))
        ],
        folded=True,
    )


def _setting(row: Row) -> str:
    return row.setting if isinstance(row, ComparisonRow) else f"{row.bits:g} bits"
