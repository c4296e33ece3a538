"""Golden files: what was ever frozen decodes to the bits it had, on every instruction set; drafts are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import trueaxis
from golden import FAMILIES, digests
from oracle import Oracle
from trueaxis.record import VERSION
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.load import verify
from trueaxis.types import FormatError

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = {
    (version.name, name): tensors
    for version in sorted(GOLDEN.glob("v[1-9]*"))
    for name, tensors in json.loads((version / "digests.json").read_text()).items()
}
every_file = pytest.mark.parametrize(("version", "name"), sorted(EXPECTED))


@every_file
def test_decodes_to_the_bits_it_had(version: str, name: str, instruction_set: str) -> None:
    assert digests(GOLDEN / version / name) == EXPECTED[version, name]


@every_file
def test_second_reader_finds_the_same(version: str, name: str) -> None:
    found = Oracle(GOLDEN / version / name).tensors()
    assert {key: hashlib.sha256(bits).hexdigest() for key, bits in found.items()} == EXPECTED[version, name]


@every_file
def test_verifies(version: str, name: str) -> None:
    assert verify(GOLDEN / version / name)["tensors"] == len(EXPECTED[version, name])
    assert trueaxis.inspect(GOLDEN / version / name)["format_version"] == int(version[1:])


def test_every_family_of_this_version_has_a_file() -> None:
    assert {name for version, name in EXPECTED if version == f"v{VERSION}"} == set(FAMILIES)
    folders = [path.parent.relative_to(GOLDEN) for path in GOLDEN.glob("v[1-9]*/**/config.json")]
    assert {(path.parts[0], "/".join(path.parts[1:])) for path in folders} == set(EXPECTED)


def test_drafts_are_refused_with_advice() -> None:
    with pytest.raises(FormatError, match=r"config\.json: format version 0 was a draft.*compress the original again"):
        Decoder(GOLDEN / "v0" / "draft")
