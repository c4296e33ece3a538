"""Preparation: all that is done once for a checkpoint, whatever the size of the file; then files of any size.

checkpoint ─▶ calibrate ─▶ align ─▶ function + residual ─▶ plans = Prepared
Prepared ─▶ quantize and entropy-code at a size ─▶ files in memory ─▶ directory, verified, and its report
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trueaxis.accounting import leave_report, tensor_reports
from trueaxis.align.gauge import gauge, identity
from trueaxis.align.learned import learned
from trueaxis.align.loss import LOSSES
from trueaxis.align.network import Alignment, Network, Product
from trueaxis.align.structured import TURNERS
from trueaxis.assemble import Assembled, assemble, exact_entry, write_files
from trueaxis.container import Entry
from trueaxis.drift import DRIFTS
from trueaxis.engine import LOCAL, Local
from trueaxis.entropy.model import Tables
from trueaxis.function.lowrank import FUNCTIONS
from trueaxis.function.select import SELECTORS
from trueaxis.journal import NO_JOURNAL, NoJournal
from trueaxis.metric.metric import blind_spots
from trueaxis.metric.sketch import sketch
from trueaxis.metric.source import calibration_tokens, obtain_statistics
from trueaxis.metric.statistics import Statistics
from trueaxis.model.checkpoint import Checkpoint, check_finite
from trueaxis.model.graph import trace
from trueaxis.parallel import one_thread, ordered_map
from trueaxis.passes import Job, Passes, first_tables
from trueaxis.pilot import Pilot, sample
from trueaxis.progress import Progress
from trueaxis.quantize.budget import ENOUGH, finest_c, first_c, search
from trueaxis.quantize.plan import Factor, Plan, Planner, reference_for
from trueaxis.recipe import Recipe
from trueaxis.record import Record
from trueaxis.runtime.decode import Decoder
from trueaxis.runtime.load import check_bytes
from trueaxis.scratch import held
from trueaxis.stages import EFFORTS, Gauge, Identity, Learned
from trueaxis.staging import staged_directory
from trueaxis.tuning import TUNERS, Lessons
from trueaxis.turns import Course
from trueaxis.types import Aligned, Array, Coded, CompressionReport, Evaluation, Metric, Quantized, TargetError, Weight

ALIGNERS = {Identity: identity, Gauge: gauge, Learned: learned}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A checkpoint measured, aligned and planned; `fit` and `save` do the rest, as often as is wanted.

    Attributes:
        checkpoint: The original.
        recipe: What it was prepared by.
        statistics: Of the calibration text.
        weights: Every tensor, exact ones too.
        alignment: Of the whole network, for the report.
        jobs: Matrices with their plans.
        exact: Tensors kept as they are.
        header: Facts for the header of the file.
        threads: Workers; the bytes do not depend on it.
        progress: Told of every pass.
        sources: Name of a matrix that another tensor is multiplied by → name of that tensor.
        seed, device: Of whatever is drawn and run after the search.
        calibration: Files of calibration text, for tuning.
        journal: Of what an earlier run found.
        beside: Name of a tensor → records before those of its matrices: of the base that it is added to, and of
            directions.
        engine: Where matrices are rounded.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    statistics: Statistics
    weights: Sequence[Weight]
    alignment: Alignment
    jobs: Sequence[Job]
    exact: Sequence[Entry]
    header: Mapping[str, Any]
    threads: int
    progress: Progress
    sources: Mapping[str, str]
    seed: int = 0
    device: str = "cpu"
    calibration: Sequence[str | Path] = ()
    journal: NoJournal = NO_JOURNAL
    beside: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    engine: Local = LOCAL

    @one_thread()
    def fit(self, target: int) -> Assembled:
        """The files at a size.

        Args:
            target: Bytes, not to exceed.

        Raises:
            TrueaxisError: Norms, headers and side information alone take more.
        """
        found = self._rounded(self.jobs, target, str(target))
        fixed = frozenset(self.sources.values())
        lessons = Lessons(self.checkpoint, self._tokens, target, fixed, self.seed, self.device, self.progress)

        def again(jobs: Sequence[Job]) -> Assembled:
            return self._rounded(jobs, target, f"{target} again")

        tuned = TUNERS[type(self.recipe.tune)](self.recipe.tune, lessons, self.jobs, found, again, self._written)
        return replace(tuned, matrices=(), tables=None, notes=found.notes)

    def _written(self, matrices: Sequence[tuple[Weight, Quantized]], tables: Tables) -> Assembled:
        transforms = {job.weight.name: job.aligned.transforms for job in self.jobs}
        functions = {job.coded.name: job.function for job in self.jobs if job.function}
        return assemble(
            self.checkpoint, matrices, self.exact, tables, self.recipe.entropy, self.header, self.threads,
            transforms, self.sources, self.beside, functions,
        )  # fmt: skip

    def _rounded(self, jobs: Sequence[Job], target: int, name: str) -> Assembled:
        """The files at a size, drift corrected; the name is that of the search in the journal."""
        effort = EFFORTS[reference_for(self.recipe.quantize).effort]
        size, fixed = sum(job.coded.size for job in jobs), sum(entry.stored_bytes for entry in self.exact)
        fixed += sum(len(job.function) for job in jobs)
        transforms = {job.weight.name: job.aligned.transforms for job in jobs}  # two factors are one matrix here
        fixed += sum(len(one.payload) for found in transforms.values() for one in found)
        plans = [job.plan for job in jobs]
        start, finest = first_c(plans, 8.0 * max(target - fixed, 1)), finest_c(plans)
        tables, learning, taught = first_tables(jobs, effort), effort.learning_passes, effort.taught
        if sampled := sample(jobs):
            pilot = Pilot(sampled, tables, learning, self.recipe.entropy, fixed, self.threads, self.progress)
            with suppress(TargetError):  # by estimate; the passes tell for certain
                trial = search(pilot, start, size, target, fixed, learning, finest, taught)
                start, tables, learning, taught = max(trial.closer(target, size), finest), trial.tables, 0, 0
        passes = Passes(
            jobs, tables, learning, self.recipe.entropy, self._written, self.threads, self.progress,
            self.journal, name, self.checkpoint.scratch, self.engine,
        )  # fmt: skip
        found = search(passes, start, size, target, fixed, learning, finest, taught)
        course = Course(
            self.checkpoint, self._tokens, jobs, passes.steps[found.file_bytes], finest, target, name,
            self.recipe.entropy, self._written, self.threads, self.progress, self.journal, self.engine,
        )  # fmt: skip
        return DRIFTS[type(self.recipe.drift)](self.recipe.drift, course, found)

    def _tokens(self) -> Array:
        return calibration_tokens(self.checkpoint, self.weights, self.calibration, self.statistics, self.seed)

    @one_thread()
    def save(
        self,
        files: Assembled,
        out: Path,
        overwrite: bool,
        begun: float,
        target: int | None = None,
        evaluation: Evaluation | None = None,
        inputs: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
    ) -> CompressionReport:
        """Writes and verifies the files; `out` appears whole or not at all.

        Args:
            files: From `fit`.
            out: Directory to create.
            overwrite: Replace `out` if it is not empty.
            begun: `time.perf_counter()` when the compression began, for the report.
            target: Bytes that were asked for; a note says so where the file is well below.
            evaluation: What is known of the files on text, for the report.
            inputs: What the files depend on, for the report.
            notes: Sentences for the report beside its own.
        """
        with staged_directory(out, overwrite, self.journal.folder) as staging:
            write_files(files, self.checkpoint, staging)
            decoder = Decoder(staging, self.threads)
            check_bytes(decoder)
            # two factors are one matrix here
            matrices = list(dict.fromkeys((job.weight, job.aligned, job.metric) for job in self.jobs))
            # decodes every tensor
            rows = tensor_reports(decoder, self.checkpoint, matrices, files.tensor_bytes, self.threads)
            unused = _unused(files.file_bytes, target)
            return leave_report(
                files, self.checkpoint, staging, begun,
                recipe=self.recipe.to_json(), recipe_hash=self.recipe.hash, calibration=self.header["calibration"],
                tensors=rows,
                notes=(*blind_spots(self.weights, self.statistics), *files.notes, *unused, *notes),
                evaluation=evaluation, spaces=self.alignment.spaces, learning=self.alignment.learning,
                functions=tuple(job.told for job in self.jobs if job.told is not None),
                transforms=tuple(job.turned for job in self.jobs if job.turned is not None),
                inputs=dict(inputs or {}),
            )  # fmt: skip


@one_thread()
def prepare(
    checkpoint: Checkpoint,
    recipe: Recipe,
    expected: int,
    calibration: Sequence[str | Path],
    statistics: str | Path | None,
    *,
    seed: int,
    threads: int,
    device: str,
    progress: Progress,
    journal: NoJournal = NO_JOURNAL,
    engine: Local = LOCAL,
) -> Prepared:
    """Calibrates, aligns and plans.

    Args:
        checkpoint: The original.
        recipe: The stages.
        expected: Bytes of the file, about: axes are judged at that rate.
        calibration, statistics, seed, threads, device, progress: As in `trueaxis.compress`.
        journal: Knows what an earlier run found.
        engine: Where text is read, and matrices are rounded.

    Raises:
        TrueaxisError: Bad input, by name.
    """
    weights = trace(checkpoint)
    for weight in weights:
        if weight.role == "exact":
            check_finite(weight.name, checkpoint.tensor(weight.name))
    measured = obtain_statistics(
        checkpoint, weights, calibration, statistics, seed, device, progress, threads, journal, engine
    )
    network = Network(checkpoint, weights, measured, 8.0 * expected, seed, threads, calibration, journal)
    alignment = ALIGNERS[type(recipe.align)](recipe.align, network)
    exact = [exact_entry(weight, alignment.exact(checkpoint, weight)) for weight in weights if weight.role == "exact"]
    jobs = jobs_of(network, alignment, recipe, threads, progress)
    header = facts_of(recipe, measured, alignment)
    sources = {product.name: product.source for product in alignment.products}
    return Prepared(
        checkpoint, recipe, measured, weights, alignment, jobs, exact, header, threads, progress, sources,
        seed, device, calibration, journal, engine=engine,
    )  # fmt: skip


def facts_of(recipe: Recipe, measured: Statistics, alignment: Alignment) -> dict[str, Any]:
    """What the header says of a run."""
    return {
        "recipe": recipe.to_json(),
        "sketch": np.diff(sketch(measured.shingles).astype(np.int64), prepend=0).tolist(),
        "gauge": list(alignment.gauges),
        "calibration": {"source": measured.source, "tokens": int(measured.token_counts.sum())},
    }


def jobs_of(network: Network, alignment: Alignment, recipe: Recipe, threads: int, progress: Progress) -> list[Job]:
    """Metric, coordinates, function and plan of every matrix; those of one input space by one worker."""
    scratch, lock, done = network.checkpoint.scratch, threading.Lock(), itertools.count(1)
    planner = Planner(recipe.quantize, scratch)
    split = FUNCTIONS[type(recipe.function)](recipe.function, network)
    weights = [weight for weight in network.weights if weight.role != "exact"]
    spaces = [list(group) for _, group in itertools.groupby(weights, lambda weight: weight.space or weight.name)]

    def prepared(group: Sequence[Weight]) -> list[Job]:
        jobs, moments = [], {}
        for weight in group:
            matrix = network.checkpoint.matrix(weight).float()
            check_finite(weight.name, matrix)
            metric = held(scratch, network.metric(weight))
            known = alignment.checked.get(weight.name)
            aligned = alignment.aligned(weight, matrix.contiguous().numpy(), metric, moments, known)
            aligned = replace(aligned, weight=scratch.hold(aligned.weight), metric=held(scratch, aligned.metric))
            changed = alignment.changes.get(weight.name)
            cost = LOSSES[type(recipe.metric)](recipe.metric, weight, aligned.metric, changed, network.statistics)
            for coded in split(weight, replace(aligned, metric=held(scratch, cost))):
                factor = _known_factor(network, alignment, weight) if _as_aligned(coded, aligned) else None
                plan = planner.plan(coded.weight, scratch.hold(coded.values), coded.metric, factor)
                jobs.append(Job(weight, metric, aligned, plan, coded.weight))
            with lock:
                progress("prepare", next(done), len(weights))
        return jobs

    jobs = [job for group in ordered_map(prepared, spaces, threads) for job in group]
    jobs += [_product_job(product, network, planner) for product in alignment.products]
    plans = planner.balanced([job.plan for job in jobs])
    jobs = [replace(job, plan=plan) for job, plan in zip(jobs, plans, strict=True)]

    def planned(weight: Weight, matrix: Array, metric: Metric) -> Plan:
        return planner.plan(weight, scratch.hold(matrix), held(scratch, metric))

    jobs = TURNERS[type(recipe.transform)](recipe.transform, jobs, planned, network.target_bits, threads)
    own = len(jobs) - len(alignment.products)  # what another tensor is multiplied by has no function in the format
    return [*SELECTORS[type(recipe.function)](recipe.function, jobs[:own], network.target_bits), *jobs[own:]]


def _as_aligned(coded: Coded, aligned: Aligned) -> bool:
    """Whether a matrix is coded whole and its inputs are weighed as alignment weighed them."""
    same = coded.metric.second_moment is aligned.metric.second_moment and coded.metric.embedding_moment is None
    return same and coded.values is aligned.weight


def _known_factor(network: Network, alignment: Alignment, weight: Weight) -> Factor | None:
    """Factor of the metric where coordinates are those of the checkpoint, or a permutation of them."""
    order = alignment.permutation(weight)
    if order is None:
        return None
    found = network.factor(weight)
    return None if found is None else found.permuted(order)


def _unused(file_bytes: int, target: int | None) -> list[str]:
    if target is None or file_bytes >= target * ENOUGH:
        return []
    return [
        f"the file takes {file_bytes / target:.1%} of the target of {target} bytes: the tensors are too small to "
        "hit it closely, or their steps are already as fine as the format has them; more bytes would gain nothing"
    ]


def _product_job(product: Product, network: Network, planner: Planner) -> Job:
    """The matrix that another tensor is multiplied by, as a head: no recipe quantizes it more coarsely."""
    dtype, aligned = network.checkpoint.entries[product.source].dtype, product.aligned()
    weight = Weight(product.name, aligned.weight.shape, dtype, "head")
    return Job(weight, product.metric, aligned, planner.plan(weight, aligned.weight, aligned.metric), weight)
