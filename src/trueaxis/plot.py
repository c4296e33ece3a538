"""Plots: pictures of results, as .png or .svg files.

Sweep, ComparisonReport ─▶ points with their intervals, KL on a logarithmic axis ─▶ file
what inspect finds      ─▶ bits over depth, bytes by purpose                     ─▶ file
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueaxis.curve import curves, drawn, is_peer, limit_curve
from trueaxis.depth import by_depth
from trueaxis.inspection import PURPOSES
from trueaxis.restored import restored
from trueaxis.staging import require_apart
from trueaxis.types import CompressionReport, TrueaxisError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trueaxis.curve import Found

FORMATS = (".png", ".svg")
PEER_MARKERS = "sD^vXP*"


def check_plot(file: str | Path, model: str | Path) -> None:
    """Refuses a file that cannot be drawn, before the work that leads to it.

    Args:
        file: To write.
        model: Directory that is read.

    Raises:
        TrueaxisError: matplotlib is missing, the name ends in no format that is drawn, its directory is missing, or
            the model's.
    """
    require_apart(file, model)
    if Path(file).suffix.lower() not in FORMATS:
        raise TrueaxisError(f"{file}: plots are drawn as {' or '.join(FORMATS)}; give such a name")
    if not Path(file).parent.is_dir():
        raise TrueaxisError(f"{file}: {Path(file).parent} is no directory; make it first")
    if find_spec("matplotlib") is None:
        raise TrueaxisError(f"{file}: plots need matplotlib; install it with: pip install 'trueaxis[all]'")


def draw_curves(found: Found, file: str | Path) -> None:
    """Draws KL and its 95 % interval over real bits per parameter, a colour for every method, and the limit.

    Args:
        found: A sweep or a comparison.
        file: To write, .png or .svg.

    Raises:
        TrueaxisError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    peers = iter(PEER_MARKERS * len(found.rows))
    for name, all_rows in curves(found).items():
        if not (rows := drawn(all_rows)):
            continue
        look: dict[str, Any] = {"marker": "o", "markersize": 4}
        if is_peer(rows[0]):
            look = {"marker": next(peers), "linestyle": "none", "color": "0.2", "fillstyle": "none"}
        x, y = [row.bits_per_param for row in rows], [row.kl_nats for row in rows]
        (line,) = axes.plot(x, y, label=name, **look)
        for row in rows:
            if row.kl_interval is not None:
                axes.vlines(row.bits_per_param, *row.kl_interval, color=line.get_color())
    if limit := limit_curve(found):
        axes.plot(*zip(*limit, strict=True), color="0.5", linestyle="--", label="limit of Gaussian weights")
    axes.set_yscale("log")
    axes.set_xlabel("bits per parameter, every byte of the file counted")
    axes.set_ylabel("KL(original ‖ compressed), nats per token")
    axes.set_title(f"{Path(found.model).resolve().name}, {found.tokens:,} tokens", fontsize="medium")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")
    _save(figure, file)


def draw_inspection(found: Mapping[str, Any], file: str | Path) -> None:
    """Draws bits per weight over depth, a curve for every kind of tensor, above what the bytes are spent on.

    Args:
        found: From `trueaxis.inspect`.
        file: To write, .png or .svg.

    Raises:
        TrueaxisError: The directory has no report, which the bits come from, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    if found["report"] is None:
        raise TrueaxisError(f"{file}: bits per tensor come from OUT/trueaxis.json, which is missing or of another file")
    curves = by_depth(restored(CompressionReport, found["report"]).tensors, lambda row: row.bits_per_weight)
    if not curves:
        raise TrueaxisError(f"{file}: no tensor of a block was quantized, so there is nothing to draw over depth")
    figure = Figure(figsize=(7, 6), dpi=150, layout="constrained")
    depth, spent = figure.subplots(2, height_ratios=(3, 1))
    for curve in curves:
        depth.plot(curve.blocks, curve.values, marker="o", markersize=4, label=curve.kind)
    depth.set_xlabel("block")
    depth.set_ylabel("bits per weight")
    depth.xaxis.get_major_locator().set_params(integer=True)
    depth.grid(alpha=0.3)
    depth.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    sizes = list(found["spent_bytes"].values())
    bars = spent.barh([PURPOSES[purpose] for purpose in found["spent_bytes"]], sizes)
    spent.bar_label(bars, [f"{size / found['file_bytes']:.1%}" for size in sizes], padding=3, fontsize="small")
    spent.invert_yaxis()
    spent.margins(x=0.15)
    spent.set_xlabel(f"of {found['file_bytes']:,} bytes")
    _save(figure, file)


def _save(figure: Figure, file: str | Path) -> None:
    try:
        figure.savefig(file)
    except OSError as error:
        raise TrueaxisError(f"{file}: cannot be written: {error}") from error
