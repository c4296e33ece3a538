"""Size: the file in numbers, and what its bytes are spent on.

Facts ─▶ headline, bytes
"""

from __future__ import annotations

from trueaxis.inspection import PURPOSES
from trueaxis.recipe import name_of
from trueaxis.report.facts import Facts
from trueaxis.report.figure import Cell, Figure, Missing, Plot, Table, Tile, digits, kl
from trueaxis.report.methods import method_tables
from trueaxis.types import Evaluation

BAR_COLOURS = ("blue", "orange", "green", "purple", "grey")


def headline(facts: Facts) -> Figure:
    """What the file is; how far recipes get at each rate, and others at their size."""
    found, report, quality = facts.inspection, facts.report, _quality(facts)
    ratio = digits(facts.original_bytes / found["file_bytes"])
    tiles = [
        Tile(f"{found['bits_per_param']:.2f}", "bits per parameter"),
        Tile(f"{ratio}×", "smaller than the original"),
    ]
    if quality is not None and quality.kl_nats is not None:
        tiles.append(Tile(digits(max(quality.kl_nats, 0.0)), "KL from the original, nats per token"))
    if quality is not None and quality.top1_agreement is not None:
        tiles.append(Tile(f"{quality.top1_agreement:.1%}", "same likeliest next token"))
    sentence = (
        f"{found['parameters']:,} parameters in {found['file_bytes']:,} bytes. Every byte of the weight files counts, "
        "embeddings, head, norms, tables and headers included."
    )
    notes = () if report is None else report.notes
    return Figure(
        "headline", "In numbers", " ".join([sentence, *(f"Note: {note}." for note in notes)]),
        tiles=tiles,
        tables=(Table("This file", ("figure", "value"), _rows(facts), shape="pairs"), *method_tables(facts)),
        missing=() if quality else (Missing(
            "How far this file is from its original has not been measured.",
            (f"trueaxis eval {facts.quoted} --text test.txt --reference MODEL --json > evaluation.json",
             facts.command("--evaluation evaluation.json")),
        ),),
    )  # fmt: skip


def _quality(facts: Facts) -> Evaluation | None:
    """What is known of the file on text it was not calibrated on."""
    return facts.evaluation or (facts.report.evaluation if facts.report else None)


def _rows(facts: Facts) -> list[tuple[str | Cell, ...]]:
    found, report, quality = facts.inspection, facts.report, _quality(facts)
    rows: list[tuple[str | Cell, ...]] = [
        ("weight files", f"{found['file_bytes']:,} bytes"),
        ("weights of the original", f"{facts.original_bytes:,} bytes"),
        ("parameters", f"{found['parameters']:,}"),
        ("bits per parameter", f"{found['bits_per_param']:.4f}"),
    ]
    if quality is not None:
        if quality.kl_nats is not None:
            rows.append(("KL from the original, nats per token", kl(quality.kl_nats, quality.kl_interval)))
        if quality.top1_agreement is not None:
            rows.append(("same likeliest token", f"{quality.top1_agreement:.1%}"))
        rows.append(("perplexity", f"{digits(quality.perplexity, 4)} on {quality.tokens:,} tokens"))
    rows.append(("recipe", name_of(found["recipe"])))
    if report is not None:
        tokens, source = report.calibration.get("tokens"), report.calibration.get("source")
        told = f"{tokens:,} tokens ({source})" if isinstance(tokens, int) else str(source)
        rows.append(("calibrated on", told))
        rows.append(("made in", f"{digits(report.seconds)} s, {report.peak_memory_bytes / 1e9:.2f} GB of memory"))
    return [*rows, ("format", f"version {found['format_version']}")]


def spent(facts: Facts) -> Figure:
    """How the file's bytes divide."""
    total = facts.inspection["file_bytes"]
    sizes = {purpose: facts.inspection["spent_bytes"][purpose] for purpose in PURPOSES}
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": title,
            "x": [sizes[purpose]],
            "y": [""],
            "marker": {"color": f"var(--{colour})"},
            "text": [f"{sizes[purpose] / total:.1%}" if sizes[purpose] > 0.04 * total else ""],
            "textposition": "inside",
            "insidetextanchor": "middle",
            "insidetextfont": {"color": "var(--page)"},
            "hovertemplate": f"{title}: {sizes[purpose]:,} bytes<extra></extra>",
        }
        for (purpose, title), colour in zip(PURPOSES.items(), BAR_COLOURS, strict=True)
    ]
    return Figure(
        "bytes", "What the bytes are",
        f"Indices are the weights themselves, entropy-coded; they are {sizes['indices'] / total:.1%} of the file. The "
        "rest says how to read them: steps and scales of rows and columns, the coder's tables, tensors kept exactly, "
        "and headers with their checksums.",
        plots=(Plot(
            "A bar that shows how the bytes of the file divide, as in the table below", bars,
            {"barmode": "stack", "xaxis": {"range": [0, total]}, "yaxis": {"visible": False},
             "legend": {"traceorder": "normal", "y": -0.35}},
            height=190,
        ),),
        tables=(Table(
            f"Where {total:,} bytes go", ("purpose", "bytes", "share"),
            [(title, f"{sizes[purpose]:,}", f"{sizes[purpose] / total:.2%}")
             for purpose, title in PURPOSES.items()],
            shape="pairs",
        ),),
    )  # fmt: skip
