"""Plot: KL over the rate of a sweep, as a .png or .svg file.

Sweep ─▶ points with their intervals, KL on a logarithmic axis ─▶ file
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from trueaxis.types import TrueaxisError

if TYPE_CHECKING:
    from trueaxis.sweep import Sweep

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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    rates = [row.bits_per_param for row in sweep.rows]
    axes.plot(rates, [row.kl_nats for row in sweep.rows], marker="o", color="tab:blue")
    for row in sweep.rows:
        if row.kl_interval is not None:
            axes.vlines(row.bits_per_param, *row.kl_interval, color="tab:blue")
    axes.set_yscale("log")
    axes.set_xlabel("bits per parameter, every byte of the file counted")
    axes.set_ylabel("KL(original ‖ compressed), nats per token")
    axes.set_title(f"{Path(sweep.model).resolve().name}, {sweep.tokens:,} tokens", fontsize="medium")
    axes.grid(alpha=0.3, which="both")
    try:
        figure.savefig(file)
    except OSError as error:
        raise TrueaxisError(f"{file}: cannot be written: {error}") from error
