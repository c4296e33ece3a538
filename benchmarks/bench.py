"""Every model, recipe and peer in one run: benchmarks/RESULTS.md, and the first table of the README.

    make bench                       all of it
    python benchmarks/bench.py [--models DIR …] [--recipes NAME …] [--peers NAME …] [--bits B …] [--sequences N]

    model × (recipe | peer) ─▶ a process that calls trueaxis.compare ─▶ build/bench/MODEL/NAME.json ─▶ tables

build/bench/MODEL/comparison.json has all of a model's, for `trueaxis report`. What is in build/bench already, of the
same sources and settings, is not measured again, so that a run that was cut short goes on where it ended; of methods
to --keep it may be of other sources too, and the page says which. Every recipe has a process of its own, so that its
peak memory is its own too; all processes of a model share one file of statistics.
A model without calibration_tokens.npy and evaluation_tokens.npy is taken for the demo model, which reads the standard
library.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import trueaxis
from trueaxis.comparison.peer import PEERS
from trueaxis.comparison.run import ComparisonReport, ComparisonRow
from trueaxis.curve import LEAST
from trueaxis.demo.corpus import Split, modules
from trueaxis.metric.calibrate import tokenize
from trueaxis.metric.source import obtain_statistics
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.progress import silent
from trueaxis.recipe import NAMED
from trueaxis.restored import restored

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "src" / "trueaxis" / "demo" / "model"
MADE = ROOT / "build" / "bench"
RESULTS = Path(__file__).with_name("RESULTS.md")
README, BEGIN, END = ROOT / "README.md", "<!-- bench: begin -->", "<!-- bench: end -->"
SHOWN_MODEL, SHOWN_RECIPES, SHOWN_BITS = (
    "pycode-6m",
    ("default", "at-once", "identity", "watersic", "gptq", "rtn"),
    (2.0, 3.0, 4.0),
)
RECIPES = tuple(dict.fromkeys(["default", *(name for name in NAMED if name != "gauge")]))
LENGTH = 512  # tokens of a sequence of the demo model


def main() -> None:
    """Measures what is missing, writes both tables, prints the machine, the command and every row."""
    options = parsed()
    if options.unit:
        print(json.dumps(asdict(measure(**json.loads(options.unit)))))
        return
    print(f"machine: {machine()}\ncommand: {command()}", flush=True)
    found = {
        model.parent.name if model == DEMO else model.name: list(units(model, options)) for model in options.models
    }
    for model, reports in found.items():
        (MADE / model / "comparison.json").write_text(json.dumps(asdict(joined(reports))))
    RESULTS.write_text(page(found, options.keep), encoding="utf-8")
    fill_readme(found)


def parsed() -> argparse.Namespace:
    """Options; every model, recipe and peer unless they say otherwise."""
    shared = ROOT.parent / "shared" / "models"
    models = [*sorted(path.parent for path in shared.glob("*/config.json")), DEMO]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", type=lambda text: Path(text).resolve(), nargs="+", default=models)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--bits", type=float, nargs="+", default=[2.0, 3.0, 4.0, 5.0])
    parser.add_argument("--sequences", type=int, default=64, help="to evaluate on")
    parser.add_argument("--keep", nargs="*", default=[], help="methods whose results of other sources stand")
    parser.add_argument("--unit", help=argparse.SUPPRESS)
    return parser.parse_args()


def units(model: Path, options: argparse.Namespace) -> Iterator[ComparisonReport]:
    """What is known of a model, recipe by recipe and peer by peer; measured where it is not known yet."""
    folder = MADE / (model.parent.name if model == DEMO else model.name)
    folder.mkdir(parents=True, exist_ok=True)
    shared = prepared(model, folder, options.sequences)
    parts = [("recipe", name) for name in options.recipes] + [("peer", name) for name in options.peers]
    for kind, name in parts:
        wanted = {**shared, "bits": options.bits, "recipes": [], "peers": [], f"{kind}s": [name]}
        yield restored(ComparisonReport, unit(folder / f"{kind}-{name}.json", wanted, name in options.keep))


def joined(reports: list[ComparisonReport]) -> ComparisonReport:
    """All of a model's as one, as `trueaxis report --comparison` takes it."""
    rows = tuple(row for report in reports for row in report.rows)
    absent = {name: reason for report in reports for name, reason in report.absent.items()}
    return replace(reports[0], rows=rows, absent=absent)


def unit(file: Path, wanted: dict[str, Any], keep: bool) -> Any:
    """The result of `measure` in a process of its own, or the one that lies in the file, of any sources to be kept."""
    key = {"sources": sources(), "machine": machine(), **wanted}
    stored = json.loads(file.read_text()) if file.exists() else {"key": {}}
    if stored["key"] == key or (keep and {**stored["key"], "sources": key["sources"]} == key):
        return stored["result"]
    here = [sys.executable, __file__, "--unit", json.dumps(wanted)]
    environment = {"TRUEAXIS_PEERS": str(ROOT / "build" / "peers"), **os.environ}
    run = subprocess.run(here, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result = json.loads(run.stdout.splitlines()[-1])
    file.write_text(json.dumps({"key": key, "result": result}))
    for row in result["rows"]:
        print(file.parent.name, json.dumps(row), flush=True)
    return result


def measure(**wanted: Any) -> ComparisonReport:
    """One recipe or one peer on one model."""
    return trueaxis.compare(**wanted)


def prepared(model: Path, folder: Path, sequences: int) -> dict[str, Any]:
    """Arguments of `measure` that all of a model's share: tokens to evaluate on, and statistics."""
    tokens, statistics = folder / f"evaluation-{sequences}.npy", folder / "statistics.safetensors"
    np.save(tokens, spread(split_tokens(model, "evaluation"), sequences))
    calibration = folder / "calibration.npy"
    if not statistics.exists():
        np.save(calibration, split_tokens(model, "calibration"))
        checkpoint = Checkpoint.open(model)
        obtain_statistics(checkpoint, trace(checkpoint), [calibration], statistics, 0, "cpu", silent)
    return {
        "model": str(model), "tokens": str(tokens), "statistics": str(statistics), "calibration": [str(calibration)],
    }  # fmt: skip


def split_tokens(model: Path, split: Split) -> np.ndarray:
    """Integers [sequences, length]."""
    file = model / f"{split}_tokens.npy"
    return np.load(file) if file.exists() else tokenize(model, modules(split), LENGTH)


def spread(tokens: np.ndarray, sequences: int) -> np.ndarray:
    """So many sequences, evenly over the text."""
    return tokens[np.linspace(0, len(tokens) - 1, min(sequences, len(tokens))).astype(int)]


def page(found: dict[str, list[ComparisonReport]], kept: Sequence[str]) -> str:
    """RESULTS.md."""
    parts = [
        "# Results", "",
        f"Made by `{command()}` on {date.today()}, sources {sources()[:12]}, on {machine()}.",
        "KL is in nats per token, with its 95 % interval; seconds are from weights and statistics to a verified file; "
        "peak memory is that of the process that made it, the model in float32 included; load seconds are from the "
        "files to a model that can run, of a peer to plain weights by its own decoder.",
    ]  # fmt: skip
    parts += ["", *older(kept)]
    for model, reports in found.items():
        rows = sorted((row for report in reports for row in report.rows), key=lambda row: (row.file_bytes, row.kl_nats))
        parts += [
            "", f"## {model}", "",
            f"{reports[0].parameters:,} parameters; the original has perplexity {reports[0].perplexity:.4f} on "
            f"{reports[0].tokens:,} tokens.",
            "", "| bits/parameter | bytes | method | setting | KL | perplexity | seconds | GB | load seconds |",
            "|---|---|---|---|---|---|---|---|---|", *map(line, rows), *versus(rows), *left_out(reports, rows),
        ]  # fmt: skip
    return "\n".join(parts) + "\n"


def older(kept: Sequence[str]) -> list[str]:
    """Which results that were kept are of other sources."""
    methods: dict[str, set[str]] = {}
    for file in (file for name in kept for file in MADE.glob(f"*/*-{name}.json")):
        if (source := json.loads(file.read_text())["key"]["sources"]) != sources():
            methods.setdefault(source, set()).add(f"`{file.stem.partition('-')[2]}`")
    return [f"Of sources {one[:12]}: {', '.join(sorted(names))}." for one, names in sorted(methods.items())]


def line(row: ComparisonRow) -> str:
    """A row of the big table."""
    return (
        f"| {row.bits_per_param:.3f} | {row.file_bytes:,} | `{row.name}` | {row.setting} | {cell(row)} | "
        f"{row.perplexity:.4f} | {row.seconds:.1f} | {row.peak_memory_bytes / 1e9:.2f} | {row.load_seconds:.2f} |"
    )


def cell(row: ComparisonRow) -> str:
    """KL and its interval to three significant digits."""
    low, high = row.kl_interval or (float("nan"), float("nan"))
    return f"{max(row.kl_nats, 0.0):.3g} ({max(low, 0.0):.3g} to {max(high, 0.0):.3g})"


def versus(rows: list[ComparisonRow]) -> list[str]:
    """Peers beside the default recipe at their very size (lossless ones beside a lossless file), and who is nearer to
    the original."""
    twins = {row.setting: row for row in rows if row.name not in PEERS}
    pairs = [(row, twins.get(f"as {row.name} {row.setting}")) for row in rows if row.name in PEERS]
    if not pairs:
        return []
    lines = [
        "",
        "At the bytes of every peer:",
        "",
        "| peer | bytes | its KL | ours | its bytes | its KL | lower KL |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, twin in pairs:
        own = "no file of that size | – | –" if twin is None else f"`{twin.name}` | {twin.file_bytes:,} | {cell(twin)}"
        lines.append(f"| {row.name} {row.setting} | {row.file_bytes:,} | {cell(row)} | {own} | {lower(row, twin)} |")
    return lines


def lower(row: ComparisonRow, twin: ComparisonRow | None) -> str:
    """Whose KL is lower, or, where neither has any that arithmetic in float32 can tell from none, whose file is."""
    if twin is None:
        return "–"
    if max(row.kl_nats, twin.kl_nats) < LEAST:
        return f"none lost; `{twin.name}` is smaller" if twin.file_bytes < row.file_bytes else "none lost"
    return f"`{twin.name}`" if twin.kl_nats < row.kl_nats else row.name


def left_out(reports: list[ComparisonReport], rows: list[ComparisonRow]) -> list[str]:
    """What gave no row, and what kept tensors otherwise, each with the reason."""
    told = [f"- {name}: {reason}" for report in reports for name, reason in report.absent.items()]
    told += [
        f"- {row.name} {row.setting}: {len(row.fallbacks)} tensors kept otherwise, the first {row.fallbacks[0]}"
        for row in rows
        if row.fallbacks
    ]
    return ["", "Not there, or not as the setting says:", "", *told] if told else []


def fill_readme(found: dict[str, list[ComparisonReport]]) -> None:
    """The table between the marks of the README, where all that it shows was measured."""
    reports = found.get(SHOWN_MODEL, [])
    rows = {(row.name, row.setting): row for report in reports for row in report.rows}
    wanted = [[rows.get((name, f"{bits:g} bits")) for name in SHOWN_RECIPES] for bits in SHOWN_BITS]
    before, mark, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    complete = [[row for row in line if row is not None] for line in wanted]
    if not mark or not reports or any(len(line) < len(SHOWN_RECIPES) for line in complete):
        print(f"README: left as it is; its table needs {SHOWN_MODEL} with {', '.join(SHOWN_RECIPES)} at {SHOWN_BITS}")
        return
    titles = ["bits per parameter", *(f"`{name}`" for name in SHOWN_RECIPES)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for line_of in complete:
        rates = sorted({f"{row.bits_per_param:.2f}" for row in line_of})
        lines.append(f"| {' to '.join(rates[:: max(1, len(rates) - 1)])} | {' | '.join(map(cell, line_of))} |")
    told = (
        f"\nKL(original ‖ compressed) in nats per token, 95 % interval in brackets, at the same file bytes and through "
        f"the same entropy coder: a Llama of\n{reports[0].parameters:,} parameters trained on Python source, on "
        f"{reports[0].tokens:,} tokens it has not seen.\n\n"
    )
    README.write_text(f"{before}{BEGIN}{told}" + "\n".join(lines) + f"\n\n{END}{after}", encoding="utf-8")


def machine() -> str:
    """Processor, how many, and the versions that timings depend on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [one.partition(":")[2].strip() for one in text.splitlines() if one.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    return (
        f"{os.cpu_count()} × {processor}, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    )


def sources() -> str:
    """Hash of the committed sources."""
    found = subprocess.run(["git", "rev-parse", "HEAD:src"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or trueaxis.__version__


def command() -> str:
    """As it was typed, but for the folders of the machine."""
    return " ".join(
        ["python benchmarks/bench.py", *(os.path.relpath(one) if "/" in one else one for one in sys.argv[1:])]
    )


if __name__ == "__main__":
    main()
