"""Restored: what JSON makes of a result comes back as it was, and anything else is refused by its place."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pytest

from trueaxis.restored import restored


@dataclass(frozen=True)
class Part:
    name: str
    span: tuple[float, float] | None
    verdict: Literal["yes", "no"] = "no"


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    counts: dict[str, int]
    free: Any = None


WHOLE = Whole((Part("a", (0.5, 1.0), "yes"), Part("b", None)), {"x": 3}, {"anything": [1, None]})


def document(**changes: Any) -> dict[str, Any]:
    return {**json.loads(json.dumps(asdict(WHOLE))), **changes}


def test_result_comes_back() -> None:
    assert restored(Whole, document()) == WHOLE
    assert restored(Whole, {"parts": [], "counts": {}}) == Whole((), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": {"x": 1.5}}, r"counts\.x: expected int, found '1\.5'"),
        ({"counts": {"x": True}}, r"counts\.x: expected int, found 'True'"),
        ({"counts": None}, "counts: expected an object, found 'None'"),
        ({"parts": "ab"}, "parts: expected a list, found 'ab'"),
        ({"parts": [{"name": "a"}]}, r"parts\[0\] lacks 'span'"),
        ({"parts": [{"name": 1, "span": None}]}, r"parts\[0\]\.name: expected str, found '1'"),
        ({"parts": [{"name": "a", "span": [1.0]}]}, r"parts\[0\]\.span: expected a list of 2, found '\[1\.0\]'"),
        ({"parts": [{"name": "a", "span": None, "verdict": "so"}]}, r"parts\[0\]\.verdict: expected one of \['yes'"),
        ({"wonder": 1}, "it has 'wonder', which is unknown"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restored(Whole, document(**changes))


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(ValueError, match=r"it: expected an object, found '\[\]'"):
        restored(Whole, [])
