"""Passes: quantize every matrix at one c, fit the tables, assemble the file; what a pass counts teaches the next.

jobs, c, tables ─▶ indices of every matrix ─▶ fitted tables ─▶ files, and their real size
            └──────────── code lengths, centroids ◀──┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trueaxis.align.estimate import SLOPE
from trueaxis.assemble import Assembled, count_symbols
from trueaxis.engine import LOCAL, Local
from trueaxis.entropy.model import Tables, fit_tables, offsets_from
from trueaxis.entropy.pooling import POOLINGS
from trueaxis.entropy.stream import pack_residual
from trueaxis.journal import NO_JOURNAL, NoJournal
from trueaxis.metric.metric import distance
from trueaxis.parallel import ordered_map
from trueaxis.progress import Progress
from trueaxis.quantize.feedback import quantize
from trueaxis.quantize.outcome import Residuals, packed, unpacked
from trueaxis.quantize.plan import Plan
from trueaxis.quantize.start import settled_tables
from trueaxis.scratch import NO_SCRATCH, NoScratch
from trueaxis.stages import EFFORTS, Coder, Effort, Rans
from trueaxis.types import Aligned, Array, Function, Metric, Quantized, Stored, Weight

JUDGE = EFFORTS["scalar"].trellis
# What a record beside the indices, of a transform or of a function, must save beyond its own bits.
MARGIN = 0.25  # of those bits
LEAST_BITS = 128.0
Write = Callable[[Sequence[tuple[Weight, Quantized]], Tables], Assembled]
"""(matrices, their tables) ─▶ the files."""


@dataclass(frozen=True, eq=False)
class Job:
    """One matrix, or a factor of one, on its way through the stages.

    Attributes:
        weight: The matrix.
        metric: Of the matrix, in the original coordinates.
        aligned: The matrix in its coordinates.
        plan: Of what is coded.
        coded: What is coded: the matrix or a factor.
        function: Payload of the record of what is added to its residual, b"" for nothing.
        told: What is known of that, for the report.
        turned: What is known of transforms of its own, for the report.
    """

    weight: Weight
    metric: Metric
    aligned: Aligned
    plan: Plan
    coded: Weight
    function: bytes = b""
    told: Function | None = None
    turned: Stored | None = None


def first_tables(jobs: Sequence[Job], effort: Effort) -> Tables:
    """What to quantize with while nothing was learned of the model."""
    return settled_tables(effort.trellis, max((job.plan.rate_weight for job in jobs), default=0.0))


def learned_tables(fitted: Tables, residuals: Sequence[Residuals]) -> Tables:
    """Tables fitted to a pass, with the centroids of what it rounded."""
    return Tables(fitted.frequencies, fitted.escape_orders, offsets_from(residuals))


def coded_bits(plan: Plan, c: float) -> float:
    """A pass of one matrix alone, for choices between two forms of it.

    Args:
        plan: Of the matrix in one form.
        c: Of its steps.

    Returns:
        Bits of its indices by the coder, and its distortion at the slope of c.
    """
    bits, errors = coded_alone(plan, c)
    return bits + SLOPE * plan.metric.sensitivity * distance(errors, plan.metric) / c**2


def coded_alone(plan: Plan, c: float) -> tuple[float, Array]:
    """Bits of a matrix's indices by the coder, and what it decodes to less what it is [m, n]; what quantizes it is the
    scalar quantizer, with tables of its own."""
    plan = replace(plan, trellis=JUDGE)
    tables = settled_tables(JUDGE, plan.rate_weight)
    outcome = quantize(plan, c, tables)
    fitted = fit_tables(count_symbols([outcome.quantized]), tables.offsets)
    payload = pack_residual(outcome.quantized, fitted, Rans().lanes, Rans().chain)
    return 8.0 * len(payload), outcome.errors


class Passes:
    """Call it with c for the file at that c.

    Args:
        jobs: All matrices of the model.
        tables: What to quantize with first.
        learning_passes: Passes after which the tables that quantize stay as they are.
        stage: The recipe's coder.
        write: Makes the files.
        threads: Workers; the result does not depend on them.
        progress: Told of every pass.
        journal: Knows matrices of passes that an earlier run made.
        name: Of these passes there.
        scratch: Where indices are held.
        engine: Where matrices are rounded; the result does not depend on it.

    Attributes:
        steps: Size of each file → its c.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        tables: Tables,
        learning_passes: int,
        stage: Coder,
        write: Write,
        threads: int,
        progress: Progress,
        journal: NoJournal = NO_JOURNAL,
        name: str = "",
        scratch: NoScratch = NO_SCRATCH,
        engine: Local = LOCAL,
    ) -> None:
        self._engine, self._at_once = engine, engine.side_by_side(threads)
        self._journal, self._name, self._scratch = journal, name, scratch
        self.steps: dict[int, float] = {}
        self._jobs, self._tables, self._learning_passes = jobs, tables, learning_passes
        self._stage, self._write = stage, write
        self._threads, self._progress, self._made = threads, progress, 0

    def __call__(self, c: float) -> Assembled:
        """Every matrix with its steps times c, coded with tables of its own."""
        tables, pool = self._tables, POOLINGS[type(self._stage)]

        def rounded(job: Job) -> tuple[Quantized, Residuals]:
            key = f"pass {self._name} {self._made} {c!r} {job.coded.name}"
            if (known := self._journal.recall(key)) is not None:
                quantized, residuals = unpacked(*known)
            else:
                outcome = self._engine.call(quantize, job.plan, c, tables)
                quantized, residuals = outcome.quantized, outcome.residuals
                self._journal.keep(key, *packed(quantized, residuals))
            quantized = replace(quantized, indices=self._scratch.hold(quantized.indices))
            return pool(self._stage, job.coded, quantized), residuals

        found = ordered_map(rounded, self._jobs, self._at_once)
        matrices = [(job.coded, matrix) for job, (matrix, _) in zip(self._jobs, found, strict=True)]
        counts = ordered_map(lambda pair: count_symbols([pair[1]]), matrices, self._threads)
        fitted = fit_tables(sum(counts, start=count_symbols([])), tables.offsets)
        result = self._write(matrices, fitted)
        self.steps[result.file_bytes] = c
        self._made += 1
        if self._made <= self._learning_passes:
            self._tables = learned_tables(fitted, [residuals for _, residuals in found])
        self._progress("search", self._made, self._made + 1)
        return result
