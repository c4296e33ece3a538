"""Recipes: to JSON and back, a hash that stays, and errors that say what is known."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueaxis.recipe import NAMED, Recipe, recipe, with_strips
from trueaxis.stages import CHOICES, RANGES, STAGES, Feedback, Gauge, Gptq, InTurn, Rans
from trueaxis.types import TrueaxisError


def quantizers() -> st.SearchStrategy[Any]:
    def settings(kind: type) -> st.SearchStrategy[Any]:
        values = {}
        for item in fields(kind):
            if item.name in CHOICES:
                values[item.name] = st.sampled_from(sorted(CHOICES[item.name]))
                continue
            low, high = RANGES[item.name]
            whole = isinstance(item.default, int)
            values[item.name] = st.integers(low, high) if whole else st.floats(low, high)
        return st.builds(kind, **values)

    return st.one_of(*map(settings, STAGES["quantize"].values()))


@given(quantizers(), st.builds(Rans, st.integers(1, 32), st.integers(1, 1 << 40)))
def test_json_round_trip(quantize: Any, entropy: Rans) -> None:
    original = Recipe(quantize=quantize, entropy=entropy)
    found = Recipe.from_json(json.loads(json.dumps(original.to_json())))
    assert found == original
    assert found.hash == original.hash


def test_every_number_has_a_range_and_is_written_out() -> None:
    for kinds in STAGES.values():
        for kind in kinds.values():
            assert {item.name for item in fields(kind)} <= {*RANGES, *CHOICES}
    for found in NAMED.values():
        for stage, value in found.to_json()["stages"].items():
            assert set(value) == {"type", *(item.name for item in fields(getattr(found, stage)))}


def test_stages_left_out_keep_their_defaults() -> None:
    found = Recipe.from_json({"version": 0, "stages": {"quantize": {"type": "gptq"}}})
    assert found == replace(recipe("gptq"), align=Gauge(), drift=InTurn()) == Recipe(quantize=Gptq())
    assert Recipe.from_json({"version": 0}) == Recipe() == recipe("default")


def test_hashes_differ_by_every_choice() -> None:
    variants = [*NAMED.values(), Recipe(quantize=Feedback(damping=2e-3)), Recipe(entropy=Rans(lanes=31))]
    variants += [replace(recipe("gptq"), quantize=Gptq(group=64))]
    assert len({found.hash for found in variants}) == len({json.dumps(found.to_json()) for found in variants})


def test_hash_is_the_same_in_another_process() -> None:
    code = "from trueaxis.recipe import recipe; print(recipe('gptq').hash)"
    for seed in ("1", "2"):
        found = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == recipe("gptq").hash
    document = {"stages": recipe("gptq").to_json()["stages"], "version": 0}
    shuffled = {"version": 0, "stages": dict(reversed(document["stages"].items()))}
    assert Recipe.from_json(shuffled).hash == recipe("gptq").hash
    assert len(recipe("gptq").hash) == 16 and int(recipe("gptq").hash, 16) >= 0


def of(stage: str, **value: Any) -> dict[str, Any]:
    return {"version": 0, "stages": {stage: value}}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"version": 1}, r"version is 1; this trueaxis reads version 0"),
        ({}, r"version is None"),
        ({"version": 0, "stage": {}}, r"recipe: unknown key 'stage'; known: stages, version"),
        ({"version": 0, "stages": []}, r"'stages' must be an object"),
        ({"version": 0, "stages": {"quantise": {}}}, r"unknown key 'quantise'; known: align, drift, entropy"),
        (
            {"version": 0, "stages": {"quantize": "rtn"}},
            r"quantize: expected an object with a 'type', one of: feedback",
        ),
        (of("quantize"), r"expected an object with a 'type'"),
        (of("quantize", type="awq"), r"unknown type 'awq'; known: feedback, rtn, gptq"),
        (of("quantize", type=["rtn"]), r"unknown type \['rtn'\]; known: feedback"),
        (of("quantize", type="rtn", damping=0.1), r"unknown key 'damping'"),
        (of("quantize", type="gptq", group=1.5), r"quantize.group: expected int, found 1.5"),
        (of("quantize", type="gptq", group=True), r"group: expected int, found True"),
        (of("quantize", type="gptq", damping="1"), r"damping: expected float, found '1'"),
        (of("quantize", type="gptq", damping=None), r"damping: expected float, found None"),
        (of("quantize", type="gptq", group=0), r"quantize.group: 0 is outside 1 to"),
        (of("quantize", type="feedback", rate_weight=-0.1), r"rate_weight: -0.1 is outside 0.0 to 10.0"),
        (of("quantize", type="feedback", damping=float("nan")), r"damping: nan is outside"),
        (of("entropy", type="rans", lanes=33), r"entropy.lanes: 33 is outside 1 to 32"),
    ],
)
def test_bad_documents_are_refused(document: dict[str, Any], message: str) -> None:
    with pytest.raises(TrueaxisError, match=message):
        Recipe.from_json(document)


def test_whole_numbers_serve_as_real_ones() -> None:
    found = Recipe.from_json(of("quantize", type="feedback", rate_weight=0))
    assert found == Recipe(quantize=Feedback(rate_weight=0.0))
    assert found.hash == Recipe(quantize=Feedback(rate_weight=0.0)).hash


def test_recipes_by_name_by_file_and_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(recipe("rtn").to_json()))
    assert recipe(file) == recipe(str(file)) == recipe("rtn")
    mine = Recipe(quantize=Gptq(group=32))
    assert recipe(mine) is mine


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\x00"])
def test_files_that_are_no_recipe_are_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.json"
    file.write_text(text)
    with pytest.raises(TrueaxisError, match=r"bad\.json"):
        recipe(file)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(
        TrueaxisError,
        match="'awq' is neither a file nor one of: at-once, best, default, fast, gauge, gptq, gptq-uniform, identity",
    ):
        recipe("awq")


def test_strips_are_a_choice_of_the_coder() -> None:
    found = with_strips("rtn", "gpu")
    assert found.to_json()["stages"]["entropy"] == {"type": "rans", "lanes": 32, "chain": 1 << 16}
    assert with_strips(found, "cpu") == recipe("rtn")
    with pytest.raises(TrueaxisError, match="strips 'tpu' are not one of: cpu, gpu"):
        with_strips("rtn", "tpu")
