"""Plot: KL over the rate of a sweep or of a comparison, as a .png or .svg file.

Sweep, ComparisonReport ─▶ points with their intervals, KL on a logarithmic axis ─▶ file
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from trueaxis.types import TrueaxisError

if TYPE_CHECKING:
    from trueaxis.comparison.run import ComparisonReport, ComparisonRow
    from trueaxis.sweep import Sweep, SweepRow

FORMATS = (".png", ".svg")


def check_plot(file: str | Path) -> None:
    """Refuses what `draw_sweep` cannot draw, before the work that leads to it.

    Raises:
        TrueaxisError: matplotlib is missing, or the name ends in no format that is drawn.
    """
    if Path(file).suffix.lower() not in FORMATS:
        raise TrueaxisError(f"{file}: plots are drawn as {' or '.join(FORMATS)}; give such a name")
    if find_spec("matplotlib") is None:
        raise TrueaxisError(f"{file}: plots need matplotlib; install it with: pip install 'trueaxis[all]'")


def draw_sweep(sweep: Sweep, file: str | Path) -> None:
    """Draws KL and its 95 % interval over real bits per parameter.

    Args:
        sweep: What was measured.
        file: To write, .png or .svg.

    Raises:
        TrueaxisError: The file cannot be written.
    """
    _draw({"": sweep.rows}, sweep.model, sweep.tokens, file)


def draw_comparison(found: ComparisonReport, file: str | Path) -> None:
    """The same for every recipe and peer, a colour each.

    Args:
        found: What was measured.
        file: To write, .png or .svg.

    Raises:
        TrueaxisError: The file cannot be written.
    """
    names = dict.fromkeys(row.name for row in found.rows)
    curves = {name: [row for row in found.rows if row.name == name and row.kl_nats > 0] for name in names}
    _draw(curves, found.model, found.tokens, file)


def _draw(curves: Mapping[str, Sequence[SweepRow | ComparisonRow]], model: str, tokens: int, file: str | Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for name, found in curves.items():
        rows = sorted(found, key=lambda row: row.bits_per_param)
        (line,) = axes.plot(
            [row.bits_per_param for row in rows], [row.kl_nats for row in rows], marker="o", markersize=4, label=name
        )
        for row in rows:
            if row.kl_interval is not None:
                axes.vlines(row.bits_per_param, *row.kl_interval, color=line.get_color())
    axes.set_yscale("log")
    axes.set_xlabel("bits per parameter, every byte of the file counted")
    axes.set_ylabel("KL(original ‖ compressed), nats per token")
    axes.set_title(f"{Path(model).resolve().name}, {tokens:,} tokens", fontsize="medium")
    axes.grid(alpha=0.3, which="both")
    if len(curves) > 1:
        axes.legend(fontsize="small")
    try:
        figure.savefig(file)
    except OSError as error:
        raise TrueaxisError(f"{file}: cannot be written: {error}") from error
