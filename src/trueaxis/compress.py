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
from dataclasses import asdict
from pathlib import Path

from trueaxis.accounting import tensor_reports
from trueaxis.align.gauge import ALIGNERS
from trueaxis.align.network import Alignment, Network
from trueaxis.assemble import Assembled, assemble, exact_entry, write_files
from trueaxis.entropy.model import Tables
from trueaxis.function.none import FUNCTIONS
from trueaxis.metric.metric import blind_spots
from trueaxis.metric.sketch import sketch
from trueaxis.metric.source import obtain_statistics
from trueaxis.model.checkpoint import Checkpoint, check_finite
from trueaxis.model.graph import trace
from trueaxis.parallel import default_threads
from trueaxis.passes import Job, Passes
from trueaxis.progress import Progress, silent
from trueaxis.quantize.budget import first_c, search
from trueaxis.quantize.plan import Planner, reference_for
from trueaxis.recipe import EFFORTS, Recipe
from trueaxis.recipe import recipe as find_recipe
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.load import verify
from trueaxis.staging import check_free, staged_directory
from trueaxis.types import CompressionReport, Quantized, TrueaxisError, Weight

REPORT = "trueaxis.json"


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
        calibration: Token ids (.npy) or text files; without these and `statistics`, text sampled from the model.
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
    for weight in weights:
        if weight.role == "exact":
            check_finite(weight.name, checkpoint.tensor(weight.name))
    measured = obtain_statistics(checkpoint, weights, calibration, statistics, seed, device, progress)
    network = Network(checkpoint, weights, measured, 8.0 * target, seed)
    alignment = ALIGNERS[type(chosen.align)](chosen.align, network)
    exact = [exact_entry(weight, alignment.exact(checkpoint, weight)) for weight in weights if weight.role == "exact"]
    jobs = _prepare(network, alignment, chosen, progress)
    transforms = {job.weight.name: job.aligned.transforms for job in jobs}
    calibrated = {"source": measured.source, "tokens": int(measured.token_counts.sum())}
    header = {
        "recipe": chosen.to_json(),
        "sketch": base64.b64encode(sketch(measured.shingles).tobytes()).decode(),
        "gauge": list(alignment.gauges),
        "calibration": calibrated,
    }

    def write(matrices: Sequence[tuple[Weight, Quantized]], tables: Tables) -> Assembled:
        return assemble(checkpoint, matrices, exact, tables, chosen.entropy, header, threads, transforms)

    effort = EFFORTS[reference_for(chosen.quantize).effort]
    passes = Passes(jobs, effort, chosen.entropy, write, threads, progress)
    fixed = sum(entry.stored_bytes for entry in exact)
    start = first_c([job.plan for job in jobs], 8.0 * max(target - fixed, 1))
    best = search(passes, start, sum(job.weight.size for job in jobs), target, fixed, effort.learning_passes)
    with staged_directory(Path(out), overwrite) as staging:
        write_files(best, checkpoint, staging)
        verify(staging)
        matrices = [(job.weight, job.aligned, job.metric) for job in jobs]
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
            calibration=calibrated,
            tensors=rows,
            notes=blind_spots(weights, measured),
        )
        (staging / REPORT).write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


def _prepare(network: Network, alignment: Alignment, recipe: Recipe, progress: Progress) -> list[Job]:
    """Metric, coordinates, function and plan of every matrix."""
    planner, moments = Planner(recipe.quantize), {}
    weights = [weight for weight in network.weights if weight.role != "exact"]
    jobs = []
    for number, weight in enumerate(weights):
        matrix = network.checkpoint.matrix(weight).float()
        check_finite(weight.name, matrix)
        metric = network.metric(weight)
        aligned = alignment.aligned(weight, matrix.contiguous().numpy(), metric, moments)
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
