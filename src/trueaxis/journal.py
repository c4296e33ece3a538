"""Journal: what a long run has found so far, beside its output, so that a run that was killed goes on from there.

    key, arrays, facts ─▶ keep ─▶ one safetensors file, renamed when it is whole, its checksum in its name
    key ─▶ recall ─▶ arrays and facts, bit for bit; None where nothing whole was kept

A file whose checksum is another is as good as none. What the run was begun with (recipe, model, text, target) is
written first; a run with anything else is refused. One process at a time holds a journal.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trueaxis.scratch import NO_SCRATCH, NoScratch
from trueaxis.types import Array, TrueaxisError

WRITTEN = "written by this run"  # stands for a statistics file that was not there at first
_INPUTS, _LOCK, _SUFFIX = "inputs.json", "lock", ".entry"


class Entry(NamedTuple):
    """What was kept under one key: arrays by name, and anything that JSON holds."""

    arrays: Mapping[str, Array]
    facts: Any


class NoJournal:
    """Keeps nothing: for runs that are not to be resumed.

    Attributes:
        folder: Where files of this run may be staged; None for beside the output.
        inputs: What the run was begun with.
    """

    folder: Path | None = None
    inputs: Mapping[str, Any]

    def __init__(self) -> None:
        self.inputs = {}

    def recall(self, key: str) -> Entry | None:
        """What was kept under a key, or None."""
        return None

    def keep(self, key: str, arrays: Mapping[str, Array], facts: Any = None) -> None:
        """Keeps arrays and facts for a run to come."""

    def forget(self, key: str) -> None:
        """Drops what was kept under a key, if anything was."""


NO_JOURNAL = NoJournal()


class Journal(NoJournal):
    """Entries in a folder; made by `begun`."""

    def __init__(self, folder: Path, inputs: Mapping[str, Any], scratch: NoScratch = NO_SCRATCH) -> None:
        self.folder, self.inputs, self._scratch = folder, inputs, scratch
        self._files = {file.name.partition("-")[0]: file for file in folder.glob(f"*{_SUFFIX}")}

    def recall(self, key: str) -> Entry | None:
        from safetensors import SafetensorError, safe_open

        file = self._files.get(_digest(key.encode()))
        if file is None or file.name != _entry_name(key, file):
            return None
        try:
            with safe_open(file, framework="np") as opened:
                facts = json.loads((opened.metadata() or {})["facts"])
                held = self._scratch.hold  # what is recalled may be more than what a run works on
                return Entry({name: held(opened.get_tensor(name)) for name in opened.offset_keys()}, facts)
        except (SafetensorError, OSError, ValueError, KeyError):
            return None

    def keep(self, key: str, arrays: Mapping[str, Array], facts: Any = None) -> None:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        assert self.folder is not None
        partial = self.folder / f"{_digest(key.encode())}.partial"
        contiguous = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
        try:
            save_file(contiguous, partial, metadata={"facts": json.dumps(facts)})
            file = self.folder / _entry_name(key, partial)
            partial.replace(file)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise TrueaxisError(
                f"{self.folder}: the journal cannot be written: {error}; make room and resume"
            ) from error
        before = self._files.get(_digest(key.encode()), file)
        if before != file:
            before.unlink(missing_ok=True)
        self._files[_digest(key.encode())] = file

    def forget(self, key: str) -> None:
        file = self._files.pop(_digest(key.encode()), None)
        if file is not None:
            file.unlink(missing_ok=True)


def journal_folder(out: Path) -> Path:
    """Where the journal of an output lies: hidden, beside it."""
    return out.parent / f".{out.name}.journal"


@contextmanager
def begun(out: Path, inputs: Mapping[str, Any], scratch: NoScratch = NO_SCRATCH) -> Iterator[Journal]:
    """The journal of an output, an old one or a new one; it goes when the block ends without an exception.

    Args:
        out: Directory that is to be made.
        inputs: What the run depends on, by name; JSON.
        scratch: Holds arrays that are recalled.

    Raises:
        TrueaxisError: It was begun with other inputs, another process holds it, or it cannot be written.
    """
    folder = journal_folder(out)
    if folder.is_symlink():
        raise TrueaxisError(f"{folder}: the journal is a symbolic link; remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / _LOCK, "w")  # noqa: SIM115 - held until the end of the block
    except OSError as error:
        raise TrueaxisError(f"{folder}: the journal cannot be written: {error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrueaxisError(f"{folder}: another process is at work on {out}; wait for it") from error
        for leftover in folder.glob("*.partial"):  # of a run that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield Journal(folder, _agreed(folder, inputs), scratch)
        shutil.rmtree(folder)


def clear(out: Path, inputs: Mapping[str, Any]) -> None:
    """Removes the journal of an output that is complete, where a run was killed before it did; one of other inputs, or
    that a process holds, stays."""
    if journal_folder(out).is_dir():
        with suppress(TrueaxisError), begun(out, inputs):
            pass


def _agreed(folder: Path, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs that the journal was begun with, where these are the same; written down where there were none.

    Entries without inputs are what was left of a journal as it was being removed: nobody knows of what model they are.
    """
    try:
        before = json.loads((folder / _INPUTS).read_text())
    except FileNotFoundError:
        before = dict(inputs)
        partial = folder / f"{_INPUTS}.partial"
        try:
            for leftover in folder.glob(f"*{_SUFFIX}"):
                leftover.unlink()
            partial.write_text(json.dumps(before))
            partial.replace(folder / _INPUTS)
        except OSError as error:
            raise TrueaxisError(f"{folder}: the journal cannot be written: {error}") from error
    except ValueError as error:
        raise TrueaxisError(f"{folder / _INPUTS}: is damaged ({error}); remove {folder} to begin anew") from error
    if before.get("statistics") == WRITTEN:
        inputs = {**inputs, "statistics": WRITTEN}
    if changed := changes(before, inputs):
        raise TrueaxisError(
            f"{folder}: was begun with another {' and another '.join(changed)}; "
            "resume with the same, or remove it to begin anew"
        )
    return before


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the inputs that differ, as JSON has them."""
    now = json.loads(json.dumps(now))
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def file_digest(path: Path) -> str:
    """Hash of a file's content, 32 hex digits (BLAKE2b)."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _entry_name(key: str, file: Path) -> str:
    """The only name of a whole entry: digests of its key and of its content."""
    return f"{_digest(key.encode())}-{file_digest(file)}{_SUFFIX}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
