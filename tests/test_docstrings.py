"""Every example in a docstring runs."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module
from importlib.util import find_spec

import pytest

import trueaxis

LEFT_OUT = ("_core",) if find_spec("triton") else ("_core", ".gpu.")
MODULES = [
    found.name
    for found in pkgutil.walk_packages(trueaxis.__path__, "trueaxis.")
    if not any(part in found.name for part in LEFT_OUT)
]


@pytest.mark.parametrize("name", ["trueaxis", *MODULES])
def test_examples(name: str) -> None:
    assert doctest.testmod(import_module(name)).failed == 0


def test_there_are_examples() -> None:
    found = [test for name in MODULES for test in doctest.DocTestFinder().find(import_module(name)) if test.examples]
    assert len(found) >= 10
