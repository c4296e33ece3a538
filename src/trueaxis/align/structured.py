"""Structured: transforms that are stored with a matrix, and kept only where they pay for their own bytes.

    plan ─▶ factor after factor that saves most by estimate ─▶ matrix and metric turned ─▶ planned again
         └──────────── coded both ways at one c ─────────────▶ kept if rate + λ·D falls by more than its record

What is quantized sees the transform as it decodes: coarse angles cost optimality, not accuracy. Symmetries of the
network have had their turn by then, at no bytes at all; what is left to pay for is structure of single matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trueaxis.align.described import Described, turned
from trueaxis.align.factors import CANDIDATES, Candidate
from trueaxis.parallel import ordered_map
from trueaxis.passes import LEAST_BITS, MARGIN, Job, coded_bits
from trueaxis.quantize.budget import first_c
from trueaxis.quantize.plan import Plan
from trueaxis.record import USUAL_FRAME
from trueaxis.runtime.orthogonal import Mirrors, Orthogonal
from trueaxis.runtime.transforms import undone
from trueaxis.stages import NoTransform, Structured
from trueaxis.types import Aligned, Array, Metric, Stored, Weight

MOST = 4  # factors of one matrix
WORTH_MORE = 0.5  # of what the best so far saves: kinds that save less are not tried further
SMALLEST = 2  # columns that can turn
Planned = Callable[[Weight, Array, Metric], Plan]
"""(matrix, W in the coordinates of the file, metric there) ─▶ its plan."""


def unturned(stage: NoTransform, jobs: Sequence[Job], planned: Planned, target_bits: float, threads: int) -> list[Job]:
    """Matrices in the coordinates that alignment left them in."""
    return list(jobs)


def structured(stage: Structured, jobs: Sequence[Job], planned: Planned, target_bits: float, threads: int) -> list[Job]:
    """Matrices with the transforms of their columns that pay.

    Args:
        stage: Of the recipe.
        jobs: All matrices, planned.
        planned: Plans those that turn once more.
        target_bits: Of all of them together; sets the steps by which choices are judged.
        threads: Matrices side by side.
    """
    c = first_c([job.plan for job in jobs], target_bits)
    return ordered_map(lambda job: _turned_job(job, planned, c), jobs, threads)


TURNERS: dict[type, Callable[[Any, Sequence[Job], Planned, float, int], list[Job]]] = {
    NoTransform: unturned,
    Structured: structured,
}


def found_for(described: Described, candidates: dict[str, Candidate] = CANDIDATES) -> list[tuple[str, Orthogonal]]:
    """Factors in the order of their records: of one kind while they pay by estimate, then of planes.

    Args:
        described: The matrix.
        candidates: Kinds of factors; the one with which all saves most wins.
    """
    best: list[tuple[str, Orthogonal]] = []
    most = 0.0
    for name in candidates if described.most > LEAST_BITS else ():
        found, then = _extended([], described, name, candidates[name])
        saved = _net_bits(described, then, found)
        if name != "planes" and "planes" in candidates and saved > WORTH_MORE * most:
            found, then = _extended(found, then, "planes", candidates["planes"])
            saved = _net_bits(described, then, found)
        if saved > most:
            best, most = found, saved
    return joined(best)


def joined(found: Sequence[tuple[str, Orthogonal]]) -> list[tuple[str, Orthogonal]]:
    """The same factors in fewer records: one for mirrors that follow each other."""
    records: list[tuple[str, Orthogonal]] = []
    for name, factor in found:
        before = records[-1][1] if records else None
        if isinstance(factor, Mirrors) and isinstance(before, Mirrors) and factor.axis == before.axis:
            # undone from the last vector to the first, so what came later stands before
            factor = Mirrors(factor.axis, np.concatenate([factor.vectors, before.vectors]))
            records.pop()
        records.append((name, factor))
    return records


def _net_bits(described: Described, then: Described, found: Sequence[tuple[str, Orthogonal]]) -> float:
    return described.bits - then.bits - paid_bits([transform for _, transform in found])


def _extended(
    found: list[tuple[str, Orthogonal]], described: Described, name: str, candidate: Candidate
) -> tuple[list[tuple[str, Orthogonal]], Described]:
    """Factors with more of one kind, as long as each saves more than it costs; and the matrix under all of them."""
    while len(found) < MOST:
        best, then, most = None, described, 0.0
        for factors in candidate(described):
            moved = described
            for factor in factors:
                moved = moved.moved(factor)
            saved = described.bits - moved.bits - paid_bits(factors) * (1 + MARGIN) - LEAST_BITS
            if saved > most:
                best, then, most = factors, moved, saved
        if best is None:
            break
        found, described = [*found, *((name, factor) for factor in best)], then
    return found, described


def paid_bits(transforms: Sequence[Orthogonal]) -> float:
    """Bits of the records."""
    return 8.0 * sum(len(transform.payload) + USUAL_FRAME for transform in transforms)


def _turned_job(job: Job, planned: Planned, c: float) -> Job:
    """The job under its transforms, if they pay when it is coded both ways."""
    if job.coded is not job.weight or job.plan.weight.shape[1] < SMALLEST or job.plan.row_steps.shape[1] > 1:
        return job  # a factor of a product, or a plan of groups
    found = found_for(Described.planned(job.plan, c))
    if not found:
        return job
    transforms = [transform for _, transform in found]
    cost = turned_metric(job.plan.metric, transforms)
    wide = undone(job.plan.weight.astype(np.float64), transforms)  # rounded once, not from one to the next
    weight = np.ascontiguousarray(wide.astype(job.plan.weight.dtype))
    plan = planned(replace(job.coded, space=None), weight, cost)
    paid = paid_bits(transforms)
    saved = coded_bits(job.plan, c) - coded_bits(plan, c) - paid
    if saved < LEAST_BITS + MARGIN * paid:
        return job
    aligned = Aligned(
        "+".join([job.aligned.coordinates, *(name for name, _ in found)]),
        plan.weight,
        turned_metric(job.aligned.metric, transforms),
        (*job.aligned.transforms, *transforms),
    )
    told = Stored(job.coded.name, " · ".join(name for name, _ in found), round(paid), float(saved))
    return replace(job, aligned=aligned, plan=plan, turned=told)


def turned_metric(metric: Metric, transforms: Sequence[Orthogonal]) -> Metric:
    """The same D for errors of what is coded: H′ = T H Tᵀ."""

    def moved(moment: Array | None) -> Array | None:
        for transform in transforms:
            moment = None if moment is None else turned(moment, transform)
        return moment

    return replace(
        metric, second_moment=moved(metric.second_moment), embedding_moment=moved(metric.embedding_moment)
    )  # fmt: skip
