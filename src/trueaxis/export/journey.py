"""Export: a checkpoint, compressed or not, as a directory that other programs read.

OUT ─▶ ordinary checkpoint (decoded for the time being, or as it is) ─▶ writer of the format ─▶ DIR, whole or not at all
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trueaxis.container import Container, is_compressed
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.progress import Progress, silent
from trueaxis.runtime.load import unpack
from trueaxis.runtime.members import member_path
from trueaxis.staging import check_free, staged_directory
from trueaxis.types import TrueaxisError

FORMATS = ("safetensors", "gguf", "compressed-tensors")
SUFFIXES = (".safetensors", ".gguf")
GGUF_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Wanted:
    """What a writer is to make; `type` in the format's own words, None for its default."""

    type: str | None = None
    group: int | None = None
    calibration: Sequence[str | Path] = ()
    statistics: str | Path | None = None
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    progress: Progress = silent


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        directory, format: Where, and as what.
        file_bytes: Of the files that hold weights.
        bits_per_param: These × 8 over the parameters of the checkpoint that was exported, tied ones once.
        notes: What the files lack or have otherwise than asked for, a sentence each.
    """

    directory: str
    format: str
    file_bytes: int
    bits_per_param: float
    notes: tuple[str, ...]


def export(
    out: str | Path,
    directory: str | Path,
    format: str,
    *,
    type: str | None = None,
    group: int | None = None,
    calibration: Sequence[str | Path] = (),
    statistics: str | Path | None = None,
    overwrite: bool = False,
    base: str | Path | None = None,
    member: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> ExportReport:
    """Writes a checkpoint for other programs.

    Args:
        out: Directory written by `trueaxis.compress`, or an ordinary checkpoint.
        directory: To create.
        format: "safetensors" (what `unpack` writes), "gguf" (llama.cpp), "compressed-tensors" (transformers, vLLM).
        type: Of the weights: a dtype for safetensors, by default the original's; for gguf one of
            `export.gguf.GGUF_TYPES`, by default F16; for compressed-tensors "int4" (default) or "int8".
        group: For compressed-tensors: columns that share a scale; by default the most of 128, 64 and 32 that fit.
        calibration, statistics: For compressed-tensors: text or token ids, or a statistics file of the very
            checkpoint that is exported, to round by; without them to the nearest.
        overwrite: Replace `directory` if it is not empty.
        base, member: As for `load`.
        seed, threads, device, progress: Of the calibration.

    Returns:
        An ExportReport.

    Raises:
        TrueaxisError: The checkpoint has something that the format has no place for, or a package is missing; nothing
            was written.

    Example:
        >>> trueaxis.export("llama-3bit", "llama-gguf", "gguf", type="Q8_0").file_bytes   # doctest: +SKIP
    """
    if format not in FORMATS:
        raise TrueaxisError(f"{format!r} is no format of exports; known: {', '.join(FORMATS)}")
    if format != "compressed-tensors" and (group is not None or calibration or statistics is not None):
        raise TrueaxisError(f"format {format} rounds by itself: leave out --group, --calibration and --statistics")
    read = [out, *calibration, *(path for path in (base, statistics) if path is not None)]
    check_free(Path(directory), overwrite, read)
    wanted = Wanted(type, group, calibration, statistics, seed, threads, device, progress)
    if format == "safetensors":
        return _report(unpack(out, directory, type, overwrite=overwrite, base=base, member=member), format)
    source = member_path(out, member)
    place = Path(directory)
    with staged_directory(place, overwrite) as staging, ordinary(source, staging.parent, base) as checkpoint:
        notes = (*WRITERS[format](checkpoint, staging, wanted), *_on_a_grid(source, format, type))
        parameters = checkpoint.parameters
    return _report(place, format, parameters, notes)


def _on_a_grid(source: Path, format: str, type: str | None) -> tuple[str, ...]:
    """What to know where coordinates that an entropy coder likes are rounded to a grid of fixed bits."""
    floats = format == "gguf" and (type or "F16").upper() in GGUF_FLOATS
    if floats or not is_compressed(source) or not Container(source).header["gauge"]:
        return ()
    return (
        f"{source} is in aligned coordinates, which lose more on a grid of fixed bits than the original's: "
        "export the original checkpoint if this file is all that is wanted",
    )


def _report(directory: Path, format: str, parameters: int | None = None, notes: tuple[str, ...] = ()) -> ExportReport:
    size = sum(file.stat().st_size for file in directory.iterdir() if file.suffix in SUFFIXES)
    count = parameters or Checkpoint.open_all(directory).parameters
    return ExportReport(str(directory), format, size, size * 8 / count, notes)


@contextmanager
def ordinary(source: Path, folder: Path, base: str | Path | None) -> Iterator[Checkpoint]:
    """A directory as an ordinary checkpoint, unpacked into `folder` for as long as it is needed."""
    if not is_compressed(source):
        yield Checkpoint.open(source)
        return
    with tempfile.TemporaryDirectory(prefix=".export.", suffix=".partial", dir=folder) as plain:
        path = unpack(source, Path(plain) / source.resolve().name, base=base)
        try:
            yield Checkpoint.open(path)
        except TrueaxisError as error:  # who reads it knows the directory that was given
            error.args = (str(error).replace(str(path), str(source)),)
            raise


def _gguf(checkpoint: Checkpoint, directory: Path, wanted: Wanted) -> tuple[str, ...]:
    from trueaxis.export.gguf import write_gguf

    return write_gguf(checkpoint, directory / "model.gguf", wanted.type or "F16")


def _compressed_tensors(checkpoint: Checkpoint, directory: Path, wanted: Wanted) -> tuple[str, ...]:
    from trueaxis.export.compressed_tensors import write_compressed_tensors

    return write_compressed_tensors(checkpoint, directory, wanted)


WRITERS: dict[str, Callable[[Checkpoint, Path, Wanted], tuple[str, ...]]] = {
    "gguf": _gguf,
    "compressed-tensors": _compressed_tensors,
}
