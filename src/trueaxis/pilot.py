"""Pilot: passes over some rows of every matrix, which teach the tables and find c before a matrix is quantized whole.

jobs ─▶ every so many rows of each ─▶ passes at a fraction of the cost, their files' sizes estimated ─▶ c, tables

Given its plan a row is quantized as if it were alone, so rows spread evenly over a matrix stand for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trueaxis import _core
from trueaxis.assemble import count_symbols
from trueaxis.entropy.model import Tables, fit_tables, pack_tables
from trueaxis.entropy.stream import pack_residual, segment
from trueaxis.parallel import ordered_map
from trueaxis.passes import Job, learned_tables
from trueaxis.progress import Progress
from trueaxis.quantize.budget import AIM, OCTAVE_BITS
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.outcome import Residuals
from trueaxis.stages import Coder
from trueaxis.types import Array, Quantized

ENOUGH_WEIGHTS = 1 << 23  # to know a model's tables and its size to 0.1 %
FEWEST_ROWS = 128
OPTIMISM_BITS = 1.0  # that a column saves because its scale was measured on the very rows it codes


@dataclass(frozen=True, eq=False)
class Trial:
    """A pass of the pilot: c, the tables it taught, and the size of the whole file, as estimated."""

    c: float
    tables: Tables
    file_bytes: int

    def closer(self, target: int, weights: int) -> float:
        """c at which the file would be where the search aims."""
        return self.c * 2.0 ** ((self.file_bytes - target * AIM) * 8 / (OCTAVE_BITS * weights))


def sample(jobs: Sequence[Job]) -> list[Job]:
    """Jobs of evenly spread rows; nothing where a model is too small for a sample, or refits what it has rounded."""
    stride = sum(job.coded.size for job in jobs) // ENOUGH_WEIGHTS
    if stride < 2 or any(job.plan.refit != "none" for job in jobs):
        return []
    strides = [max(1, min(stride, job.plan.weight.shape[0] // FEWEST_ROWS)) for job in jobs]
    return [replace(job, plan=job.plan.sampled(stride)) for job, stride in zip(jobs, strides, strict=True)]


class Pilot:
    """Call it with c for a trial at that c.

    Args:
        jobs: From `sample`.
        tables: What to quantize with first.
        learning_passes: Passes after which the tables that quantize stay as they are.
        stage: The recipe's coder.
        fixed: Bytes that belong to no matrix.
        threads, progress: As in `Passes`.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        tables: Tables,
        learning_passes: int,
        stage: Coder,
        fixed: int,
        threads: int,
        progress: Progress,
    ) -> None:
        self._jobs, self._tables, self._learning_passes = jobs, tables, learning_passes
        self._stage, self._fixed, self._threads, self._progress = stage, fixed, threads, progress
        self._made = 0

    def __call__(self, c: float) -> Trial:
        """Every sample with its steps times c; tables are fitted to what the whole matrices would hold."""
        tables = self._tables

        def rounded(job: Job) -> tuple[Quantized, Residuals]:
            outcome = quantize(job.plan, c, tables)
            return outcome.quantized, outcome.residuals

        found = ordered_map(rounded, self._jobs, self._threads)
        matrices = [matrix for matrix, _ in found]
        shares = np.array([job.plan.all_rows / job.plan.weight.shape[0] for job in self._jobs])
        counts = np.stack([count_symbols([matrix]) for matrix in matrices])
        fitted = fit_tables(np.rint(np.tensordot(shares, counts, 1)).astype(np.uint64), tables.offsets)
        bits = [_core.stream_bits(fitted.coder, [segment(matrix)]) for matrix in matrices]
        side = [self._side_bytes(job, matrix, fitted) for job, matrix in zip(self._jobs, matrices, strict=True)]
        coded = float(shares @ np.array(bits)) + self._unseen_bits(shares)
        self._made += 1
        learned = learned_tables(fitted, [residuals for _, residuals in found])
        if self._made <= self._learning_passes:
            self._tables = learned
        self._progress("pilot", self._made, self._made + 1)
        return Trial(c, learned, round(self._fixed + len(pack_tables(fitted)) + sum(side) + coded / 8))

    def _unseen_bits(self, shares: Array) -> float:
        """What whole matrices take beyond their samples' shares: their scales fit less well, and lanes are flushed."""
        columns = np.array([job.plan.weight.shape[1] for job in self._jobs])
        weights = sum(job.coded.size for job in self._jobs)
        return OPTIMISM_BITS * float(columns @ (shares - 1)) + weights * self._stage.lanes * 32 / self._stage.chain

    def _side_bytes(self, job: Job, matrix: Quantized, tables: Tables) -> float:
        """Of the whole record without its streams: codes of columns are all there, of rows a share if they vary."""
        found = len(pack_residual(matrix, tables, self._stage.lanes, self._stage.chain, shared=0))
        columns, rows = matrix.indices.shape
        varied = np.ptp(matrix.grid.row_codes) or matrix.contexts.row_codes.any()
        return found * ((columns + job.plan.all_rows) / (columns + rows) if varied else 1.0)
