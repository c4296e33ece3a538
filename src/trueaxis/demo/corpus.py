"""Text that every Python installation has: the standard library's own source, split by name.

    <stdlib>/**/*.py ─▶ leave out what some installations lack ─▶ hash of the module's name
                                                                  ├▶ training     what the demo model has read
                                                                  ├▶ calibration  what compression measures on
                                                                  └▶ evaluation   what nobody has read

The hash is of the top-level name without leading underscores or "_py": `pathlib.py` of one Python and
`pathlib/_local.py` of the next, `datetime.py` and `_pydatetime.py`, fall on the same side, so that the evaluation
text of any Python is new to a model trained on another.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path, PurePosixPath
from typing import Literal

from trueaxis.types import TrueaxisError

Split = Literal["training", "calibration", "evaluation"]

# Packages of their own in Linux distributions, data written as Python, and what others installed; what one platform
# has; what Python 3.11 has and 3.13 no longer.
# fmt: off
LEFT_OUT = frozenset({
    "__phello__", "dist-packages", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "macholib",
    "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtle", "turtledemo", "venv",
    "_aix_support", "_android_support", "_apple_support", "_ios_support", "_osx_support", "msilib",
    "_bootsubprocess", "aifc", "asynchat", "asyncore", "cgi", "cgitb", "chunk", "crypt", "imghdr", "imp", "mailcap",
    "nntplib", "pipes", "smtpd", "sndhdr", "sunau", "telnetlib", "uu", "xdrlib",
})
# fmt: on
LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata", "_distutils", "sitecustomize", "usercustomize")
TWINS = {"genericpath": "posixpath", "ntpath": "posixpath"}  # three files that share paragraphs
_SHARES: tuple[tuple[Split, int], ...] = (
    ("evaluation", 8),
    ("calibration", 16),
    ("training", 100),
)  # up to which percent


def split_of(module: str) -> Split:
    """Which split a module belongs to.

    Args:
        module: Path relative to the standard library, with slashes: "json/decoder.py".

    Example:
        >>> split_of("pathlib.py") == split_of("pathlib/_local.py")
        True
    """
    name = PurePosixPath(module).parts[0].removesuffix(".py")
    name = name.removeprefix("_py").lstrip("_") or name
    name = TWINS.get(name, name)
    percent = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") % 100
    return next(split for split, end in _SHARES if percent < end)


def modules(split: Split, library: Path | None = None) -> list[Path]:
    """Files of one split, sorted by their path in the library.

    Args:
        split: "training", "calibration" or "evaluation".
        library: Root of a standard library; by default that of the running Python.

    Raises:
        TrueaxisError: The library has no source (a Python without its .py files).
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if library is None else library
    found = []
    for file in root.rglob("*.py"):
        path = file.relative_to(root)
        if LEFT_OUT.isdisjoint(path.with_suffix("").parts) and not path.parts[0].startswith(LEFT_OUT_PREFIXES):
            found.append(path.as_posix())
    chosen = [root / path for path in sorted(found) if split_of(path) == split]
    if not chosen:
        raise TrueaxisError(f"{root}: no source of the standard library for the {split} text; use a Python that has it")
    return chosen


def texts(split: Split, library: Path | None = None) -> list[str]:
    """Contents of the files of one split, in the order of `modules`."""
    return [file.read_text(encoding="utf-8") for file in modules(split, library)]
