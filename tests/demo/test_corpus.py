"""The standard library's text: three disjoint splits, the same for every Python, nothing that some lack."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from trueaxis import TrueaxisError
from trueaxis.demo.corpus import LEFT_OUT, Split, modules, split_of, texts

SPLITS: tuple[Split, ...] = ("training", "calibration", "evaluation")

# Where each of these falls is part of the demo model: it has read the training modules.
PINNED = {
    "training": ("argparse.py", "asyncio/tasks.py", "_pydecimal.py", "decimal.py", "datetime.py", "_pydatetime.py"),
    "calibration": ("pathlib.py", "pathlib/_local.py", "os.py", "configparser.py"),
    "evaluation": ("json/decoder.py", "zipfile.py", "zipfile/__init__.py", "ntpath.py", "posixpath.py", "trace.py"),
}


def write(root: Path, paths: Iterable[str]) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"# {path}\n", encoding="utf-8")
    return root


def test_splits_are_disjoint_and_hold_enough() -> None:
    files = {split: set(modules(split)) for split in SPLITS}
    assert sum(map(len, files.values())) == len(set.union(*files.values()))
    sizes = {split: sum(file.stat().st_size for file in files[split]) for split in SPLITS}
    assert sizes["training"] > 4e6 and sizes["calibration"] > 1e5 and sizes["evaluation"] > 3e5


def test_top_level_names_never_straddle_splits() -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    tops = {split: {file.relative_to(root).parts[0] for file in modules(split)} for split in SPLITS}
    assert sum(map(len, tops.values())) == len(set.union(*tops.values()))


@pytest.mark.parametrize("split", SPLITS)
def test_a_module_stays_in_its_split(split: str) -> None:
    assert {module: split_of(module) for module in PINNED[split]} == dict.fromkeys(PINNED[split], split)


def test_what_some_installations_lack_is_left_out(tmp_path: Path) -> None:
    kept = ["argparse.py", "json/decoder.py", "os.py"]
    absent = [
        "turtle.py", "tkinter/ttk.py", "lib2to3/pytree.py", "site-packages/numpy/core.py", "unittest/test/support.py",
        "test/test_os.py", "config-3.12-x86_64-linux-gnu/python-config.py", "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "sitecustomize.py", "telnetlib.py", "asyncore.py", "_osx_support.py", "ensurepip/_bundled.py",
    ]  # fmt: skip
    write(tmp_path, kept + absent)
    found = [file.relative_to(tmp_path).as_posix() for split in SPLITS for file in modules(split, tmp_path)]
    assert sorted(found) == kept
    assert not any(PurePosixPath(path).parts[0].removesuffix(".py") in LEFT_OUT for path in found)


def test_order_and_text_do_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = ["csv.py", "ast.py", "abc.py", "asyncio/a.py", "asyncio/b/c.py"]
    first = write(tmp_path / "first", names)
    second = write(tmp_path / "second", reversed(names))
    assert [split_of(name) for name in names] == ["training"] * len(names)
    assert texts("training", first) == texts("training", second) == [f"# {name}\n" for name in sorted(names)]


def test_a_library_without_source_is_named(tmp_path: Path) -> None:
    write(tmp_path, ["argparse.py"])
    with pytest.raises(TrueaxisError, match=f"{tmp_path}: no source .* evaluation"):
        modules("evaluation", tmp_path)


def test_evaluation_text_is_new() -> None:
    """At most 1 % of the runs of six lines occur in text that is read before."""

    def runs(split: Split) -> list[tuple[str, ...]]:
        lines = [[line for line in text.splitlines() if line.strip()] for text in texts(split)]
        return [tuple(file[start : start + 6]) for file in lines for start in range(len(file) - 5)]

    training, calibration, evaluation = set(runs("training")), runs("calibration"), runs("evaluation")
    seen = training.union(calibration)
    assert np.mean([run in training for run in calibration]) < 0.01
    assert np.mean([run in seen for run in evaluation]) < 0.01
