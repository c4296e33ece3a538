"""Tuning: side parameters trained by the divergence of the whole model, once the integers stand.

    files, steps in the finest codes ─▶ model ─▶ KL(original ‖ compressed) on calibration text
      ─▶ gains of columns and rows ─▶ step codes ─▶ files ─▶ the closer ones on text kept back, these or the untuned

The step of a column or row is a number of the file; a gain of a multiple of 1/32 octave moves it to another number.
Symbols stay as they are, and the size changes by what the codes differ in: hardly. Columns and rows move in proportion
to their error, the more the coarser they are. Fine codes cost bytes that weights then lack, so the files are searched
once more for them, and compared with those of the same size that have coarse ones.
Memory: both models, and gradients of the matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from trueaxis.assemble import Assembled, running
from trueaxis.metric.running import forward, load_model
from trueaxis.metric.sensitivity import Output
from trueaxis.model.architecture import locate, parameter, part_of
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.passes import Job, Write
from trueaxis.progress import Progress
from trueaxis.quantize.grid import OCTAVE
from trueaxis.quantize.plan import Plan
from trueaxis.runtime.resident import Dense
from trueaxis.runtime.transforms import decoded, undone
from trueaxis.stages import Gains, NoTuning
from trueaxis.types import Array, Grid, Quantized, TrueaxisError

BATCH_TOKENS = 1024
LARGEST_OCTAVES = 1.0  # of a gain, either way
KEPT_BATCHES = 8
LEFT_OUT = (0, 2, 3, 4, 6, 9, 13)  # codes of gains


@dataclass(frozen=True, eq=False)
class Lessons:
    """What tuning learns from.

    Attributes:
        checkpoint: The original.
        tokens: Reads calibration text, integers [sequences, length].
        target: Bytes not to exceed.
        fixed: Names of matrices that keep their steps: those that another tensor of the model is a product of.
        seed: Of the order in which it is read.
        device: Torch device of both models.
        progress: Told of every step.
    """

    checkpoint: Checkpoint
    tokens: Callable[[], Array]
    target: int
    fixed: frozenset[str]
    seed: int
    device: str
    progress: Progress


Again = Callable[[Sequence[Job]], Assembled]
"""Jobs with other plans ─▶ their files, of the same size."""


def untuned(
    stage: NoTuning, lessons: Lessons, jobs: Sequence[Job], files: Assembled, again: Again, write: Write
) -> Assembled:
    """The files as they are."""
    return files


def tune_gains(
    stage: Gains, lessons: Lessons, jobs: Sequence[Job], files: Assembled, again: Again, write: Write
) -> Assembled:
    """Files whose steps bring the model closer to its original than those of the search, or these themselves.

    Args:
        stage: Tokens to read, and the largest move per step.
        lessons: Original and text.
        jobs: All matrices; those with one step for all columns keep their steps.
        files: From the search, as close as it came without tuning.
        again: Searches once more.
        write: Makes files of other matrices.

    Raises:
        TrueaxisError: The model has no logits to compare.
    """
    read, kept = _batches(stage, lessons)
    original = load_model(lessons.checkpoint).to(lessons.device)
    before = _divergence(original, _running(lessons, files), kept)
    finer = [replace(job, plan=finely(job.plan)) for job in jobs]
    same = all(one.plan is other.plan for one, other in zip(jobs, finer, strict=True))
    fine = files if same else again(finer)
    model = _running(lessons, fine)
    matrices = [
        _Matrix.of(model, job, found.grid)
        for job, (_, found) in zip(jobs, fine.matrices, strict=True)
        if job.weight.place is not None and job.weight.name not in lessons.fixed and found.grid.resolution == OCTAVE
    ]
    _train(stage, lessons, original, model, [one for one in matrices if one.moves], read)
    tuned = _fitting(lessons, fine, {one.job.weight.name: one.codes for one in matrices}, write)
    return tuned if _divergence(original, _running(lessons, tuned), kept) < before else files


def _fitting(lessons: Lessons, fine: Assembled, gains: Mapping[str, Mapping[int, Array]], write: Write) -> Assembled:
    """Files with gains, the smallest of them left out where all of them together take too many bytes."""
    assert fine.tables is not None
    for least in LEFT_OUT:
        matrices = [(weight, _gained(found, gains.get(weight.name, {}), least)) for weight, found in fine.matrices]
        files = write(matrices, fine.tables)
        if files.file_bytes <= lessons.target:
            return files
    return fine


def _running(lessons: Lessons, files: Assembled) -> Any:
    return running(files, lessons.checkpoint, Dense()).to(lessons.device)


class _Matrix(NamedTuple):
    """A matrix whose steps are trained.

    Attributes:
        job: Which matrix.
        values: Ŵ [m, n] as the file has them.
        errors: 0 → RMS error of each column relative to its own RMS [1, n], at most 1; 1 → of each row [m, 1]. Only
            one of the two where the others share a step.
        moves: What is trained, as `errors`: log₂ of the gains in units of these.
    """

    job: Job
    values: torch.Tensor
    errors: dict[int, torch.Tensor]
    moves: dict[int, torch.Tensor]

    @classmethod
    def of(cls, model: Any, job: Job, grid: Grid) -> _Matrix:
        assert job.weight.place is not None
        parameter(model, job.weight.place.parameter).requires_grad_(True)
        values = in_file(locate(model, job.weight.place).detach(), job)
        original = torch.from_numpy(job.aligned.weight)
        errors = {}
        for axis, codes in enumerate((grid.column_codes, grid.row_codes[:, 0])):
            if np.ptp(codes) > 0 and codes.size == values.shape[1 - axis] and grid.row_codes.shape[1] == 1:
                energy = original.square().sum(axis, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
                wrong = (values - original).square().sum(axis, keepdim=True)
                errors[axis] = (wrong / energy).sqrt().clamp(max=1)
        return cls(job, values, errors, {axis: torch.zeros_like(one).requires_grad_() for axis, one in errors.items()})

    @property
    def octaves(self) -> dict[int, torch.Tensor]:
        """log₂ of the gains, as `errors`."""
        limit = LARGEST_OCTAVES
        return {axis: (move.detach() * self.errors[axis]).clamp(-limit, limit) for axis, move in self.moves.items()}

    @property
    def codes(self) -> dict[int, Array]:
        """Gains as codes of the file: int32 [n] of columns, [m] of rows."""
        return {axis: np.rint(one.numpy().ravel() * OCTAVE).astype(np.int32) for axis, one in self.octaves.items()}

    @property
    def gained(self) -> torch.Tensor:
        """The matrix with its gains [m, n]."""
        return self.values * torch.exp2(sum(self.octaves.values(), start=torch.zeros(1, 1)))

    def pull(self, model: Any) -> None:
        """Gradient of the moves from that of the matrix: ∂/∂aⱼ = ln 2 · Σᵢ ŵᵢⱼ 2^aⱼ ∂/∂ŵᵢⱼ for octaves a."""
        place = self.job.weight.place
        assert place is not None
        slopes = in_file(part_of(parameter(model, place.parameter).grad, place), self.job) * self.gained
        for axis, move in self.moves.items():
            move.grad = slopes.sum(axis, keepdim=True) * self.errors[axis] * math.log(2)

    def push(self, model: Any) -> None:
        """The matrix with its gains into the running model."""
        assert self.job.weight.place is not None
        locate(model, self.job.weight.place).detach().copy_(in_model(self.gained, self.job))


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


def _train(
    stage: Gains,
    lessons: Lessons,
    original: Any,
    model: Any,
    matrices: Sequence[_Matrix],
    read: Sequence[torch.Tensor],
) -> None:
    """Adam with a rate that rises and falls; every batch is new text until all of it was read."""
    moves = [move for one in matrices for move in one.moves.values()]
    if not moves:
        return
    optimizer = torch.optim.Adam(moves, betas=(0.9, 0.95))
    for step, ids in enumerate(read):
        with torch.enable_grad():
            _kl_nats(original, model, ids).backward()
        for one in matrices:
            one.pull(model)
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * _envelope((step + 1) / len(read))
        optimizer.step()
        model.zero_grad()
        for one in matrices:
            one.push(model)
        lessons.progress("tune", step + 1, len(read))


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


def _gained(found: Quantized, codes: Mapping[int, Array], least: int) -> Quantized:
    """A matrix with other steps, those of columns under 0, of rows under 1; gains below the least are none."""
    grid, gains = found.grid, {axis: np.where(np.abs(one) < least, 0, one) for axis, one in codes.items()}
    column_codes = grid.column_codes + gains.get(0, 0)
    row_codes = grid.row_codes + gains[1][:, None] if 1 in gains else grid.row_codes
    return replace(found, grid=replace(grid, column_codes=column_codes, row_codes=row_codes))


def finely(plan: Plan) -> Plan:
    """Steps of the finest codes wherever columns have steps of their own."""
    coarse = plan.resolution != OCTAVE and np.ptp(plan.column_steps) > 0
    return replace(plan, resolution=OCTAVE) if coarse else plan


TUNERS: dict[type, Callable[[Any, Lessons, Sequence[Job], Assembled, Again, Write], Assembled]] = {
    NoTuning: untuned,
    Gains: tune_gains,
}
