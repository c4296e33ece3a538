"""Claim: a statement of the theory, how it is measured, and the thresholds that decide it.

    measure(subject) ─▶ a number per half sample ─▶ mean and 95 % interval ─▶ holds | does not hold | undecided

A claim holds where the whole interval lies at or beyond `holds`, does not where all of it lies at or beyond `fails`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trueaxis.analyze.halves import interval
from trueaxis.types import Array

if TYPE_CHECKING:
    from trueaxis.analyze.subject import Subject

Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What a claim's measure found.

    Attributes:
        halves: float64 [8], the number on every half sample; None where it cannot be measured.
        details: JSON values behind the number.
        reason: Why there is no number.
    """

    halves: Array | None
    details: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


@dataclass(frozen=True)
class Claim:
    """A statement with its measure.

    Attributes:
        name: Of the claim, as in the JSON.
        topic: Heading it stands under.
        statement: What is claimed, in a sentence.
        unit: Of the number.
        holds, fails: Thresholds; the side on which `holds` lies of `fails` says which way is better.
        measure: Subject to Measured.
    """

    name: str
    topic: str
    statement: str
    unit: str
    holds: float
    fails: float
    measure: Callable[[Subject], Measured]


@dataclass(frozen=True)
class Finding:
    """A claim judged on one checkpoint; `interval` is the number's 95 % interval, None like `value` without one."""

    name: str
    topic: str
    statement: str
    unit: str
    value: float | None
    interval: tuple[float, float] | None
    verdict: Verdict
    holds: float
    fails: float
    reason: str | None
    details: dict[str, Any]


def judge(claim: Claim, measured: Measured) -> Finding:
    """Mean over the halves, its interval, and the verdict.

    Example:
        >>> claim = Claim("dead", "t", "s", "share", 0.1, 0.05, lambda subject: Measured(None))
        >>> judge(claim, Measured(np.full(8, 0.2))).verdict
        'holds'
    """
    value = bounds = None
    reason = measured.reason
    verdict: Verdict = "undecided"
    if measured.halves is not None and np.isfinite(measured.halves).all():
        value, bounds = float(np.mean(measured.halves)), interval(measured.halves)
        verdict = verdict_by(claim, *bounds)
    elif reason is None:
        reason = "the number is not finite on some half of the text"
    return Finding(
        claim.name, claim.topic, claim.statement, claim.unit, value, bounds, verdict, claim.holds, claim.fails, reason,
        measured.details,
    )  # fmt: skip


def verdict_by(claim: Claim | Finding, low: float, high: float) -> Verdict:
    """By a claim's thresholds, of the interval of its number."""
    sign = 1.0 if claim.holds > claim.fails else -1.0
    worst, best = (low, high) if sign > 0 else (high, low)
    if sign * worst >= sign * claim.holds:
        return "holds"
    return "does not hold" if sign * best <= sign * claim.fails else "undecided"
