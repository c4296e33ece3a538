"""Drift: every matrix aims at what the original puts out, given what the compressed blocks before it hand on.

    original    x ─▶ block ─▶ …        C = E[x x̃ᵀ]
    compressed  x̃ ─▶ block ─▶ …        H̃ = E[x̃ x̃ᵀ]    W′ = W + W (C − H̃) (H̃ + δI)⁻¹ ─▶ quantize ─▶ next space

W′ minimizes E‖W′ x̃ − W x‖². Spaces go in turn, since the errors that W′ takes up are those of matrices that are
rounded already: targets found for all spaces at once would take up errors that the next rounding no longer makes.
Text that was kept back decides whether the files are used. Memory: both models, and the states of the text.

References: Qronos (arXiv:2505.11695), GPTAQ (arXiv:2504.02692).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trueaxis.assemble import Assembled, count_symbols, write_files
from trueaxis.entropy.model import Tables, fit_tables
from trueaxis.entropy.pooling import POOLINGS
from trueaxis.evaluation import score_sequences
from trueaxis.metric.calibrate import split_sequences
from trueaxis.metric.running import Resumption, StoppedError, load_model
from trueaxis.model.architecture import locate, submodule
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import Route, route
from trueaxis.passes import Job, Write
from trueaxis.progress import Progress
from trueaxis.quantize.budget import finest_c, search
from trueaxis.quantize.feedback import quantize
from trueaxis.runtime.load import load
from trueaxis.runtime.transforms import undone
from trueaxis.stages import Coder, InTurn, NoDrift
from trueaxis.tuning import in_model
from trueaxis.types import Array, Quantized, TargetError

BATCH_TOKENS = 1024
KEPT_TOKENS = 4096


@dataclass(frozen=True, eq=False)
class Course:
    """What the search left to go on from.

    Attributes:
        checkpoint: The original.
        tokens: Reads calibration text, integers [sequences, length].
        jobs: All matrices.
        c: Of the files that were found.
        target, fixed: Bytes not to exceed, and those that no step changes.
        coder: Of the recipe.
        write: Makes files.
        progress: Told of every space.
    """

    checkpoint: Checkpoint
    tokens: Callable[[], Array]
    jobs: Sequence[Job]
    c: float
    target: int
    fixed: int
    coder: Coder
    write: Write
    progress: Progress


def as_found(stage: NoDrift, course: Course, files: Assembled) -> Assembled:
    """The files as they are."""
    return files


def in_turn(stage: InTurn, course: Course, files: Assembled) -> Assembled:
    """Files of the same size whose matrices make up for the errors of those before them.

    Args:
        stage: Tokens to read, and the share of the inputs' mean energy that is added to H̃.
        course: What the search left.
        files: From the search; they are the result where the new ones are no closer to the original, and where the
            blocks of the model are not known or factors are coded.
    """
    places = route(course.checkpoint)
    if not places.blocks or places.head is None or any(job.weight.name != job.coded.name for job in course.jobs):
        return files
    tokens, kept = _split(course.tokens(), stage.tokens)
    assert files.tables is not None
    turns = _Turns(stage, course, places, files, files.tables, list(split_sequences(tokens, BATCH_TOKENS)))
    size = sum(job.coded.size for job in course.jobs)
    finest = finest_c([job.plan for job in course.jobs])
    with suppress(TargetError):
        found = search(turns, course.c, size, course.target, course.fixed, 0, finest, 0)
        original = load_model(course.checkpoint)
        return min(files, found, key=lambda one: _divergence(course.checkpoint, original, one, kept))
    return files


def _split(tokens: Array, read: int) -> tuple[Array, Array]:
    """Sequences to learn from, and some that are kept back."""
    aside = max(1, min(len(tokens) // 8, KEPT_TOKENS // tokens.shape[1]))
    return tokens[:-aside][: max(1, read // tokens.shape[1])], tokens[-aside:]


def _divergence(checkpoint: Checkpoint, original: Any, files: Assembled, tokens: Array) -> float:
    scores = score_sequences(_running(checkpoint, files), original, tokens)
    assert scores.kl_nats is not None
    return float(scores.kl_nats.sum())


def _running(checkpoint: Checkpoint, files: Assembled) -> Any:
    with tempfile.TemporaryDirectory() as directory:
        write_files(files, checkpoint, Path(directory))
        model: Any = load(directory, torch.float32)
    return model.requires_grad_(False)


class _Turns:
    """Call it with c for the file at that c, one space after the other."""

    def __init__(
        self, stage: InTurn, course: Course, places: Route, files: Assembled, tables: Tables, ids: list[torch.Tensor]
    ) -> None:
        self._stage, self._course, self._places, self._tables = stage, course, places, tables
        self._models = [_Followed(_running(course.checkpoint, files), places, ids) for _ in range(2)]
        for job in course.jobs:
            self._models[0].put(job, job.aligned.weight)

    def __call__(self, c: float) -> Assembled:
        """Quantizes what reads no space of a block, then block by block and space by space."""
        found: dict[str, Quantized] = {}
        readers: dict[str, list[Job]] = {}
        heard = {space for inside in self._places.inside for space in inside.spaces}
        for job in self._course.jobs:
            if job.weight.space in heard and job.weight.pool is None:
                readers.setdefault(str(job.weight.space), []).append(job)
            else:
                found[job.coded.name] = self._rounded(job, c)
        for one in self._models:
            one.begin()
        for index, inside in enumerate(self._places.inside):
            for space in self._models[0].in_order(index, inside.spaces):
                correction = self._correction(index, inside.spaces[space])
                for job in readers.get(space, []):
                    found[job.coded.name] = self._rounded(self._corrected(job, correction), c)
            for one in self._models:
                one.advance(index)
            self._course.progress("drift", index + 1, len(self._places.inside))
        matrices = [(job.coded, found[job.coded.name]) for job in self._course.jobs]
        counts = sum((count_symbols([matrix]) for _, matrix in matrices), start=count_symbols([]))
        return self._course.write(matrices, fit_tables(counts, self._tables.offsets))

    def _rounded(self, job: Job, c: float) -> Quantized:
        outcome = quantize(job.plan, c, self._tables)
        self._models[1].put(job, job.plan.weight + outcome.errors)
        return POOLINGS[type(self._course.coder)](self._course.coder, job.coded, outcome.quantized)

    def _correction(self, index: int, module: str) -> Array:
        """(C − H̃) (H̃ + δI)⁻¹ [n, n] of what a module reads."""
        cross, own = 0.0, 0.0
        for original, drifted in zip(*(one.inputs(index, module) for one in self._models), strict=True):
            cross, own = cross + (original.T @ drifted).double(), own + (drifted.T @ drifted).double()
        assert isinstance(cross, torch.Tensor) and isinstance(own, torch.Tensor)
        damped = own.clone()
        damped.diagonal().add_(max(self._stage.damping * float(own.diagonal().mean()), np.finfo(np.float64).tiny))
        return torch.linalg.solve(damped, cross - own, left=False).numpy()

    def _corrected(self, job: Job, correction: Array) -> Job:
        weight = in_model(torch.from_numpy(job.aligned.weight), job).numpy()
        change = np.ascontiguousarray((weight @ correction).astype(np.float32))
        moved = undone(change, job.aligned.transforms) if job.aligned.transforms else change
        return replace(job, plan=replace(job.plan, weight=job.plan.weight + moved))


class _Followed:
    """A model that runs over a text block by block, every block as often as is asked.

    Args:
        model: Whole, on the CPU.
        places: Where its blocks are.
        ids: Batches of tokens.
    """

    def __init__(self, model: Any, places: Route, ids: list[torch.Tensor]) -> None:
        self._model, self._blocks, self._ids = model, places.blocks, ids
        self._after = (*places.blocks[1:], str(places.head))
        self._resumption = Resumption(model, places.blocks)
        self._states: list[torch.Tensor] = []

    def put(self, job: Job, values: Array) -> None:
        """A matrix in the coordinates of the file into the model."""
        if job.weight.place is not None:
            locate(self._model, job.weight.place).detach().copy_(in_model(torch.from_numpy(values), job))

    def begin(self) -> None:
        """Back to the first block."""
        self._states = []
        with torch.inference_mode(), _entering(self._model, self._blocks[0]) as caught:
            for ids in self._ids:
                self._states.append(caught(lambda ids=ids: self._resumption.record(ids)))

    def inputs(self, index: int, module: str) -> Iterator[torch.Tensor]:
        """What a module of a block reads, float32 [tokens, n] per batch."""
        for found in self._run(index, module):
            yield found.reshape(-1, found.shape[-1])

    def advance(self, index: int) -> None:
        """On to the block after this one."""
        if index + 1 < len(self._blocks):
            self._states = list(self._run(index, self._after[index]))

    def in_order(self, index: int, spaces: Mapping[str, str]) -> list[str]:
        """Spaces of a block as the model comes to them."""
        order: list[str] = []
        handles = []
        for space, module in spaces.items():

            def note(_module: Any, _args: Any, name: str = space) -> None:
                order.append(name)

            handles.append(submodule(self._model, module).register_forward_pre_hook(note))
        next(self._run(index, self._after[index]))
        for handle in handles:
            handle.remove()
        return list(dict.fromkeys(order))

    def _run(self, index: int, module: str) -> Iterator[torch.Tensor]:
        for ids, state in zip(self._ids, self._states, strict=True):
            with (
                torch.inference_mode(),
                self._resumption.starting_at(index) as resume,
                _entering(self._model, module) as caught,
            ):
                found = caught(lambda ids=ids, state=state, resume=resume: resume(ids, [state] * (index + 1)))
            yield found


@contextmanager
def _entering(model: Any, module: str) -> Iterator[Callable[[Callable[[], Any]], torch.Tensor]]:
    """While the context lasts, gives (forward pass) ─▶ what it hands to a module, at which it ends."""
    states: list[torch.Tensor] = []

    def catch(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])
        raise StoppedError

    def caught(run: Callable[[], Any]) -> torch.Tensor:
        with suppress(StoppedError):
            run()
        return states.pop()

    handle = submodule(model, module).register_forward_pre_hook(catch, with_kwargs=True)
    try:
        yield caught
    finally:
        handle.remove()


DRIFTS: dict[type, Callable[[Any, Course, Assembled], Assembled]] = {NoDrift: as_found, InTurn: in_turn}
