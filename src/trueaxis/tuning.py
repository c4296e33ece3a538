"""Tuning: side parameters trained by the divergence of the whole model, once the integers stand.

    files ─▶ model ─▶ KL(original ‖ compressed) on calibration text ─▶ gains of columns ─▶ step codes ─▶ files

A column's step is a number of the file; a gain of a multiple of 1/32 octave moves it to another number. Symbols stay
as they are, and the size changes by what the codes differ in: hardly. Columns move in proportion to their error, the
more the coarser they are. Text that was kept back decides whether the gains are used at all.
Memory: both models, and gradients of the matrices.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from trueaxis.assemble import Assembled, write_files
from trueaxis.metric.running import forward, load_model
from trueaxis.metric.sensitivity import Output
from trueaxis.model.architecture import locate, parameter, part_of
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.passes import Job, Write
from trueaxis.progress import Progress
from trueaxis.quantize.grid import OCTAVE
from trueaxis.quantize.plan import Plan
from trueaxis.runtime.load import load
from trueaxis.runtime.transforms import decoded, undone
from trueaxis.stages import Gains, NoTuning
from trueaxis.types import Array, Quantized, TrueaxisError

BATCH_TOKENS = 1024
LARGEST_OCTAVES = 1.0  # of a gain, either way
KEPT_BATCHES = 8


@dataclass(frozen=True, eq=False)
class Lessons:
    """What tuning learns from.

    Attributes:
        checkpoint: The original.
        tokens: Reads calibration text, integers [sequences, length].
        fixed: Names of matrices that keep their steps: those that another tensor of the model is a product of.
        seed: Of the order in which it is read.
        device: Torch device of both models.
        progress: Told of every step.
    """

    checkpoint: Checkpoint
    tokens: Callable[[], Array]
    fixed: frozenset[str]
    seed: int
    device: str
    progress: Progress


def untuned(stage: NoTuning, lessons: Lessons, jobs: Sequence[Job], files: Assembled, write: Write) -> Assembled:
    """The files as they are."""
    return files


def tune_gains(stage: Gains, lessons: Lessons, jobs: Sequence[Job], files: Assembled, write: Write) -> Assembled:
    """The same integers with column steps that bring the model closer to its original.

    Args:
        stage: Tokens to read, and the largest move per step.
        lessons: Original and text.
        jobs: All matrices; those with one step for all columns keep it.
        files: From the search.
        write: Makes files of other matrices.

    Raises:
        TrueaxisError: The model has no logits to compare.
    """
    with tempfile.TemporaryDirectory() as directory:
        write_files(files, lessons.checkpoint, Path(directory))
        model: Any = load(directory, torch.float32)
    model = model.requires_grad_(False).to(lessons.device)
    columns = [
        _Columns.of(model, job)
        for job, (_, found) in zip(jobs, files.matrices, strict=True)
        if job.weight.place is not None and job.weight.name not in lessons.fixed and np.ptp(found.grid.column_codes) > 0
    ]
    if not _train(stage, lessons, model, columns):
        return files
    assert files.tables is not None
    codes = {column.job.weight.name: column.codes for column in columns}
    return write([(weight, _gained(found, codes.get(weight.name))) for weight, found in files.matrices], files.tables)


class _Columns(NamedTuple):
    """Columns of one matrix.

    Attributes:
        job: Which matrix.
        values: Ŵ [m, n] as the file has them.
        errors: RMS error of each column relative to its own RMS [n], at most 1.
        moves: [n], what is trained: log₂ of the gains in units of `errors`.
    """

    job: Job
    values: torch.Tensor
    errors: torch.Tensor
    moves: torch.Tensor

    @classmethod
    def of(cls, model: Any, job: Job) -> _Columns:
        assert job.weight.place is not None
        parameter(model, job.weight.place.parameter).requires_grad_(True)
        values = in_file(locate(model, job.weight.place).detach(), job)
        original = torch.from_numpy(job.aligned.weight)
        energy = original.square().sum(0).clamp(min=torch.finfo(torch.float32).tiny)
        errors = ((values - original).square().sum(0) / energy).sqrt().clamp(max=1)
        return cls(job, values, errors, torch.zeros(values.shape[1], requires_grad=True))

    @property
    def octaves(self) -> torch.Tensor:
        """log₂ of the gains [n]."""
        return (self.moves.detach() * self.errors).clamp(-LARGEST_OCTAVES, LARGEST_OCTAVES)

    @property
    def codes(self) -> Array:
        """Gains as codes of the file, int32 [n]."""
        return np.rint(self.octaves.numpy() * OCTAVE).astype(np.int32)

    def pull(self, model: Any) -> None:
        """Gradient of the moves from that of the matrix: ∂/∂aⱼ = ln 2 · Σᵢ ŵᵢⱼ 2^aⱼ ∂/∂ŵᵢⱼ for octaves a."""
        place = self.job.weight.place
        assert place is not None
        gradient = in_file(part_of(parameter(model, place.parameter).grad, place), self.job)
        gained = self.values * torch.exp2(self.octaves)
        self.moves.grad = (gradient * gained).sum(0) * self.errors * math.log(2)

    def push(self, model: Any, octaves: torch.Tensor) -> None:
        """The matrix with gains of 2^octaves into the running model."""
        assert self.job.weight.place is not None
        view = locate(model, self.job.weight.place).detach()
        view.copy_(in_model(self.values * torch.exp2(octaves), self.job))


def in_file(values: torch.Tensor, job: Job) -> torch.Tensor:
    """Values [m, n] of the running model, or their gradient, in the coordinates of the file."""
    if not job.aligned.transforms:
        return values.cpu().clone()
    return torch.from_numpy(undone(values.cpu().numpy(), job.aligned.transforms))


def in_model(values: torch.Tensor, job: Job) -> torch.Tensor:
    """Values [m, n] of the file in the coordinates of the running model."""
    if not job.aligned.transforms:
        return values.cpu().clone()
    return torch.from_numpy(decoded(values.cpu().numpy(), job.aligned.transforms))


def _train(stage: Gains, lessons: Lessons, model: Any, columns: Sequence[_Columns]) -> bool:
    """Adam with a rate that rises and falls; every batch is new text until all of it was read.

    Returns:
        Whether the rounded gains bring the model closer to its original on text that was kept back.
    """
    original = load_model(lessons.checkpoint).to(lessons.device)
    read, kept = _batches(stage, lessons)
    optimizer = torch.optim.Adam([found.moves for found in columns], betas=(0.9, 0.95))
    before = _divergence(original, model, kept)
    for step, ids in enumerate(read):
        with torch.enable_grad():
            _kl_nats(original, model, ids).backward()
        for one in columns:
            one.pull(model)
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * _envelope((step + 1) / len(read))
        optimizer.step()
        model.zero_grad()
        for one in columns:
            one.push(model, one.octaves)
        lessons.progress("tune", step + 1, len(read))
    for one in columns:
        one.push(model, torch.from_numpy(one.codes / np.float32(OCTAVE)))
    return _divergence(original, model, kept) < before


def _batches(stage: Gains, lessons: Lessons) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Batches to learn from and batches kept back, at most an eighth of the text."""
    tokens = lessons.tokens()
    size = max(1, BATCH_TOKENS // tokens.shape[1])
    order = np.random.default_rng(lessons.seed).permutation(len(tokens))
    aside = min(len(order) // 8, KEPT_BATCHES * size)
    if aside == 0:
        raise TrueaxisError(f"tuning: {len(order)} sequences of text are too few; give at least 8")

    def batch(sequences: Array) -> torch.Tensor:
        return torch.from_numpy(tokens[sequences].astype(np.int64)).to(lessons.device)

    kept, order = order[:aside], order[aside:]
    count = max(1, stage.tokens // (size * tokens.shape[1]))
    read = [batch(order[(step * size + np.arange(size)) % len(order)]) for step in range(count)]
    return read, [batch(kept[first : first + size]) for first in range(0, aside, size)]


def _divergence(original: Any, model: Any, batches: Sequence[torch.Tensor]) -> float:
    with torch.no_grad():
        return sum(float(_kl_nats(original, model, ids)) * len(ids) for ids in batches)


def _kl_nats(original: Any, model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Mean KL(original ‖ model) per token, to be differentiated by the model."""
    with torch.no_grad():
        expected = _log_shares(original, ids)
    return (expected.exp() * (expected - _log_shares(model, ids))).sum(-1).mean()


def _envelope(share: float) -> float:
    """Of the largest rate, at a share of the steps: up over the first tenth, then down along a cosine."""
    return share / 0.1 if share < 0.1 else 0.5 + 0.5 * math.cos(math.pi * (share - 0.1) / 0.9)


def _log_shares(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = Output.of(model, forward(model, ids)).logits
    if logits is None:
        raise TrueaxisError("tuning: the model has no logits over a vocabulary to compare; leave out --tune")
    return logits.log_softmax(-1)


def _gained(found: Quantized, codes: Array | None) -> Quantized:
    if codes is None:
        return found
    scaled = codes * found.grid.resolution // OCTAVE
    return replace(found, grid=replace(found.grid, column_codes=found.grid.column_codes + scaled))


def as_planned(plan: Plan) -> Plan:
    """Steps as coarse as quantization needs them."""
    return plan


def finely(plan: Plan) -> Plan:
    """Steps of the finest codes wherever columns have steps of their own."""
    return replace(plan, resolution=OCTAVE) if np.ptp(plan.column_steps) > 0 else plan


class Tuner(NamedTuple):
    """What a type of tuning asks of plans, and what it does to files."""

    plan: Callable[[Plan], Plan]
    tune: Callable[[Any, Lessons, Sequence[Job], Assembled, Write], Assembled]


TUNERS: dict[type, Tuner] = {NoTuning: Tuner(as_planned, untuned), Gains: Tuner(finely, tune_gains)}
