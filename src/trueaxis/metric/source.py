"""Where the statistics of a run come from: a file that exists, calibration text, or text sampled from the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trueaxis.engine import LOCAL, Local
from trueaxis.journal import NO_JOURNAL, WRITTEN, NoJournal
from trueaxis.metric.calibrate import calibrate, hash_tokens, load_tokens, minimum_tokens, tokenize
from trueaxis.metric.gradient import measure_gradients
from trueaxis.metric.sample import sample_tokens
from trueaxis.metric.sensitivity import assume_sensitivities, measure_sensitivities
from trueaxis.metric.statistics import Statistics, load_statistics, merge
from trueaxis.model.architecture import positions
from trueaxis.model.checkpoint import Checkpoint, read_json
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
    threads: int | None = None,
    journal: NoJournal = NO_JOURNAL,
    engine: Local = LOCAL,
) -> Statistics:
    """Statistics of `file` if it exists, else of `calibration`, which are then saved to `file` if one is named.

    With neither, the text is sampled from the model. What a journal knows is not measured again; a file that the
    journal's run writes is written anew.

    Raises:
        CalibrationError: The file named does not exist and there is no text, or they do not fit the checkpoint.
    """
    if file is not None and Path(file).exists() and journal.inputs.get("statistics") != WRITTEN:
        found = load_statistics(file, checkpoint.scratch)
        found.require(checkpoint)
        return found
    if not calibration and file is not None:
        raise CalibrationError(
            f"{file} does not exist; give calibration text or token ids (--calibration FILE), or leave out "
            "--statistics to calibrate on text sampled from the model"
        )
    if calibration:
        source, parts = "text", read_tokens(checkpoint.path, calibration)
    else:
        source, known = "sampled", journal.recall("sampled tokens")
        parts = [known.arrays["tokens"]] if known is not None else [sample_tokens(
            checkpoint, minimum_tokens(weights), seed=seed, device=device, threads=threads,
            progress=lambda done, total: progress("sample", done, total),
        )]  # fmt: skip
        if known is None:
            journal.keep("sampled tokens", {"tokens": parts[0]})
    measured = None
    for number, tokens in enumerate(parts):
        one = calibrate(
            checkpoint, tokens, seed=seed, device=device, threads=threads, journal=journal, engine=engine,
            progress=lambda done, total, _: progress("calibrate", number * total + done, len(parts) * total),  # noqa: B023
        )  # fmt: skip
        measured = one if measured is None else merge(measured, one)
    assert measured is not None  # `parts` is not empty
    if measured.unrun:
        measured = replace(measured, sensitivities=assume_sensitivities(checkpoint, weights, measured))
    else:
        measured = _with_effects(checkpoint, weights, measured, parts[0], seed, device, progress, threads, journal)
    measured = replace(measured, source=source, text=parts[0])
    if file is not None:
        measured.save(file)
    return measured


def _with_effects(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    measured: Statistics,
    tokens: Array,
    seed: int,
    device: str,
    progress: Progress,
    threads: int | None,
    journal: NoJournal,
) -> Statistics:
    """Statistics with what errors do to the model's output: sensitivities and gradients."""
    gradients = measure_gradients(
        checkpoint, weights, measured, tokens, seed, device=device, threads=threads, journal=journal,
        progress=lambda done, total, _: progress("gradients", done, total),
    )  # fmt: skip
    measured = replace(
        measured, gradients=gradients.sums, gradient_tokens=gradients.tokens, predictions=gradients.predictions
    )
    sensitivities = measure_sensitivities(
        checkpoint, weights, measured, tokens, seed, known=gradients.sensitivities, device=device, journal=journal,
        progress=lambda done, total, _: progress("sensitivity", done, total),
    )  # fmt: skip
    return replace(measured, sensitivities=sensitivities)


def calibration_tokens(
    checkpoint: Checkpoint,
    weights: Sequence[Weight],
    calibration: Sequence[str | Path],
    statistics: Statistics,
    seed: int,
) -> Array:
    """Token ids [sequences, length] of the text behind statistics, to be read again.

    Raises:
        CalibrationError: The statistics were made from a text that is not at hand.
    """
    if statistics.text is not None:
        return statistics.text
    if calibration:
        tokens = read_tokens(checkpoint.path, calibration)[0]
        if hash_tokens(tokens) in statistics.text_hashes:
            return tokens
    elif statistics.source == "sampled":
        return sample_tokens(checkpoint, minimum_tokens(weights), seed=seed)
    raise CalibrationError(
        "the stages drift and tune read the calibration text again: give the text that the statistics were made from "
        "(--calibration)"
    )


def read_tokens(directory: str | Path, files: Sequence[str | Path]) -> list[Array]:
    """Token arrays [sequences, length]: one per length, the one of most tokens first, files in the order given.

    Drift, gradients and tuning read the first alone.

    Args:
        directory: Of the model whose tokenizer reads the text.
        files: Token ids (.npy) or text.

    Example:
        >>> read_tokens("llama", ["short.npy", "long.npy", "short-too.npy"])   # doctest: +SKIP
        [array of shape (64, 512), array of shape (48, 128)]
    """
    arrays = [np.asarray(load_tokens(file), np.int64) for file in files if str(file).endswith(".npy")]
    texts = [file for file in files if not str(file).endswith(".npy")]
    if texts:
        arrays.append(tokenize(directory, texts, text_length(directory)))
    lengths = dict.fromkeys(array.shape[1] for array in arrays)
    found = [np.concatenate([array for array in arrays if array.shape[1] == length]) for length in lengths]
    return sorted(found, key=lambda array: -array.size)


def text_length(directory: str | Path) -> int:
    """Tokens per sequence that text is cut into: 512, or as many positions as the model of `directory` has."""
    return min(TEXT_LENGTH, positions(read_json(Path(directory) / "config.json")) or TEXT_LENGTH)
