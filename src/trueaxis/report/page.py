"""Page: figures to one HTML file that needs nothing else, no network either.

OUT, files ─▶ Facts ─▶ figures ─▶ page.html with page.css, page.js and plotly.js inside ─▶ PAGE.html
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trueaxis.report.facts import Facts, read_facts
from trueaxis.report.figure import Figure, finite
from trueaxis.report.geometry import claims, coordinates
from trueaxis.report.methods import rate_distortion
from trueaxis.report.size import headline, spent
from trueaxis.report.structure import function_residual
from trueaxis.report.tensors import by_tensor, gap, over_depth
from trueaxis.staging import require_apart
from trueaxis.types import TrueaxisError

FIGURES: tuple[Callable[[Facts], Figure], ...] = (
    headline, rate_distortion, by_tensor, over_depth, gap, coordinates, function_residual, claims, spent,
)  # fmt: skip
HERE = Path(__file__).parent


def report(
    out: str | Path,
    output: str | Path,
    *,
    analysis: str | Path | None = None,
    comparison: str | Path | None = None,
    evaluation: str | Path | None = None,
) -> Path:
    """Writes the page of a compressed directory.

    Args:
        out: Directory written by `trueaxis.compress`.
        output: The .html file to write, outside of `out`; it is replaced if it exists.
        analysis: What `trueaxis analyze MODEL --json` printed.
        comparison: What `trueaxis compare MODEL --json` or `trueaxis sweep MODEL --json` printed.
        evaluation: What `trueaxis eval OUT --reference MODEL --json` printed.

    Returns:
        The file.

    Raises:
        FormatError: `out` is damaged.
        TrueaxisError: plotly or jinja2 is missing, a file does not serve, or the page cannot be written.

    Example:
        >>> trueaxis.report("llama-3bit", "page.html", analysis="analysis.json")   # doctest: +SKIP
    """
    check_page(output)
    require_apart(output, out)
    facts = read_facts(out, analysis, comparison, evaluation)
    return write_page(render(facts.name, [figure(facts) for figure in FIGURES]), Path(output))


def check_page(output: str | Path) -> None:
    """Refuses a page that cannot be made, before the work that leads to it.

    Raises:
        TrueaxisError: A package is missing, or the name does not end in .html.
    """
    if Path(output).suffix.lower() not in (".html", ".htm"):
        raise TrueaxisError(f"{output}: the report is a page of HTML; give a name that ends in .html")
    for package in ("plotly", "jinja2"):
        if find_spec(package) is None:
            raise TrueaxisError(
                f"{output}: the report needs {package}; install it with: pip install 'trueaxis[report]'"
            )


def render(name: str, figures: list[Figure]) -> str:
    """HTML of figures.

    Args:
        name: Of the directory that they show.
        figures: In order.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    from trueaxis import __version__

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        name=name, figures=figures, version=__version__, plotly=get_plotlyjs(), specification=_specification,
        style=(HERE / "page.css").read_text(encoding="utf-8"), script=(HERE / "page.js").read_text(encoding="utf-8"),
    )  # fmt: skip


def _specification(plot: Any) -> dict[str, Any]:
    """What page.js draws."""
    found = asdict(plot)
    return finite({"data": found["data"], "layout": found["layout"], "height": found["height"]})


def write_page(text: str, file: Path) -> Path:
    """Writes a file that appears whole or not at all.

    Raises:
        TrueaxisError: It cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{file.name}.") as folder:
            staged = Path(folder) / file.name
            staged.write_text(text, encoding="utf-8")
            staged.replace(file)
    except OSError as error:
        raise TrueaxisError(f"{file}: cannot be written: {error.strerror}") from error
    return file
