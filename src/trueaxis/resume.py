"""Resume: what a run depends on, and what is there already of its output.

nothing ─▶ begin · a journal of the same inputs ─▶ go on · the finished output of the same inputs ─▶ verify it
anything of other inputs ─▶ refuse, and say which differ
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from trueaxis.inspection import REPORT
from trueaxis.journal import NO_JOURNAL, WRITTEN, NoJournal, begun, changes, clear, file_digest, journal_folder
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.recipe import Recipe
from trueaxis.restored import restored
from trueaxis.scratch import NoScratch
from trueaxis.types import CalibrationError, CompressionReport, FormatError, TrueaxisError


def inputs_of(
    checkpoint: Checkpoint,
    recipe: Recipe,
    target: Mapping[str, Any],
    seed: int,
    calibration: Sequence[str | Path],
    evaluation: Sequence[str | Path],
    statistics: str | Path | None,
) -> dict[str, Any]:
    """Everything that the bytes of an output depend on, by name, as JSON.

    Raises:
        CalibrationError: A text cannot be read.
    """
    from trueaxis import __version__

    return {
        "version of trueaxis": __version__,
        "model": checkpoint.fingerprint,
        "recipe": recipe.to_json(),
        "target": dict(target),
        "seed": seed,
        "calibration text": [_text_digest(file) for file in calibration],
        "evaluation text": [_text_digest(file) for file in evaluation],
        "statistics": None if statistics is None else _statistics_digest(Path(statistics)),
    }


@contextmanager
def journal_of(out: Path, inputs: Mapping[str, Any], resume: bool, scratch: NoScratch) -> Iterator[NoJournal]:
    """The journal of a run that is to be resumable, or none; scratch holds what is recalled."""
    if not resume:
        yield NO_JOURNAL
        return
    with begun(out, inputs, scratch) as journal:
        yield journal


def finished(out: Path, inputs: Mapping[str, Any], overwrite: bool) -> CompressionReport | None:
    """The report of an output that is there already, verified; None where there is none, or another to be replaced.

    Raises:
        TrueaxisError: It was made of other inputs, says nothing of them, or is damaged.
    """
    from trueaxis.runtime.load import verify

    if out.is_symlink() or not (out / REPORT).is_file():
        return None
    try:
        found = json.loads((out / REPORT).read_text(encoding="utf-8"))
        before = found["inputs"]
        report = restored(CompressionReport, found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if overwrite:
            return None
        raise TrueaxisError(f"{out / REPORT}: does not say what {out} was made of; choose another path") from error
    if before.get("statistics") == WRITTEN:
        inputs = {**inputs, "statistics": WRITTEN}
    if changed := changes(before, inputs):
        if overwrite or journal_folder(out).is_dir():
            return None
        raise TrueaxisError(
            f"{out}: was made with another {' and another '.join(changed)}; choose another path or pass --overwrite"
        )
    try:
        verify(out)
    except FormatError as error:
        if overwrite:
            return None
        raise TrueaxisError(f"{error}; or pass --overwrite to make {out} again") from error
    clear(out, before)
    note = "it was there already and every byte is right: time and memory are those of the run that made it"
    return replace(report, notes=(*report.notes, note))


def _text_digest(file: str | Path) -> str:
    try:
        return file_digest(Path(file))
    except OSError as error:
        raise CalibrationError(f"{file}: cannot be read ({error}); check the path") from error


def _statistics_digest(file: Path) -> str:
    return _text_digest(file) if file.exists() else WRITTEN
