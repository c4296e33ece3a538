"""Geometry: coordinates side by side, and the claims of the theory with their verdicts.

Facts ─▶ coordinates, claims
"""

from __future__ import annotations

import math
from typing import Any

from trueaxis.analyze.claim import Finding
from trueaxis.analyze.journey import Analysis
from trueaxis.report.facts import Facts
from trueaxis.report.figure import COLOURS, Bar, Cell, Figure, Missing, Plot, Table, between, digits, plain

NAMED = {"identity": "own axes", "random": "random rotation"}
LOOKS = {"holds": "good", "does not hold": "bad", "undecided": "open"}
SIGNS = {"holds": "✓ holds", "does not hold": "✗ does not hold", "undecided": "? undecided"}
RATE = 2  # bits at which the claim of dead zones is made
QUIET = "var(--faint)"
DEAD = {1: 0.55, 2: 1.0}  # rate → opacity
GAUSSIAN = 3.0  # kurtosis
SYSTEMS_AXIS = {"autorange": "reversed", "automargin": True, "showgrid": False}
DASHES = ("dash", "dot", "dashdot", "longdash", "longdashdot")


def coordinates(facts: Facts) -> Figure:
    """Spectrum, kurtosis and dead zones of every coordinate system; the axes that the file uses."""
    name, title, found = "coordinates", "Coordinates", facts.analysis
    spaces = () if facts.report is None else facts.report.spaces
    used = [Table(
        "Axes that this file uses, and the bits per weight that they are estimated to save", ("space", "axes", "saved"),
        [(space.name, space.axes, digits(space.estimated_saved_bits)) for space in spaces], folded=True,
    )] if spaces else []  # fmt: skip
    if found is None:
        return Figure(
            name, title, "The same weights in several coordinate systems: spectrum, outliers, dead zones.",
            tables=used, missing=_no_analysis(facts),
        )  # fmt: skip
    sentence = (
        f"The same weights in every coordinate system, on {len(found.matrices)} matrices; {_shown(found.aligned)} needs"
        " the fewest estimated bits. A steep spectrum means that few columns hold the energy; kurtosis 3 is that of a "
        "Gaussian, more means outliers. The legend says how each system is drawn."
    )
    return Figure(
        name, title, sentence, plots=(_spectra(found), _kurtosis(found), _dead(found)),
        tables=(_coordinates_table(found), *used),
    )  # fmt: skip


def _shown(system: str) -> str:
    return NAMED.get(system, system)


def _colour(found: Analysis, system: str) -> str:
    """Own axes, random ones and the aligned ones stand out."""
    if system == found.aligned:
        return COLOURS[0]
    return {"identity": COLOURS[1], "random": COLOURS[3]}.get(system, QUIET)


def _number(row: dict[str, Any], figure: str) -> float:
    value = row.get(figure)
    return float(value) if isinstance(value, int | float) else float("nan")


def _spectra(found: Analysis) -> Plot:
    """Column energies over their mean, largest first."""
    traces = []
    for row in found.coordinates:
        spectrum = row["spectrum"] if isinstance(row.get("spectrum"), list) else []
        system, last = str(row.get("coordinates")), max(len(spectrum) - 1, 1)
        colour = _colour(found, system)
        dash = DASHES[len(traces) % len(DASHES)] if colour == QUIET else "solid"
        traces.append({
            "type": "scatter", "mode": "lines", "name": plain(_shown(system)),
            "x": [n / last for n in range(len(spectrum))], "y": spectrum,
            "line": {"color": colour, "dash": dash, "width": 3 if system == found.aligned else 2},
            "hovertemplate": f"{plain(_shown(system))}: %{{y:.2f}} octaves<extra></extra>",
        })  # fmt: skip
    return Plot(
        "Curves of column energy in octaves over its mean, over rank, one for every coordinate system", traces,
        {"xaxis": {"title": {"text": "columns, largest first"}, "tickformat": ".0%", "range": [-0.01, 1.01]},
         "yaxis": {"title": {"text": "log₂ energy / mean"}}},
        height=400, title="Spectrum",
    )  # fmt: skip


def _kurtosis(found: Analysis) -> Plot:
    """A mark per system, beside the line of a Gaussian."""
    values = [_number(row, "scaled_kurtosis") for row in found.coordinates]
    known = [value for value in values if math.isfinite(value)] + [GAUSSIAN - 0.5, GAUSSIAN + 0.5]
    margin = 0.05 * (max(known) - min(known))
    marks = {
        "type": "scatter", "mode": "markers+text", "y": _systems(found), "x": values, "textposition": "middle right",
        "text": [digits(value) for value in values], "cliponaxis": False, "textfont": {"size": 12},
        "marker": {"size": 11, "color": _colours(found)}, "hovertemplate": "%{y}: %{x:.2f}<extra></extra>",
    }  # fmt: skip
    line = {"type": "line", "x0": GAUSSIAN, "x1": GAUSSIAN, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"color": "var(--muted)", "dash": "dash", "width": 1.5}}  # fmt: skip
    return Plot(
        "Marks of kurtosis given the column's scale, one for every coordinate system, as in the table below", [marks],
        {"shapes": [line],
         "xaxis": {"title": {"text": "3 is a Gaussian's"}, "range": [min(known) - margin, max(known) + 5 * margin]},
         "yaxis": SYSTEMS_AXIS},
        height=330, title="Kurtosis, given the scale of the column",
    )  # fmt: skip


def _dead(found: Analysis) -> Plot:
    """Bars per system, at two rates."""
    bars = []
    for rate, opacity in DEAD.items():
        values = [_number(row, f"dead_columns_{rate}") for row in found.coordinates]
        bars.append({
            "type": "bar", "orientation": "h", "name": f"at {rate} bit{'s' * (rate > 1)}", "y": _systems(found),
            "x": values, "marker": {"color": _colours(found), "opacity": opacity}, "texttemplate": "%{x:.1%}",
            "textposition": "outside", "cliponaxis": False, "showlegend": False,
            "hovertemplate": f"%{{y}}, {rate} bits: %{{x:.1%}}<extra></extra>",
        })  # fmt: skip
    highest = max((value for bar in bars for value in bar["x"] if math.isfinite(value)), default=0.0)
    return Plot(
        "Bars of the share of dead columns at two rates, two for every coordinate system, as in the table below", bars,
        {"xaxis": {"title": {"text": "share of columns"}, "tickformat": ".0%", "range": [0, 1.3 * highest or 0.01]},
         "yaxis": SYSTEMS_AXIS, "bargap": 0.25},
        height=330, title="Columns that need no bits at 1 bit per weight (pale) and at 2",
    )  # fmt: skip


def _systems(found: Analysis) -> list[str]:
    return [plain(_shown(str(row.get("coordinates")))) for row in found.coordinates]


def _colours(found: Analysis) -> list[str]:
    return [_colour(found, str(row.get("coordinates"))) for row in found.coordinates]


def _coordinates_table(found: Analysis) -> Table:
    figures = {
        "estimated_bits": "estimated bits", "concentration_bits": "concentration, bits", "kurtosis": "kurtosis",
        "scaled_kurtosis": "given column scale", "max_over_sigma": "max / σ", "gini": "Gini",
        f"dead_columns_{RATE}": f"dead columns at {RATE} bits", f"zeros_{RATE}": f"zeros at {RATE} bits",
        "uniform_loss_bits": "uniform loss, bits", "coded_uniform_loss_bits": "coded uniform loss, bits",
    }  # fmt: skip
    return Table(
        "Coordinate systems, medians over matrices", ("system", *figures.values()),
        [(_shown(str(row.get("coordinates"))), *(digits(_number(row, figure)) for figure in figures))
         for row in found.coordinates],
        folded=True,
    )  # fmt: skip


def claims(facts: Facts) -> Figure:
    """Every claim of the theory: number, interval against its thresholds, verdict."""
    name, title, found = "claims", "Claims of the theory", facts.analysis
    sentence = "What the theory says of weights, and whether it is so in this model."
    if found is None:
        return Figure(name, title, sentence, missing=_no_analysis(facts))
    counts = {verdict: sum(claim.verdict == verdict for claim in found.claims) for verdict in LOOKS}
    told = f"{counts['holds']} hold, {counts['does not hold']} do not, {counts['undecided']} are undecided"
    return Figure(
        name, title,
        f"{sentence} Of {len(found.claims)} claims {told}. A claim holds where the whole 95 % interval, the dark bar, "
        "lies in the zone on the right, and does not where all of it lies in the zone on the left; thresholds were "
        "fixed before any trained model was measured.",
        tables=(Table(
            f"Measured on {found.tokens:,} tokens of {'the text given' if found.source == 'text' else 'sampled text'}",
            ("claim, unit of its number", "verdict", "against its thresholds", "number", "holds at"),
            [_claim_row(claim) for claim in found.claims], shape="sentences",
        ),),
    )  # fmt: skip


def _claim_row(claim: Finding) -> tuple[str | Cell, ...]:
    side = "≥" if claim.holds > claim.fails else "≤"
    number, place = Cell("–"), Cell(claim.reason or "", look="words")
    if claim.value is not None and claim.interval is not None:
        number = Cell(digits(claim.value), between(claim.interval))
        told = f"{number.text}, {between(claim.interval)}; holds at {side} {claim.holds:g}"
        place = Cell(told, bar=_bar(claim, claim.value, claim.interval))
    verdict = Cell(SIGNS[claim.verdict], look=LOOKS[claim.verdict])
    return Cell(claim.statement, claim.unit), verdict, place, number, f"{side} {claim.holds:g}".replace("-", "−")


def _bar(claim: Finding, value: float, interval: tuple[float, float]) -> Bar:
    """What lies far outside the thresholds is cut at the ends."""

    def at(number: float) -> float:
        return min(1.0, max(0.0, 0.4 + 0.2 * (number - claim.fails) / (claim.holds - claim.fails or 1.0)))

    low, high = sorted(map(at, interval))
    return Bar(low, at(value), high)


def _no_analysis(facts: Facts) -> tuple[Missing, ...]:
    return (Missing(
        "No analysis was given.",
        ("trueaxis analyze MODEL --text text.txt --json > analysis.json", facts.command("--analysis analysis.json")),
    ),)  # fmt: skip
