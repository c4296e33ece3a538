"""The whole journey, read top to bottom.

checkpoint ─▶ calibrate ─▶ align ─▶ function + residual ─▶ quantize ─▶ entropy-code ─▶ container
"""

from __future__ import annotations

import base64
import json
import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trueaxis.accounting import tensor_reports
from trueaxis.align.identity import ALIGNERS
from trueaxis.assemble import Assembled, assemble, count_symbols, exact_entry, write_files
from trueaxis.entropy.model import Tables, fit_tables, offsets_from
from trueaxis.function.none import FUNCTIONS
from trueaxis.metric.metric import metric_for
from trueaxis.metric.sketch import sketch
from trueaxis.metric.source import obtain_statistics
from trueaxis.metric.statistics import Statistics
from trueaxis.model.checkpoint import Checkpoint, check_finite
from trueaxis.model.graph import trace
from trueaxis.parallel import default_threads, ordered_map
from trueaxis.progress import Progress, silent
from trueaxis.quantize.budget import first_c, search
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.plan import Plan, Planner
from trueaxis.quantize.start import settled_tables
from trueaxis.recipe import EFFORTS, Feedback, Recipe
from trueaxis.recipe import recipe as find_recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.load import verify
from trueaxis.staging import check_free, staged_directory
from trueaxis.types import Aligned, CompressionReport, Metric, TrueaxisError, Weight

REPORT = "trueaxis.json"


@dataclass(frozen=True, eq=False)
class Job:
    """One matrix on its way through the stages; `metric` is in the original coordinates."""

    weight: Weight
    metric: Metric
    aligned: Aligned
    plan: Plan


def compress(
    model: str | Path,
    out: str | Path,
    *,
    bits: float | None = None,
    size: int | None = None,
    calibration: Sequence[str | Path] = (),
    statistics: str | Path | None = None,
    recipe: str | Path | Recipe = "default",
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Progress = silent,
) -> CompressionReport:
    """Compresses a checkpoint to a size.

    Args:
        model: Directory of a Hugging Face checkpoint.
        out: Directory to create.
        bits: Target in bits per parameter of the original, tied parameters once; or
        size: target in bytes. Exactly one of the two.
        calibration: Token ids (.npy) or text files.
        statistics: File of calibration statistics: read if it exists, written otherwise.
        recipe: Name of a recipe, a JSON file, or a Recipe.
        seed: Of every random choice.
        threads: Workers; all processors by default. The result does not depend on it.
        device: Torch device that runs the model for calibration.
        overwrite: Replace `out` if it is not empty.
        progress: Told of every stage.

    Returns:
        Real bytes and a row per tensor; also left in OUT/trueaxis.json.

    Raises:
        TrueaxisError: Bad input, by name; nothing was written under the name `out`.

    Example:
        >>> trueaxis.compress("llama", "llama-3bit", bits=3, calibration=["text.txt"])   # doctest: +SKIP
    """
    begun = time.perf_counter()
    chosen, threads = find_recipe(recipe), threads or default_threads()
    checkpoint = Checkpoint.open(model)
    target = _target_bytes(checkpoint, bits, size)
    check_free(Path(out), overwrite)
    weights = trace(checkpoint)
    exact = [exact_entry(checkpoint, weight) for weight in weights if weight.role == "exact"]
    measured = obtain_statistics(checkpoint, weights, calibration, statistics, seed, device, progress)
    jobs = _prepare(checkpoint, [weight for weight in weights if weight.role != "exact"], measured, chosen, progress)
    sketch_text = base64.b64encode(sketch(measured.shingles).tobytes()).decode()
    effort = EFFORTS[chosen.quantize.effort if isinstance(chosen.quantize, Feedback) else "scalar"]
    tables = settled_tables(effort.trellis, max((job.plan.rate_weight for job in jobs), default=0.0))
    passes = 0

    def run(c: float) -> Assembled:
        """One pass at c; what early ones count becomes the next pass's code lengths and centroids."""
        nonlocal tables, passes
        outcomes = ordered_map(lambda job: quantize(job.plan, c, tables), jobs, threads)
        fitted = fit_tables(count_symbols([outcome.quantized for outcome in outcomes]), tables.offsets)
        matrices = [(job.weight, outcome.quantized) for job, outcome in zip(jobs, outcomes, strict=True)]
        header = {"recipe": chosen.to_json(), "sketch": sketch_text, "gauge": []}
        result = assemble(checkpoint, matrices, exact, fitted, chosen.entropy, header, threads)
        passes += 1
        if passes <= effort.learning_passes:
            learned = offsets_from([(outcome.residual_sums, outcome.residual_counts) for outcome in outcomes])
            tables = Tables(fitted.frequencies, fitted.escape_orders, learned)
        progress("search", passes, passes + 1)
        return result

    quantized_weights = sum(job.weight.size for job in jobs)
    fixed = sum(entry.stored_bytes for entry in exact)
    start = first_c([job.plan for job in jobs], 8.0 * max(target - fixed, 1))
    best = search(run, start, quantized_weights, target, fixed, effort.learning_passes)
    with staged_directory(Path(out), overwrite) as staging:
        write_files(best, checkpoint, staging)
        verify(staging)
        matrices = [(job.weight, job.aligned.coordinates, job.metric) for job in jobs]
        rows = tensor_reports(Decoder(staging), checkpoint, matrices, best.tensor_bytes)
        report = CompressionReport(
            file_bytes=best.file_bytes,
            header_bytes=best.header_bytes,
            copied_bytes=sum(file.stat().st_size for file in checkpoint.files_to_copy()),
            parameters=checkpoint.parameters,
            bits_per_param=best.file_bytes * 8 / checkpoint.parameters,
            seconds=time.perf_counter() - begun,
            peak_memory_bytes=_peak_memory_bytes(),
            recipe=chosen.to_json(),
            recipe_hash=chosen.hash,
            tensors=rows,
        )
        (staging / REPORT).write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


def _prepare(
    checkpoint: Checkpoint, weights: Sequence[Weight], statistics: Statistics, recipe: Recipe, progress: Progress
) -> list[Job]:
    """Metric, alignment, function and plan of every matrix."""
    planner = Planner(recipe.quantize)
    jobs = []
    for number, weight in enumerate(weights):
        tensor = checkpoint.tensor(weight.name)
        check_finite(weight.name, tensor)
        metric = metric_for(weight, statistics)
        aligned = ALIGNERS[type(recipe.align)](recipe.align, tensor.float().numpy(), metric)
        split = FUNCTIONS[type(recipe.function)](recipe.function, aligned)
        jobs.append(Job(weight, metric, aligned, planner.plan(weight, split.residual, aligned.metric)))
        progress("prepare", number + 1, len(weights))
    plans = planner.balanced([job.plan for job in jobs])
    return [Job(job.weight, job.metric, job.aligned, plan) for job, plan in zip(jobs, plans, strict=True)]


def _target_bytes(checkpoint: Checkpoint, bits: float | None, size: int | None) -> int:
    if (bits is None) == (size is None):
        raise TrueaxisError("give a target: either bits per parameter (--bits) or a size (--size), not both")
    if bits is not None:
        if not (math.isfinite(bits) and bits > 0):
            raise TrueaxisError(f"bits: expected a positive number, found {bits}")
        return int(bits * checkpoint.parameters / 8)
    if not size or size < 0:
        raise TrueaxisError(f"size: expected a positive number of bytes, found {size}")
    return int(size)


def _peak_memory_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
