"""Devices: found to be there, or one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trueaxis.cli import main
from trueaxis.processor import torch_device
from trueaxis.types import TrueaxisError


def test_the_processor() -> None:
    assert torch_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "nowhere", "meta"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(TrueaxisError, match=rf"^device '{name}' is not available: .*; use device 'cpu'$"):
        torch_device(name)


def test_a_command_says_so_before_it_reads_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", str(tmp_path / "missing"), str(tmp_path / "out"), "--bits", "3", "--device", "nowhere"])
    assert capsys.readouterr().err.startswith("trueaxis: device 'nowhere' is not available: ")
