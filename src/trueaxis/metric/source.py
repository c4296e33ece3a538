"""Where the statistics of a run come from: a file that exists, or calibration text, saved for the next run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trueaxis.metric.calibrate import calibrate, load_tokens, tokenize
from trueaxis.metric.sensitivity import measure_sensitivities
from trueaxis.metric.statistics import Statistics, load_statistics, merge
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.progress import Progress
from trueaxis.types import Array, CalibrationError, Weight

TEXT_LENGTH = 512


def obtain_statistics(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    calibration: Sequence[str | Path],
    file: str | Path | None,
    seed: int,
    device: str,
    progress: Progress,
) -> Statistics:
    """Statistics of `file` if it exists, else of `calibration`, which are then saved to `file` if one is named.

    Raises:
        CalibrationError: Neither is given, or they do not fit the checkpoint.
    """
    if file is not None and Path(file).exists():
        found = load_statistics(file)
        found.require(checkpoint)
        return found
    if not calibration:
        wanted = f"{file} does not exist; " if file is not None else ""
        raise CalibrationError(f"{wanted}give calibration text or token ids (--calibration FILE) or --statistics FILE")
    parts = read_tokens(checkpoint.path, calibration)
    measured = None
    for number, tokens in enumerate(parts):
        one = calibrate(
            checkpoint, tokens, seed=seed, device=device,
            progress=lambda done, total, _: progress("calibrate", number * total + done, len(parts) * total),  # noqa: B023
        )  # fmt: skip
        measured = one if measured is None else merge(measured, one)
    assert measured is not None  # `parts` is not empty
    sensitivities = measure_sensitivities(
        checkpoint, weights, measured, parts[0], seed, device=device,
        progress=lambda done, total, _: progress("sensitivity", done, total),
    )  # fmt: skip
    measured = replace(measured, sensitivities=sensitivities)
    if file is not None:
        measured.save(file)
    return measured


def read_tokens(directory: str | Path, files: Sequence[str | Path]) -> list[Array]:
    """Token arrays [sequences, length]: one per .npy file, one for all text files together.

    Args:
        directory: Of the model whose tokenizer reads the text.
        files: Token ids (.npy) or text.
    """
    arrays = [np.asarray(load_tokens(file), np.int64) for file in files if str(file).endswith(".npy")]
    texts = [file for file in files if not str(file).endswith(".npy")]
    if texts:
        arrays.append(tokenize(directory, texts, TEXT_LENGTH))
    return arrays
