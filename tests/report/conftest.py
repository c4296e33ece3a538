"""A compressed model with everything that a page can show of it: an analysis, a comparison, an evaluation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

import trueaxis
from trueaxis.analyze.claim import Finding, Verdict
from trueaxis.analyze.journey import FORMAT, VERSION, Analysis
from trueaxis.comparison.run import ComparisonReport, ComparisonRow
from trueaxis.container import Container
from trueaxis.types import Evaluation


def finding(name: str, value: float | None, verdict: Verdict, holds: float = 0.5, fails: float = 0.2) -> Finding:
    bounds = None if value is None else (value - 0.1, value + 0.1)
    reason = "too few rows" if value is None else None
    return Finding(name, "topic", f"{name} is so.", "share", value, bounds, verdict, holds, fails, reason, {"a": [1]})


def analysis(parameters: int) -> Analysis:
    systems = [
        {"coordinates": name, "spectrum": [2.0 - 0.1 * n for n in range(33)], "scaled_kurtosis": 3.0 + n / 10,
         "estimated_bits": 2.9, "dead_columns_1": 0.02 * n, "dead_columns_2": 0.0}
        for n, name in enumerate(("identity", "random", "pca-weights", "joint"))
    ]  # fmt: skip
    found = (
        finding("first", 0.7, "holds"),
        finding("second", 0.05, "does not hold"),
        finding("third", None, "undecided"),
        finding("fourth", 90.0, "does not hold", holds=0.2, fails=0.5),
    )
    return Analysis(
        FORMAT, VERSION, "tiny", parameters, "text", 4096, 900, 1.5, ("a", "b"), "joint", tuple(systems), found
    )


def comparison(parameters: int) -> ComparisonReport:
    def row(name: str, setting: str, size: int, kl: float, limit: float | None) -> ComparisonRow:
        interval = (kl * 0.9, kl * 1.1) if kl else (0.0, 0.0)
        perplexity = math.inf if name == "rtn" else 9.0 + kl
        return ComparisonRow(
            name, setting, size, size * 8 / parameters, kl, interval, perplexity, 0.9, 1.0, 10**8, 0.1, limit
        )

    size = parameters // 8
    rows = (
        row("default", "3 bits", 3 * size, 0.2, 3.1), row("default", "4 bits", 4 * size, 0.04, 4.1),
        row("rtn", "3 bits", 3 * size - 9, 0.7, 3.2), row("rtn", "4 bits", 4 * size - 9, 0.12, 4.2),
        row("hqq", "4 bits", 5 * size, 0.05, None), row("default", "as hqq 4 bits", 5 * size - 3, 0.01, 5.1),
        row("zipnn", "lossless", 11 * size, 0.0, None), row("lossless", "as zipnn lossless", 11 * size - 9, 0.0, 10.9),
    )  # fmt: skip
    absent = {"torchao": "not installed in python", "zipnn <b>": "of <i>no</i> use"}
    return ComparisonReport("models/tiny", parameters, 500, 9.0, rows, absent)


@pytest.fixture(scope="session")
def files(compressed_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What analyze, compare and eval would print of `compressed_llama`, by the name of the option."""
    folder, parameters = tmp_path_factory.mktemp("printed"), trueaxis.inspect(compressed_llama)["parameters"]
    fingerprint = Container(compressed_llama).fingerprint
    results = {
        "analysis": analysis(parameters),
        "comparison": comparison(parameters),
        "evaluation": Evaluation(9.1, 2.2, 0.0388, (0.037, 0.04), 0.9, 500, 0.0, fingerprint),
    }
    for name, result in results.items():
        (folder / f"{name}.json").write_text(json.dumps(asdict(result)))
    return {name: folder / f"{name}.json" for name in results}


@pytest.fixture(scope="session")
def page(compressed_llama: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with all its data."""
    pytest.importorskip("plotly", reason="the report needs plotly (trueaxis[report])")
    return trueaxis.report(compressed_llama, tmp_path_factory.mktemp("page") / "page.html", **files)
