"""Sweep: one checkpoint at several rates, measured once, each file evaluated on the same text.

checkpoint ─▶ prepare, once ─▶ fit and save at every rate ─▶ KL and perplexity ─▶ rows, and a plot of them
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueaxis.evaluation import Comparison, read_evaluation, require_unseen
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.parallel import default_threads
from trueaxis.plot import check_plot, draw_curves
from trueaxis.preparation import Prepared, prepare
from trueaxis.progress import Progress, silent
from trueaxis.recipe import Recipe
from trueaxis.recipe import recipe as find_recipe
from trueaxis.staging import check_free, writing
from trueaxis.types import TrueaxisError


@dataclass(frozen=True)
class SweepRow:
    """One rate of a sweep.

    Attributes:
        bits: Target, in bits per parameter.
        file_bytes, bits_per_param: What came out, every byte of the file counted.
        kl_nats, kl_interval: KL(original ‖ compressed) per token and its 95 % interval, None for a single sequence.
        perplexity: Of the compressed model.
        limit_bits_per_param: What the limits of its tensors add up to at the distortion of this file.
        seconds: To fit, write and verify this file; preparation and evaluation are not in it.
    """

    bits: float
    file_bytes: int
    bits_per_param: float
    kl_nats: float
    kl_interval: tuple[float, float] | None
    perplexity: float
    limit_bits_per_param: float
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """A model at several rates, lowest first; `tokens` were predicted for each, `prepare_seconds` were spent once."""

    model: str
    parameters: int
    recipe: dict[str, Any]
    tokens: int
    prepare_seconds: float
    rows: tuple[SweepRow, ...]


def sweep(
    model: str | Path,
    *,
    bits: Sequence[float],
    evaluation: Sequence[str | Path],
    calibration: Sequence[str | Path] = (),
    statistics: str | Path | None = None,
    recipe: str | Path | Recipe = "default",
    output: str | Path | None = None,
    plot: str | Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Sweep:
    """Compresses a checkpoint at several rates and measures each file.

    Statistics and alignment are found once; where axes depend on the rate, they are judged at the mean of the rates,
    so that `trueaxis.compress` at one of them gives a slightly other file.

    Args:
        model: Directory of a Hugging Face checkpoint of a causal language model.
        bits: Targets in bits per parameter.
        evaluation: Text files or one .npy of token ids, apart from the calibration text.
        calibration, statistics, recipe, seed, threads, device, progress: As in `trueaxis.compress`.
        output: Directory for the compressed models, each in a directory such as `2.5bits`; by default none is kept.
        plot: .png or .svg file to draw KL over rate in; needs matplotlib.

    Returns:
        A row per rate, lowest first.

    Raises:
        CalibrationError: The evaluation text was calibrated on.
        TrueaxisError: Bad input, or a rate that cannot be reached.

    Example:
        >>> trueaxis.sweep("llama", bits=[2, 3], calibration=["a.txt"], evaluation=["b.txt"]).rows   # doctest: +SKIP
    """
    begun = time.perf_counter()
    chosen, rates = find_recipe(recipe), checked_rates(bits)
    if plot is not None:
        check_plot(plot, model)
    checkpoint = Checkpoint.open(model)
    tokens = read_evaluation(checkpoint.path, evaluation)
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()) if output is None else output)
        directories = [root / f"{rate:g}bits" for rate in rates]
        for directory in directories:
            check_free(directory, False, [model])
        prepared = prepare(
            checkpoint, chosen, checkpoint.bytes_at(sum(rates) / len(rates)), calibration, statistics,
            seed=seed, threads=threads or default_threads(), device=device, progress=progress,
        )  # fmt: skip
        require_unseen(tokens, prepared.statistics)
        prepare_seconds = time.perf_counter() - begun
        compare = Comparison(checkpoint.path, tokens, device, progress)
        rows = [_row(prepared, rate, directory, compare) for rate, directory in zip(rates, directories, strict=True)]
    predicted = tokens.shape[0] * (tokens.shape[1] - 1)
    result = Sweep(str(model), checkpoint.parameters, chosen.to_json(), predicted, prepare_seconds, tuple(rows))
    if plot is not None:
        draw_curves(result, plot)
    return result


def _row(prepared: Prepared, rate: float, directory: Path, compare: Comparison) -> SweepRow:
    started, target = time.perf_counter(), prepared.checkpoint.bytes_at(rate)
    with writing(directory):  # files on the way to the last are written too, and read back
        files = prepared.fit(target)
    report = prepared.save(files, directory, overwrite=False, begun=started, target=target)
    found = compare(directory)
    assert found.kl_nats is not None  # compared with a reference
    return SweepRow(
        rate, report.file_bytes, report.bits_per_param, found.kl_nats, found.kl_interval, found.perplexity,
        report.limit_bits_per_param, report.seconds,
    )  # fmt: skip


def checked_rates(bits: Sequence[float]) -> list[float]:
    """Rates in bits per parameter, each once, lowest first.

    Raises:
        TrueaxisError: There are none, or one is not positive.
    """
    if not bits or not all(math.isfinite(rate) and rate > 0 for rate in bits):
        raise TrueaxisError(f"bits: expected positive numbers, found {list(bits)}")
    return sorted(set(bits))
