"""Output directories appear whole or not at all, also when they replace one and when someone presses Ctrl-C."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trueaxis.staging import check_free, staged_directory
from trueaxis.types import TrueaxisError


def test_appears_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with staged_directory(out, overwrite=False) as staging:
        (staging / "file").write_text("x")
        assert not out.exists()
    assert [file.name for file in out.iterdir()] == ["file"]
    assert [file.name for file in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), staged_directory(tmp_path / "a" / "b" / "out", overwrite=False) as staging:
        (staging / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_the_old_directory_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("x")
    with pytest.raises(KeyboardInterrupt), staged_directory(out, overwrite=True):
        raise KeyboardInterrupt
    assert [file.name for file in out.iterdir()] == ["old"]
    with staged_directory(out, overwrite=True) as staging:
        (staging / "new").write_text("x")
    assert [file.name for file in out.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("moment", [1, 2, 3])
def test_the_old_directory_comes_back_if_the_swap_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], moment: int
) -> None:
    """Before the old one is moved, between the two renames, and right after the second one's effect."""
    out, real, calls = tmp_path / "out", os.rename, []
    out.mkdir()
    (out / "old").write_text("x")

    def rename(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == moment:
            raise error
        real(source, target)
        if len(calls) == 2 and moment == 3:
            calls.append(source)
            raise error

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises((error, TrueaxisError)), staged_directory(out, overwrite=True) as staging:
        (staging / "new").write_text("x")
    assert [file.name for file in out.iterdir()] == ["new" if moment == 3 else "old"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_what_stands_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    for name, overwrite, message in (
        ("full", False, "not empty"),
        ("file", True, "not a directory"),
        ("link", True, "symbolic link"),
        ("broken", False, "symbolic link"),
        ("file/out", False, "cannot be created"),
    ):
        with (
            pytest.raises(TrueaxisError, match=message),
            staged_directory(tmp_path / name, overwrite=overwrite),
        ):
            raise AssertionError("not reached")
    assert sorted(tmp_path.rglob("*")) == before


def test_permissions_are_those_of_an_ordinary_directory(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with staged_directory(tmp_path / "out", overwrite=False):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_input_is_never_replaced(tmp_path: Path) -> None:
    """Neither itself nor a folder around it, by whatever name, nor the folder that its links lead to."""
    model, blobs, other = tmp_path / "hub" / "model", tmp_path / "blobs", tmp_path / "elsewhere"
    for folder in (model, blobs, other):
        folder.mkdir(parents=True)
    (blobs / "weights").write_text("x")
    (model / "weights").symlink_to(blobs / "weights")
    (tmp_path / "link").symlink_to(model)
    for out in (model, model / "..", tmp_path / "hub" / ".." / "hub" / "model", tmp_path / "link", tmp_path, blobs):
        with pytest.raises(TrueaxisError, match="output would replace"):
            check_free(out, True, [model])
    check_free(other, True, [model])
    check_free(model / "inside", True, [model])
    (model / "config.json").write_text("{}")
    with pytest.raises(TrueaxisError, match="lies inside"):
        check_free(model / "inside" / "deeper", True, [model])
    check_free(other, True, [model])
