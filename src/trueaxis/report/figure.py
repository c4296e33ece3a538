"""Figures: what a section of the page is made of, without a word of HTML.

Figure = title, sentence, plots (Plotly's data and layout), tables, and what is missing with the command that makes it

Colours are names of the page's own, "var(--blue)" and so on, which page.js replaces by those of the light or the dark
scheme. Plotly reads tags in text, so that whatever a checkpoint may name goes through `plain`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = tuple(f"var(--{name})" for name in ("blue", "orange", "green", "purple", "sky", "gold", "red", "grey"))
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "hexagon", "x")
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
LONGEST = 48  # characters of a label


@dataclass(frozen=True)
class Plot:
    """One plot: `label` says to those who do not see it what it is; `height` in pixels; `title` of one of several."""

    label: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 380
    title: str = ""


@dataclass(frozen=True)
class Bar:
    """An interval on a scale from 0 to 1, on which a claim does not hold up to 0.4 and holds from 0.6 on."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: What it says; with a bar, what the bar says to those who do not see it.
        note: Smaller, below.
        look: "good", "bad", "open", "best", "words", or "" for a number.
        bar: In place of text.
    """

    text: str
    note: str = ""
    look: str = ""
    bar: Bar | None = None


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading. Those with `folded` open on demand; `shape` is "", "pairs" (few
    columns that stand close), "sentences" (headings that wrap) or "reasons" (words at the right)."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    folded: bool = False
    shape: str = ""


@dataclass(frozen=True)
class Tile:
    """A number that is read from afar."""

    number: str
    unit: str


@dataclass(frozen=True)
class Missing:
    """What is not there, and the commands that make it."""

    what: str
    commands: Sequence[str]


@dataclass(frozen=True)
class Figure:
    """A section of the page; `name` is the id of its element."""

    name: str
    title: str
    sentence: str
    tiles: Sequence[Tile] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    missing: Sequence[Missing] = ()


def plain(text: str) -> str:
    """A name as Plotly is to show it: no tags, and not too long.

    Example:
        >>> plain("a<b>c")
        'a&lt;b&gt;c'
    """
    short = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return html.escape(short, quote=False)


def digits(value: float | None, significant: int = 3) -> str:
    """A number for readers, to so many significant digits.

    Example:
        >>> digits(0.0388149), digits(1234.5), digits(float("inf")), digits(None)
        ('0.0388', '1,234', '∞', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and abs(value) < 1e-4:
        mantissa, exponent = f"{value:.{significant - 1}e}".split("e")
        return f"{mantissa}·10{str(int(exponent)).translate(RAISED)}".replace("-", "−")
    decimals = max(0, significant - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def kl(value: float, interval: Sequence[float] | None, look: str = "") -> Cell:
    """KL in nats, its interval below; sums in floating point may end below 0."""
    return Cell(digits(max(value, 0.0)), between(interval), look)


def between(interval: Sequence[float] | None) -> str:
    """An interval in words, or none."""
    return f"{digits(interval[0])} to {digits(interval[1])}" if interval else ""


def finite(value: Any) -> Any:
    """The same without NaN and infinities, which JSON does not have; null where they were."""
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
