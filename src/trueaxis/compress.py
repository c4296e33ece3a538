"""Compress: a checkpoint to a directory of a size, or of the smallest size that stays close enough to the original.

checkpoint ─▶ prepare (calibrate ─▶ align ─▶ function + residual ─▶ plans)
           ─▶ quantize and entropy-code, at the size given or at sizes that are tried ─▶ container
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from trueaxis.divergence import ASSUMED_BITS, compress_within
from trueaxis.engine import engine_of
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.parallel import default_threads
from trueaxis.preparation import prepare
from trueaxis.processor import torch_device
from trueaxis.progress import Progress, silent
from trueaxis.recipe import Recipe
from trueaxis.recipe import recipe as find_recipe
from trueaxis.resume import finished, inputs_of, journal_of
from trueaxis.scratch import scratch_beside
from trueaxis.staging import check_free, writing
from trueaxis.types import CompressionReport, TrueaxisError

LEAST_MEMORY = 500_000_000  # bytes: libraries, and a little to work with


def compress(
    model: str | Path,
    out: str | Path,
    *,
    bits: float | None = None,
    size: int | None = None,
    max_kl: float | None = None,
    evaluation: Sequence[str | Path] = (),
    calibration: Sequence[str | Path] = (),
    statistics: str | Path | None = None,
    recipe: str | Path | Recipe = "default",
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    resume: bool = False,
    memory: int | None = None,
    engine: str = "local",
    ray_address: str | None = None,
    progress: Progress = silent,
) -> CompressionReport:
    """Compresses a checkpoint to a size.

    Args:
        model: Directory of a Hugging Face checkpoint.
        out: Directory to create.
        bits: Target in bits per parameter of the original, tied parameters once; or
        size: target in bytes; or
        max_kl: largest KL(original ‖ compressed) in nats per token on `evaluation`. Exactly one of the three.
        evaluation: For `max_kl`: text files or one .npy of token ids, apart from the calibration text.
        calibration: Token ids (.npy) or text files; without these and `statistics`, text sampled from the model.
        statistics: File of calibration statistics: read if it exists, written otherwise.
        recipe: Name of a recipe, a JSON file, or a Recipe.
        seed: Of every random choice.
        threads: Workers; all processors by default. The result does not depend on it.
        device: Torch device that runs the model, for calibration, sensitivities and evaluation. Another device adds up
            in another order, so that the bytes may differ.
        overwrite: Replace `out` if it is not empty.
        resume: Keep a journal beside `out`, and go on from the one that is there; an output that is finished is
            verified. The bytes are those of a run that was never interrupted.
        memory: Bytes that the run should keep to; all that the machine has by default. What does not fit lies in files
            beside `out` as long as it is needed. The bytes of `out` do not depend on it.
        engine: "local", or "ray" to read calibration text and round matrices on a cluster of Ray. The result does not
            depend on it.
        ray_address: Of the cluster; without it, Ray starts on this machine.
        progress: Told of every stage.

    Returns:
        Real bytes and a row per tensor; also left in OUT/trueaxis.json.

    Raises:
        TrueaxisError: Bad input, by name; nothing was written under the name `out`.

    Example:
        >>> trueaxis.compress("llama", "llama-3bit", bits=3, calibration=["text.txt"])   # doctest: +SKIP
    """
    begun = time.perf_counter()
    device = str(torch_device(device))
    chosen = find_recipe(recipe)
    checkpoint = Checkpoint.open(model, scratch_beside(Path(out), memory))
    target = _target_bytes(checkpoint, bits, size, max_kl, evaluation)
    files_read = [path for path in (statistics, recipe) if isinstance(path, str | Path)]
    wanted = {"bytes": target, "max_kl": max_kl}
    inputs = inputs_of(checkpoint, chosen, wanted, seed, calibration, evaluation, statistics)
    if resume and (done := finished(Path(out), inputs, overwrite)) is not None:
        return done
    check_free(Path(out), overwrite, [model, *calibration, *evaluation, *files_read])
    expected = checkpoint.bytes_at(ASSUMED_BITS) if target is None else target
    kept = journal_of(Path(out), inputs, resume, checkpoint.scratch)
    with engine_of(engine, ray_address) as found_engine, kept as journal:
        prepared = prepare(
            checkpoint, chosen, expected, calibration, statistics,
            seed=seed, threads=threads or default_threads(), device=device, progress=progress, journal=journal,
            engine=found_engine,
        )  # fmt: skip
        with writing(Path(out)):  # files on the way to the last are written too, and read back
            if target is None:
                files, found = compress_within(prepared, max_kl or 0.0, evaluation, device)
            else:
                files, found = prepared.fit(target), None
        return prepared.save(
            files, Path(out), overwrite, begun, target, found, journal.inputs or inputs, _too_little(memory)
        )


def _too_little(memory: int | None) -> list[str]:
    """A note where no run can keep to so little memory."""
    if memory is None or memory >= LEAST_MEMORY:
        return []
    return [
        f"memory of {memory:,} bytes was asked for, and more was taken: the libraries alone take about 0.4 GB, so that "
        f"the least to ask for is {LEAST_MEMORY:,} bytes"
    ]


def _target_bytes(
    checkpoint: Checkpoint,
    bits: float | None,
    size: int | None,
    max_kl: float | None,
    evaluation: Sequence[str | Path],
) -> int | None:
    """Bytes wanted; None where a divergence is."""
    if [bits, size, max_kl].count(None) != 2:
        raise TrueaxisError(
            "give one target: bits per parameter (--bits), a size (--size), or a largest divergence (--max-kl)"
        )
    if (max_kl is None) == bool(evaluation):
        raise TrueaxisError("--max-kl and --evaluation go together: the divergence is measured on the evaluation text")
    for name, value in (("bits", bits), ("max_kl", max_kl)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise TrueaxisError(f"{name}: expected a positive number, found {value}")
    if size is not None and size <= 0:
        raise TrueaxisError(f"size: expected a positive number of bytes, found {size}")
    return checkpoint.bytes_at(bits) if bits is not None else size
