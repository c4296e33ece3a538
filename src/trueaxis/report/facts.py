"""Facts: all that the page shows, read from the compressed directory and from what other commands printed.

OUT ─▶ inspect ─────────────────────────────┐
analyze --json, compare --json, eval --json ┴─▶ checked ─▶ Facts
"""

from __future__ import annotations

import json
import math
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from trueaxis.analyze.claim import Finding, verdict_by
from trueaxis.analyze.journey import FORMAT, VERSION, Analysis
from trueaxis.comparison.run import ComparisonReport
from trueaxis.container import Container
from trueaxis.inspection import inspect
from trueaxis.restored import restored
from trueaxis.sweep import Sweep
from trueaxis.types import CompressionReport, Evaluation, TrueaxisError

SLACK = 1e-3
WIDEST = 64  # bits of the largest number that a checkpoint can hold
LARGEST = 1e30  # number that a claim may come to
MOST_NATS = 1e6  # per token


@dataclass(frozen=True)
class Facts:
    """What is known of a compressed directory.

    Attributes:
        path: The directory.
        inspection: From `trueaxis.inspect`.
        analysis, comparison, evaluation: What those commands found, or None; `sweep` serves as a comparison.
    """

    path: Path
    inspection: dict[str, Any]
    analysis: Analysis | None = None
    comparison: ComparisonReport | Sweep | None = None
    evaluation: Evaluation | None = None

    @property
    def name(self) -> str:
        """Of the directory."""
        return self.path.resolve().name

    @property
    def quoted(self) -> str:
        """The directory as a shell takes it."""
        return shlex.quote(str(self.path))

    def command(self, *options: str) -> str:
        """The command that makes the page with other options."""
        return " ".join(("trueaxis report", self.quoted, "--output PAGE.html", *options))

    @cached_property
    def report(self) -> CompressionReport | None:
        """What compression left behind."""
        found = self.inspection["report"]
        return None if found is None else restored(CompressionReport, found)

    @property
    def original_bytes(self) -> int:
        """Of the weights as they were, tied ones once."""
        rows = [row for row in self.inspection["tensors"] if not row["storage"].startswith("tied to ")]
        own = [row for row in rows if not row["storage"].endswith(" times a matrix")]  # tied in the original
        return sum(prod(row["shape"]) * item_bytes(row["dtype"]) for row in own)


def item_bytes(dtype: str) -> int:
    """Bytes of one entry, by the dtype's name in safetensors.

    Example:
        >>> item_bytes("BF16"), item_bytes("F8_E4M3"), item_bytes("BOOL")
        (2, 1, 1)
    """
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) // 8 if bits else 1


def read_facts(
    out: str | Path,
    analysis: str | Path | None = None,
    comparison: str | Path | None = None,
    evaluation: str | Path | None = None,
) -> Facts:
    """Facts of a compressed directory and of the files given.

    Args:
        out: Written by `trueaxis.compress`.
        analysis, comparison, evaluation: Files of what `trueaxis analyze`, `compare` (or `sweep`) and `eval` print
            with --json.

    Raises:
        FormatError: `out` is damaged.
        TrueaxisError: A file is not what was asked for, or is about another model.
    """
    found = inspect(out)
    if "report" not in found:
        raise TrueaxisError(f"{out}: is the root of a family; give its base or one of its members")
    facts = Facts(
        Path(out), found,
        None if analysis is None else _read_analysis(analysis),
        None if comparison is None else _read_comparison(comparison),
        None if evaluation is None else _read_evaluation(evaluation),
    )  # fmt: skip
    if facts.evaluation is not None and facts.evaluation.fingerprint != (mine := Container(out).fingerprint):
        about = facts.evaluation.fingerprint or "no compressed directory"
        raise TrueaxisError(f"{evaluation}: is about {about}, {out} is {mine}; give what eval printed of {out}")
    for file, part in ((analysis, facts.analysis), (comparison, facts.comparison)):
        if part is not None and part.parameters != found["parameters"]:
            raise TrueaxisError(
                f"{file}: is about a model of {part.parameters:,} parameters, {out} has {found['parameters']:,}; "
                "give the file of the same model"
            )
    return facts


def _read_analysis(file: str | Path) -> Analysis:
    found = _object(file)
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise TrueaxisError(f"{file}: is no analysis of version {VERSION}; make it with: trueaxis analyze MODEL --json")
    read = _restored(Analysis, found, file, "analyze MODEL")
    for claim in read.claims:
        _check_claim(claim, file)
    if not read.claims or len({claim.name for claim in read.claims}) < len(read.claims):
        raise TrueaxisError(f"{file}: {len(read.claims)} claims, expected each of them once")
    return read


def _check_claim(claim: Finding, file: str | Path) -> None:
    """Refuses numbers that no run of `analyze` can have found, and verdicts that do not follow from them."""
    numbers = (claim.holds, claim.fails, *(() if claim.value is None else (claim.value,)), *(claim.interval or ()))
    if not all(abs(number) <= LARGEST for number in numbers) or (claim.value is None) != (claim.interval is None):
        raise TrueaxisError(f"{file}: {claim.name} is {claim.value}, interval {claim.interval}: no claim can be that")
    low, high = claim.interval or (0.0, 0.0)
    slack = SLACK * max(abs(low), abs(high))
    if claim.value is not None and not low - slack <= claim.value <= high + slack:
        raise TrueaxisError(f"{file}: {claim.name} is {claim.value}, outside its interval {claim.interval}")
    verdict = "undecided" if claim.interval is None else verdict_by(claim, low, high)
    if claim.verdict != verdict:
        raise TrueaxisError(
            f"{file}: {claim.name} {claim.verdict!r}, but by its interval {claim.interval} and thresholds it is "
            f"{verdict!r}"
        )


def _read_comparison(file: str | Path) -> ComparisonReport | Sweep:
    found = _object(file)
    kind, command = (Sweep, "sweep MODEL") if "prepare_seconds" in found else (ComparisonReport, "compare MODEL")
    if "rows" not in found:
        raise TrueaxisError(f"{file}: is no comparison; make it with: trueaxis compare MODEL --json")
    read = _restored(kind, found, file, command)
    for row in read.rows:
        _check_figures(row, file)
        _check_rates(row, read.parameters, file)
    return read


def _read_evaluation(file: str | Path) -> Evaluation:
    told = _object(file)
    if "perplexity" not in told or "rows" in told:
        raise TrueaxisError(f"{file}: is no evaluation; make it with: trueaxis eval OUT --reference MODEL --json")
    found = _check_figures(_restored(Evaluation, told, file, "eval OUT --reference MODEL"), file)
    shares = [share for share in (found.top1_agreement, found.overlap) if share is not None]
    if found.tokens < 1 or not all(0 <= share <= 1 for share in shares):
        raise TrueaxisError(
            f"{file}: {found.tokens} tokens, shares {shares}: expected at least one token, and shares from 0 to 1"
        )
    return found


def _check_figures(row: Any, file: str | Path) -> Any:
    """Refuses what no model can have measured; sums in floating point may end just below 0."""
    low, high = row.kl_interval or (row.kl_nats or 0.0,) * 2
    mean, slack = low if row.kl_nats is None else row.kl_nats, SLACK * max(abs(high), SLACK)
    if not (-SLACK <= low <= high <= MOST_NATS and mean >= -SLACK and low - slack <= mean <= high + slack):
        raise TrueaxisError(f"{file}: KL of {row.kl_nats} nats, interval {row.kl_interval}: no divergence can be that")
    if not row.perplexity >= 1.0 - SLACK:  # may be infinite: it is an exponential
        raise TrueaxisError(f"{file}: perplexity of {row.perplexity}, which is at least 1")
    return row


def _check_rates(row: Any, parameters: int, file: str | Path) -> None:
    """Refuses rates that are not those of the bytes, and limits that no tensor has."""
    rate = row.file_bytes * 8 / max(parameters, 1)
    if not (row.file_bytes > 0 and math.isclose(row.bits_per_param, rate, rel_tol=SLACK)):
        raise TrueaxisError(
            f"{file}: {row.bits_per_param} bits per parameter: {row.file_bytes} bytes of {parameters:,} parameters "
            f"are {rate:.4g}"
        )
    if row.limit_bits_per_param is not None and not 0 <= row.limit_bits_per_param <= WIDEST:
        raise TrueaxisError(f"{file}: a limit of {row.limit_bits_per_param} bits per parameter: no weights have that")


def _object(file: str | Path) -> dict[str, Any]:
    try:
        found = json.loads(Path(file).read_text(encoding="utf-8-sig"))  # some shells write a mark of the byte order
    except OSError as error:
        raise TrueaxisError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TrueaxisError(f"{file}: is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise TrueaxisError(f"{file}: expected one JSON object, found {type(found).__name__}")
    if found.keys() == {"error", "message"}:
        raise TrueaxisError(f"{file}: the command that wrote it failed: {found['message']}; run it again")
    return found


def _restored(kind: type, found: dict[str, Any], file: str | Path, command: str) -> Any:
    try:
        return restored(kind, found)
    except ValueError as error:
        message = f"{file}: {error}; make it with this trueaxis: trueaxis {command} --json"
        raise TrueaxisError(message) from error
