"""Tensors: what each cost, by tensor and over depth, and how far it is from its limit.

Facts ─▶ bits-by-tensor (treemap), bits-by-depth, gap
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from trueaxis.depth import Curve, block_of, by_depth, name_in_block, quantized
from trueaxis.report.facts import Facts
from trueaxis.report.figure import COLOURS, SYMBOLS, Figure, Missing, Plot, Table, digits, plain
from trueaxis.types import TensorReport

ROOT, HEADERS = "file", "headers"
DARK = 0.62  # share of the highest rate from which on text has to be of the other lightness
PALE = 1.5  # keeps the strongest colours of a heat map out of it, for the numbers' sake
DASHES = ("solid", "dash", "dot", "dashdot")


def by_tensor(facts: Facts) -> Figure:
    """A treemap: areas are bytes, colours bits per weight."""
    name, title, report = "bits-by-tensor", "Bits by tensor", facts.report
    if report is None:
        return _without_report(facts, name, title, "What every tensor takes of the file.")
    rows = quantized(report.tensors) or report.tensors
    dearest = max(rows, key=lambda row: row.bits_per_weight)
    largest = max(report.tensors, key=_bytes)
    return Figure(
        name, title,
        f"Areas are bytes, colours bits per weight. {largest.name} takes most bytes, "
        f"{_bytes(largest) / report.file_bytes:.1%} of the file; {dearest.name} takes most bits per weight, "
        f"{digits(dearest.bits_per_weight)}.",
        plots=(Plot(
            "A treemap of the file: a rectangle for every tensor, as large as its bytes, as in the table below",
            [_treemap(report.tensors, report.header_bytes, dearest.bits_per_weight)],
            {"margin": {"l": 0, "r": 0, "t": 4, "b": 64}, "uniformtext": {"minsize": 9, "mode": "hide"}}, height=520,
        ),),
        tables=(Table(
            "Every tensor",
            ("tensor", "shape", "axes", "bytes", "bits per weight", "limit", "gap", "relative distortion"),
            [(row.name, "×".join(map(str, row.shape)), row.coordinates, f"{_bytes(row):,.0f}",
              digits(row.bits_per_weight, 4), digits(row.limit_bits, 4), digits(row.gap_bits),
              digits(row.relative_distortion)) for row in report.tensors]
            + [("headers, shared tables", "", "", f"{report.header_bytes:,}", "", "", "", "")],
            folded=True,
        ),),
    )  # fmt: skip


def _treemap(rows: Sequence[TensorReport], header_bytes: int, highest: float) -> dict[str, Any]:
    """Root ─▶ blocks, and tensors in none ─▶ tensors; areas add up from the leaves."""
    numbers = dict.fromkeys(block_of(row.name) for row in rows)
    blocks = {block: [row for row in rows if block_of(row.name) == block] for block in numbers}
    cells: list[tuple[str, str, str, float, float]] = [(ROOT, "", "the file", 0.0, _rate(rows))]
    for block, members in sorted(blocks.items(), key=lambda one: -1 if one[0] is None else one[0]):
        parent = ROOT
        if block is not None:
            parent = f"block {block}"
            cells.append((parent, ROOT, parent, 0.0, _rate(members)))
        for row in members:
            label = plain(name_in_block(row.name)).replace(".", ".<br>")
            cells.append((f"tensor {row.name}", parent, label, _bytes(row), row.bits_per_weight))
    cells.append((HEADERS, ROOT, HEADERS, float(header_bytes), 0.0))
    ids, parents, labels, sizes, bits = zip(*cells, strict=True)
    return {
        "type": "treemap", "ids": ids, "parents": parents, "labels": labels, "values": sizes, "customdata": bits,
        "marker": {
            "colors": [min(one, highest) for one in bits], "cmin": 0, "cmax": highest,
            "colorscale": [[0, "var(--low)"], [0.5, "var(--middle)"], [1, "var(--high)"]], "showscale": True,
            "colorbar": {"title": {"text": "bits per weight", "side": "top"}, "orientation": "h", "y": 0,
                         "yanchor": "top", "thickness": 10, "len": 0.6, "outlinewidth": 0},
            "line": {"width": 1, "color": "var(--page)"}, "pad": {"t": 20, "l": 2, "r": 2, "b": 2},
        },
        "text": [f"{one:.2f} bits" if one else "" for one in bits], "textinfo": "label+text", "tiling": {"pad": 1},
        "textfont": {"color": ["var(--onhigh)" if one > DARK * highest else "var(--onlow)" for one in bits]},
        "pathbar": {"visible": False}, "sort": False,
        "hovertemplate": "%{label}: %{value:,.0f} bytes, %{customdata:.2f} bits per weight<extra></extra>",
    }  # fmt: skip


def over_depth(facts: Facts) -> Figure:
    """Bits per weight over depth, a curve for every kind of tensor."""
    name, title, report = "bits-by-depth", "Bits by depth", facts.report
    if report is None:
        return _without_report(facts, name, title, "Where in the network bits go.")
    found = by_depth(report.tensors, lambda row: row.bits_per_weight)
    if not found:
        return Figure(name, title, "No quantized tensor of this file lies in a numbered block.")
    apart = [row for row in quantized(report.tensors) if block_of(row.name) is None]
    outside = "; ".join(f"{row.name} has {digits(row.bits_per_weight)}" for row in apart[:4])
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": plain(curve.kind),
            "x": curve.blocks,
            "y": curve.values,
            "line": {"color": COLOURS[n % len(COLOURS)], "dash": DASHES[n // len(COLOURS) % len(DASHES)]},
            "marker": {"symbol": SYMBOLS[n % len(SYMBOLS)], "size": 8},
            "hovertemplate": f"{plain(curve.kind)}, block %{{x}}: %{{y:.3f}} bits<extra></extra>",
        }
        for n, curve in enumerate(found)
    ]
    return Figure(
        name, title,
        "Bits per weight of every kind of tensor, block by block. All tensors share one price of distortion, so a "
        f"tensor gets more bits where its errors do more harm.{f' Outside the blocks, {outside}.' if outside else ''}",
        plots=(Plot(
            "Curves of bits per weight over blocks, one for every kind of tensor, as in the table below", traces,
            {"xaxis": {"title": {"text": "block"}, "dtick": _spacing(found)},
             "yaxis": {"title": {"text": "bits per weight"}}},
            height=460,
        ),),
        tables=(_depth_table("Bits per weight by kind and block", report.tensors, 4, lambda row: row.bits_per_weight),),
    )  # fmt: skip


def _spacing(curves: Sequence[Curve]) -> int:
    """Blocks from one tick to the next."""
    return 1 + max(block for curve in curves for block in curve.blocks) // 16


def gap(facts: Facts) -> Figure:
    """Bits per weight above the limit: kinds over blocks, as colours."""
    name, title, report = "gap", "Gap to the limit", facts.report
    if report is None:
        return _without_report(facts, name, title, "How far every tensor is from its rate–distortion limit.")
    if not quantized(report.tensors):
        return Figure(
            name, title, "Every tensor of this file is kept exactly: there is no distortion to have a limit at."
        )
    found = by_depth(report.tensors, lambda row: row.gap_bits)
    weights = sum(prod(row.shape) for row in quantized(report.tensors)) or 1
    mean = sum(row.gap_bits * prod(row.shape) for row in quantized(report.tensors)) / weights
    sentence = (
        "Bits per weight above the least that Gaussian weights of the same energies need at the distortion reached, by "
        f"reverse water-filling in the original's metric; {digits(mean)} over all weights. Below 0 the weights have "
        "structure that the file makes use of."
    )
    apart = [row for row in quantized(report.tensors) if block_of(row.name) is None]
    if apart:
        sentence += " Outside the blocks: " + "; ".join(f"{row.name} {digits(row.gap_bits)}" for row in apart[:4]) + "."
    if not found:
        return Figure(name, title, sentence)
    blocks = sorted({block for curve in found for block in curve.blocks})
    cells = [[dict(zip(curve.blocks, curve.values, strict=True)).get(block) for block in blocks] for curve in found]
    reach = max((abs(value) for curve in found for value in curve.values), default=0.0) or 1.0
    return Figure(
        name, title, sentence,
        plots=(Plot(
            "A grid of gaps in bits per weight: kinds of tensors over blocks, as in the table below",
            [{
                "type": "heatmap", "x": [str(block) for block in blocks], "y": [plain(curve.kind) for curve in found],
                "z": cells, "zmin": -PALE * reach, "zmax": PALE * reach,
                "textfont": {"color": "var(--ink)"}, "texttemplate": "%{z:.2f}" if len(blocks) <= 16 else "",
                "colorscale": [[0, "var(--below)"], [0.5, "var(--card)"], [1, "var(--above)"]], "xgap": 2, "ygap": 2,
                "colorbar": {"title": {"text": "bits"}, "thickness": 12, "outlinewidth": 0},
                "hovertemplate": "%{y}, block %{x}: %{z:.3f} bits<extra></extra>",
            }],
            {"xaxis": {"title": {"text": "block"}, "type": "category", "showgrid": False},
             "yaxis": {"autorange": "reversed", "showgrid": False, "automargin": True}},
            height=120 + 40 * len(found),
        ),),
        tables=(_depth_table("Gap in bits per weight by kind and block", report.tensors, 3, lambda row: row.gap_bits),),
    )  # fmt: skip


def _depth_table(caption: str, rows: Sequence[TensorReport], significant: int, figure: Any) -> Table:
    found = by_depth(rows, figure)
    blocks = sorted({block for curve in found for block in curve.blocks})
    lines = [
        [curve.kind, *(digits(dict(zip(curve.blocks, curve.values, strict=True)).get(block), significant)
                       for block in blocks)]
        for curve in found
    ]  # fmt: skip
    return Table(caption, ("kind", *(f"block {block}" for block in blocks)), lines, folded=True)


def _without_report(facts: Facts, name: str, title: str, sentence: str) -> Figure:
    return Figure(name, title, sentence, missing=(Missing(
        "The report that compression leaves, trueaxis.json, is missing from the directory or of another file.",
        (f"trueaxis compress MODEL {facts.quoted} --bits {facts.inspection['bits_per_param']:.2f} --overwrite",),
    ),))  # fmt: skip


def _bytes(row: TensorReport) -> float:
    return row.bits_per_weight * prod(row.shape) / 8


def _rate(rows: Sequence[TensorReport]) -> float:
    return sum(map(_bytes, rows)) * 8 / max(sum(prod(row.shape) for row in rows), 1)
