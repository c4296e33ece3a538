"""Output directories appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trueaxis.staging import check_free, staged_directory
from trueaxis.types import TrueaxisError


def names(path: Path) -> list[str]:
    return sorted(item.name for item in path.iterdir())


def test_nothing_is_visible_until_the_end(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with staged_directory(out, False) as staging:
        (staging / "a").write_text("1")
        assert not out.exists()
    assert names(out) == ["a"] and names(out.parent) == ["out"]


def test_permissions_are_those_of_an_ordinary_directory(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with staged_directory(tmp_path / "out", False):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_everything_as_it_was(tmp_path: Path, overwrite: bool, error: type[BaseException]) -> None:
    out = tmp_path / "out"
    if overwrite:
        out.mkdir()
        (out / "old").write_text("0")
    with pytest.raises(error), staged_directory(out, overwrite) as staging:
        (staging / "a").write_text("1")
        raise error
    assert names(tmp_path) == (["out"] if overwrite else [])
    assert not overwrite or names(out) == ["old"]


def test_overwriting_replaces_all_of_the_old(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("0")
    with staged_directory(out, True) as staging:
        (staging / "a").write_text("1")
        assert names(out) == ["old"]
    assert names(out) == ["a"] and names(tmp_path) == ["out"]


def test_a_failing_rename_brings_the_old_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("0")
    genuine = os.rename

    def rename(source: Path, target: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError("disk on fire")
        genuine(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="disk on fire"), staged_directory(out, True):
        pass
    assert names(out) == ["old"] and names(tmp_path) == ["out"]


def test_an_empty_directory_is_free(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with staged_directory(tmp_path / "out", False) as staging:
        (staging / "a").write_text("1")
    assert names(tmp_path / "out") == ["a"]


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "full")
    check_free(tmp_path / "full", True)
    for name, overwrite, message in (
        ("file", True, "not a directory"),
        ("full", False, "not empty; choose another path or pass --overwrite"),
        ("link", True, "symbolic link"),
    ):
        with pytest.raises(TrueaxisError, match=f"{name}: output .*{message}"):
            check_free(tmp_path / name, overwrite)
