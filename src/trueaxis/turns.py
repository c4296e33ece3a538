"""Turns: one round through the model in which every matrix is quantized after those before it.

    original    x ─▶ block ─▶ …        C = E[x x̃ᵀ]
    compressed  x̃ ─▶ block ─▶ …        H̃ = E[x̃ x̃ᵀ]    W′ = W + (W (C − H̃) + η E[(r − r̃) x̃ᵀ]) (H̃ + δI)⁻¹ ─▶ quantize

The second term is for what is added to the residual stream r: a share η of what that lost goes into the targets.
Both models are in the coordinates of the file and go through the text side by side, block by block. What a matrix takes
more or less than it was allowed changes the steps of those after it, so that a round ends close to the size wanted.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch.nn import Parameter

from trueaxis import _core
from trueaxis.assemble import Assembled, count_symbols
from trueaxis.engine import Local
from trueaxis.entropy.model import Tables, fit_tables
from trueaxis.entropy.pooling import POOLINGS
from trueaxis.entropy.stream import segment
from trueaxis.journal import Entry, NoJournal
from trueaxis.metric.walking import Walk, shares_of
from trueaxis.mixture import Mixture, Shift, solved
from trueaxis.model.architecture import locate, submodule
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.families import family_of
from trueaxis.model.graph import Route
from trueaxis.parallel import ordered_map, ordered_stream
from trueaxis.passes import Job, Write
from trueaxis.progress import Progress
from trueaxis.quantize.budget import OCTAVE_BITS
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.outcome import packed, unpacked
from trueaxis.runtime.transforms import decoded, undone
from trueaxis.scratch import NoScratch
from trueaxis.stages import Coder, InTurn, Rans, RansPooled
from trueaxis.types import Array, Quantized

R = TypeVar("R")

MOST_OCTAVES = 0.1  # that steps change by within a round, either way


@dataclass(frozen=True, eq=False)
class Course:
    """What the search left to go on from.

    Attributes:
        checkpoint: The original.
        tokens: Reads calibration text, integers [sequences, length].
        jobs: All matrices.
        c, finest: Of the files that were found, and the smallest there may be.
        target: Bytes not to exceed.
        name: Of the search in the journal.
        coder: Of the recipe.
        write: Makes files.
        threads: Workers; the result does not depend on them.
        progress: Told of every block.
        journal: Knows matrices of rounds that an earlier run made.
        engine: Where matrices are rounded.
    """

    checkpoint: Checkpoint
    tokens: Callable[[], Array]
    jobs: Sequence[Job]
    c: float
    finest: float
    target: int
    name: str
    coder: Coder
    write: Write
    threads: int
    progress: Progress
    journal: NoJournal
    engine: Local


class Allowance:
    """Bits that are left for the matrices still to come, and the steps that spend them.

    Targets that make up for errors are wider than the weights, and take more bits. What a matrix took beyond what it
    was expected to is expected of those in its place in later blocks too.

    Args:
        c, finest: At which the bits were counted, and the smallest there may be.
        bits: Of every matrix at c, by name.
        weights: Of every matrix, by name.
        more: Bits to spend beyond all of these.

    Attributes:
        bits: Of every matrix at c, as far as is known now.
    """

    def __init__(
        self, c: float, finest: float, bits: Mapping[str, float], weights: Mapping[str, int], more: float
    ) -> None:
        self._c, self._finest, self._more = c, finest, more
        self._weights, self.bits = weights, dict(bits)
        self._left = dict.fromkeys(weights)
        self._beyond: dict[str, float] = {}  # bits per weight, by place in a block

    @property
    def c(self) -> float:
        """For the next matrices."""
        beyond = sum(self._beyond.get(_place(name), 0.0) * self._weights[name] for name in self._left)
        weights = sum(self._weights[name] for name in self._left)
        octaves = (beyond - self._more) / (OCTAVE_BITS * max(weights, 1))
        return max(self._finest, self._c * 2.0 ** float(np.clip(octaves, -MOST_OCTAVES, MOST_OCTAVES)))

    def spend(self, name: str, c: float, bits: float) -> None:
        """What a matrix took at some c."""
        self._more -= bits - self.bits[name]
        at_c = bits + OCTAVE_BITS * self._weights[name] * math.log2(c / self._c)
        self._beyond[_place(name)] = (at_c - self.bits[name]) / self._weights[name]
        self.bits[name] = at_c
        del self._left[name]


def _place(name: str) -> str:
    """The name of a matrix without its numbers: the same in every block."""
    return re.sub(r"\d+", "", name)


def _added(jobs: Sequence[Job]) -> bool:
    """Whether all that these matrices put out is added to the residual stream."""
    return all(job.weight.writes == "residual" for job in jobs)


class Turns:
    """Call it with the bytes to aim at for files of about that size.

    Args:
        stage: Damping, and the share of the stream.
        course: What the search left.
        places: Where the model's blocks are.
        files: From the search.
        model: Those files as a running model.
        batches: Token ids [sequences, length].

    Attributes:
        original: The original as a running model, in the coordinates of the file.
        drifted: Its counterpart, with the matrices of the latest round.
    """

    def __init__(
        self,
        stage: InTurn,
        course: Course,
        places: Route,
        files: Assembled,
        model: Any,
        batches: Sequence[torch.Tensor],
    ) -> None:
        assert files.tables is not None
        self._stage, self._course, self._places, self._batches = stage, course, places, batches
        self._tables, self._made = files.tables, 0
        counts = count_symbols([matrix for _, matrix in files.matrices]) + np.uint64(1)  # no symbol is impossible
        self._measure = MEASURES[type(course.coder)](counts, files.tables.offsets)
        self._weights = {weight.name: weight.size for weight, _ in files.matrices}
        self._expected = {weight.name: self._bits(matrix) for weight, matrix in files.matrices}
        self._fixed = 8.0 * files.file_bytes - sum(self._expected.values())
        self.original, self.drifted = _copied(model, course.checkpoint.scratch), model
        for job in course.jobs:
            self._put(self.original, job, job.aligned.weight)
        self._by_space: dict[str, list[Job]] = {}
        self._at_once: list[Job] = []
        heard = {name for inside in places.inside for name in (*inside.spaces, *inside.experts)}
        for job in course.jobs:
            space = str(job.weight.space)
            owner = space if job.weight.pool is None else job.weight.pool.rpartition(".")[0]
            if job.weight.role == "head":
                self._by_space.setdefault("head", []).append(job)
            elif owner in heard:
                self._by_space.setdefault(space, []).append(job)
            else:
                self._at_once.append(job)

    def __call__(self, aim: float) -> Assembled:
        """Quantizes what reads no known space, then block by block and space by space, the head at the end."""
        self._found: dict[str, Quantized] = {}
        more = 8.0 * aim - self._fixed - sum(self._expected.values())
        self._allowance = Allowance(self._course.c, self._course.finest, self._expected, self._weights, more)
        self._round(self._at_once)
        blocks, head = self._places.blocks, str(self._places.head)
        scratch = self._course.checkpoint.scratch
        first, other = self._walks = [
            Walk(model, blocks, self._batches, scratch) for model in (self.original, self.drifted)
        ]
        for index, inside in enumerate(self._places.inside):
            modules = {module: space for space, module in inside.spaces.items()}
            streams = self._streams(blocks[index], inside.spaces)
            experts = {module: name for name, module in inside.experts.items()}
            asked = {*modules, *streams}
            with first.block(index, asked, experts), other.block(index, asked, experts):
                self._through(modules, streams, experts)
                self._over(other.passed)
            self._course.progress("drift", index + 1, len(blocks) + 1)
        if "head" in self._by_space:
            with first.finish(head), other.finish(head):
                self._through({head: "head"}, set(), {})
        self._made += 1
        matrices = [(job.coded, self._found[job.coded.name]) for job in self._course.jobs]
        counts = sum((count_symbols([matrix]) for _, matrix in matrices), start=count_symbols([]))
        files = self._course.write(matrices, fit_tables(counts, self._tables.offsets))
        self._expected = self._allowance.bits
        self._fixed = 8.0 * files.file_bytes - sum(map(self._bits, self._found.values()))
        return files

    def _streams(self, block: str, spaces: Mapping[str, str]) -> set[str]:
        """Modules of a block that read the residual stream while matrices are added to it as they are: norms before
        sublayers, or what reads the stream itself where norms stand after the addition."""
        family = family_of(self._course.checkpoint.config)
        if family is None or family.norms.placement == "sandwich" or self._stage.stream == 0:
            return set()
        jobs = {module: self._by_space.get(space, []) for space, module in spaces.items()}
        if family.norms.placement == "post":
            return {module for module, found in jobs.items() if found and not _added(found)}
        norms = {job.weight.norm for found in jobs.values() for job in found if job.weight.norm is not None}
        number = block.rpartition(".")[2]  # old files name what comes before it otherwise
        return {f"{block}.{name.rpartition('.')[0].partition(f'.{number}.')[2]}" for name in norms}

    def _through(self, modules: Mapping[str, str], streams: Collection[str], experts: Mapping[str, str]) -> None:
        """Takes the original through a block, and quantizes what reads its modules, in their order.

        What the latest of `streams` read is what matrices after it are added to.
        """
        scratch = self._course.checkpoint.scratch

        def passed(number: int) -> dict[str, torch.Tensor]:
            return {module: scratch.tensor(read) for module, read in self._walks[0].passed(number).items()}

        heard = self._over(passed)
        self._walks[1].last = self._walks[0].last
        stream = taken = None  # a shared expert runs before the others, and makes up for what it can
        for module in heard[0]:
            if module in streams:
                stream = module
            if module in experts:
                self._apart(experts[module], module, None if taken == stream else stream, heard)
            elif jobs := self._by_space.get(modules.get(module, "")):
                added = stream if _added(jobs) else None
                taken = added or taken
                self._round(jobs, lambda: self._shift(module, added, heard))  # noqa: B023

    def _over(self, work: Callable[[int], R]) -> list[R]:
        """Results of all batches."""
        return ordered_map(work, range(len(self._batches)), self._course.threads)

    def _apart(
        self, experts: str, module: str, stream: str | None, heard: Sequence[Mapping[str, torch.Tensor]]
    ) -> None:
        """Quantizes the experts of a layer, each aimed at what it puts out for its own tokens."""
        scratch = self._course.checkpoint.scratch

        def until(number: int) -> dict[str, torch.Tensor]:
            found = self._walks[1].until(number, module)
            names = (module, shares_of(module), *([stream] if stream else []))
            return {name: scratch.tensor(found[name]) for name in names}

        damping, share = self._stage.damping, self._stage.stream
        mixture = Mixture(self.original, self.drifted, module, heard, self._over(until), damping, stream, share)
        for side, read in (("in", mixture.states), ("hidden", mixture.hidden)):
            spaces = {f"{experts}.{index}.{side}": index for index in range(mixture.experts)}
            groups = [jobs for space in spaces if (jobs := self._by_space.get(space))]
            self._round_apart(groups, lambda jobs: read(spaces[str(jobs[0].weight.space)]))  # noqa: B023

    def _shift(self, module: str, stream: str | None, heard: Sequence[Mapping[str, torch.Tensor]]) -> Shift:
        """Where targets lie of what reads a module, and is added to the stream if one is named."""

        def summed(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            found, originals = self._walks[1].until(number, module), heard[number]
            own, lost = found[module], [originals[module] - found[module]]
            if stream is not None:
                lost.append(self._stage.stream * (originals[stream] - found[stream]))
            return torch.cat(lost, dim=1).T @ own, own.T @ own

        sums: list[torch.Tensor] = []
        for products in ordered_stream(summed, range(len(self._batches)), self._course.threads):
            sums = sums or [torch.zeros(product.shape, dtype=torch.float64) for product in products]
            for total, product in zip(sums, products, strict=True):
                total += product  # float32, and wide: those of several batches wait here
        cross, own = sums
        return solved(cross, own, self._stage.damping)

    def _round(self, jobs: Sequence[Job], shift: Callable[[], Shift] | None = None) -> None:
        """Quantizes matrices, aimed where the shift says, side by side; what the journal knows is not done again."""
        c = self._allowance.c
        known = {job.coded.name: self._course.journal.recall(self._key(job, c)) for job in jobs}
        found = None if shift is None or all(known.values()) else shift()
        at_once = self._course.engine.side_by_side(self._course.threads)
        rounded = ordered_map(lambda job: self._rounded(job, c, known[job.coded.name], found), jobs, at_once)
        for job, (matrix, values) in zip(jobs, rounded, strict=True):
            self._take(job, c, matrix, values)

    def _round_apart(self, groups: Sequence[Sequence[Job]], shift: Callable[[Sequence[Job]], Shift]) -> None:
        """As `_round`, for groups that each have a shift of their own: groups side by side."""
        c = self._allowance.c

        def rounded(jobs: Sequence[Job]) -> list[tuple[Quantized, Array]]:
            known = [self._course.journal.recall(self._key(job, c)) for job in jobs]
            found = None if all(known) else shift(jobs)
            return [self._rounded(job, c, entry, found) for job, entry in zip(jobs, known, strict=True)]

        at_once = self._course.engine.side_by_side(self._course.threads)
        for jobs, results in zip(groups, ordered_stream(rounded, groups, at_once), strict=True):
            for job, (matrix, values) in zip(jobs, results, strict=True):
                self._take(job, c, matrix, values)

    def _key(self, job: Job, c: float) -> str:
        """Of a matrix in the journal."""
        return f"turn {self._course.name} {self._made} {c!r} {job.coded.name}"

    def _rounded(self, job: Job, c: float, entry: Entry | None, shift: Shift | None) -> tuple[Quantized, Array]:
        """A matrix and its values, as the journal has them or new."""
        if entry is not None:
            return unpacked(entry.arrays, entry.facts)[0], entry.arrays["values"]
        change = np.zeros((1, 1), np.float32) if shift is None else _change(job, shift)
        plan = replace(job.plan, weight=job.plan.weight + change)
        outcome = self._course.engine.call(quantize, plan, c, self._tables)
        quantized = POOLINGS[type(self._course.coder)](self._course.coder, job.coded, outcome.quantized)
        values = job.aligned.weight + change + outcome.errors
        arrays, facts = packed(quantized, outcome.residuals)
        self._course.journal.keep(self._key(job, c), {**arrays, "values": values}, facts)
        return quantized, values

    def _take(self, job: Job, c: float, matrix: Quantized, values: Array) -> None:
        """Puts a matrix in its place, and counts it."""
        self._put(self.drifted, job, values)
        matrix = replace(matrix, indices=self._course.checkpoint.scratch.hold(matrix.indices))
        self._found[job.coded.name] = matrix
        self._allowance.spend(job.coded.name, c, self._bits(matrix))

    def _bits(self, matrix: Quantized) -> float:
        return _core.stream_bits(self._measure(matrix).coder, [segment(matrix)])

    def _put(self, model: Any, job: Job, values: Array) -> None:
        """A matrix in the coordinates of the file into a model; one that another is multiplied by makes the head."""
        matrix = torch.from_numpy(decoded(values, job.aligned.transforms))
        if job.weight.place is not None:
            locate(model, job.weight.place).detach().copy_(matrix)
        elif job.weight.role == "head":
            embedding: Any = submodule(model, str(self._places.embedding))
            head: Any = submodule(model, str(self._places.head))
            head.weight.detach().copy_(embedding.weight @ matrix)


def _by_files(counts: Array, offsets: Array) -> Callable[[Quantized], Tables]:
    """Tables of the search for every matrix: its classes all have been seen there."""
    tables = fit_tables(counts, offsets)
    return lambda matrix: tables


def _by_itself(counts: Array, offsets: Array) -> Callable[[Quantized], Tables]:
    """Tables that know the matrix too: the one that it pools into may be new."""
    return lambda matrix: fit_tables(counts + count_symbols([matrix]), offsets)


MEASURES: dict[type, Callable[[Array, Array], Callable[[Quantized], Tables]]] = {
    Rans: _by_files,
    RansPooled: _by_itself,
}
"""Symbols and offsets of the search ─▶ tables that a matrix is counted with before its files are made."""


def _copied(model: Any, scratch: NoScratch) -> Any:
    """The same model with weights of its own, in scratch."""
    own = {id(one): Parameter(scratch.tensor(one.detach().clone()), False) for one in model.parameters()}
    return copy.deepcopy(model, own)


def _change(job: Job, shift: Shift) -> Array:
    """W′ − W [m, n] float32, in the coordinates of the file."""
    weight = decoded(job.aligned.weight, job.aligned.transforms)
    moved = weight + weight @ shift.inputs
    moved = moved if shift.stream is None else moved + shift.stream
    return np.ascontiguousarray(undone(moved.astype(np.float32), job.aligned.transforms)) - job.aligned.weight
