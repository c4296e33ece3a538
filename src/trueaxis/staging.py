"""Output directories that appear whole or not at all: written beside the target, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trueaxis.types import TrueaxisError


def check_free(out: Path, overwrite: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Refuses an output path that holds something already, and, whatever `overwrite` says, one that holds an input or
    lies inside a model that is read.

    Args:
        out: Directory to be created.
        overwrite: Whether it may be replaced.
        inputs: Files and directories that are read: `out` must be none of them and contain none of them, nor the
            files that links in them lead to.

    Raises:
        TrueaxisError: `out` would replace an input, lies inside a model, is a file, a symbolic link, or a directory
            that is not empty (and `overwrite` is off).
    """
    place = out.resolve()
    for source in map(Path, inputs):
        found = [source, *source.iterdir()] if source.is_dir() else [source]
        if any(place == one or place in one.parents for one in (path.resolve() for path in found)):
            raise TrueaxisError(f"{out}: output would replace {source}, which is read; choose another path")
        require_apart(out, source)
    if out.is_symlink():
        raise TrueaxisError(f"{out}: output is a symbolic link; give the real path")
    if out.exists() and not out.is_dir():
        raise TrueaxisError(f"{out}: output exists and is not a directory")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise TrueaxisError(f"{out}: output is not empty; choose another path or pass --overwrite")


def require_apart(output: str | Path, directory: str | Path) -> None:
    """Refuses an output inside the directory of a model, which is to hold that model and nothing else.

    Raises:
        TrueaxisError: `output` lies in `directory`, and that has a config.json.
    """
    if Path(directory, "config.json").is_file() and Path(directory).resolve() in Path(output).resolve().parents:
        raise TrueaxisError(f"{output}: lies inside {directory}, which holds the model alone; choose a path outside")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """While the context lasts, a full disk and the like are errors about `out`, not about a file under some name that
    it has until it is whole."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrueaxisError(f"{out}: cannot be written, nothing of it was kept: {error}") from error


@contextmanager
def staged_directory(out: Path, overwrite: bool, folder: Path | None = None) -> Iterator[Path]:
    """A temporary directory beside `out`, or in a folder there, that takes its name when the block ends without an
    exception.

    With `overwrite` the old directory is moved aside first and removed last, so that one of the two always exists.
    """
    check_free(out, overwrite)
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=folder or out.parent))
    except OSError as error:
        raise TrueaxisError(f"{out}: cannot be created: {error}") from error
    try:
        with writing(out):
            yield staging
            staging.chmod(0o777 & ~_umask())
            _swap(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in made:  # of these, the ones that hold the output stay
            with suppress(OSError):
                folder.rmdir()


def _swap(staging: Path, out: Path) -> None:
    if not out.exists():
        os.rename(staging, out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent))
    try:
        os.rename(out, aside / out.name)
        os.rename(staging, out)
    except BaseException:  # an interrupt as well: whatever stood there stands there again
        if not out.exists() and (aside / out.name).exists():
            os.rename(aside / out.name, out)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
