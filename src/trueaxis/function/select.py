"""Select: for every matrix the f of least total description length, or none.

    matrices of one kind over depth ─▶ every candidate: bits of f + bits of W − f at the slope in force ─▶ the least
                                       └────────── W and W − f coded at one c ─▶ f stays if its matrices pay for it

A choice must save a margin beyond its own bits, so that what chance puts into a matrix is left to the residual; by
estimate first, which is hopeful where the coder knows the sizes of rows and columns anyway, then by the coder itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trueaxis.function.member import Candidate, Fit, Member
from trueaxis.function.products import products
from trueaxis.function.shared import shared
from trueaxis.function.splines import means, splines
from trueaxis.passes import LEAST_BITS, MARGIN, Job, coded_bits
from trueaxis.quantize.budget import first_c
from trueaxis.runtime.terms import pack_term
from trueaxis.stages import LowRank, NoFunction, Selected
from trueaxis.types import Function

CANDIDATES: Mapping[str, Candidate] = {
    "means": means, "splines": splines, "product": products, "shared": shared,
}  # fmt: skip


def unchanged(stage: NoFunction | LowRank, jobs: Sequence[Job], target_bits: float) -> list[Job]:
    """Matrices as they are."""
    return list(jobs)


def selected(stage: Selected, jobs: Sequence[Job], target_bits: float) -> list[Job]:
    """What is quantized is W − f from here on, f as it decodes.

    Args:
        stage: Of the recipe.
        jobs: All matrices, planned.
        target_bits: Of all of them together; sets the steps by which choices are judged.
    """
    c = first_c([job.plan for job in jobs], target_bits)
    members = [Member.planned(job.coded.name, job.plan, c) for job in jobs if job.coded.slice is None]
    chosen, known = select(members), {job.coded.name: job for job in jobs}
    split = {name: split_job(known[name], fit, c) for name, fit in chosen.items()}
    kept: dict[str, Job] = {}
    for names in dependent(members, chosen):
        saved = sum(told.estimated_saved_bits for name in names if (told := split[name].told))
        if saved > _margin({name: chosen[name] for name in names}):
            kept |= {name: split[name] for name in names}
    return [kept.get(job.coded.name, job) for job in jobs]


def split_job(job: Job, fit: Fit, c: float) -> Job:
    """The job of W − f, and what f saves when W and W − f are coded at c."""
    plan = replace(job.plan, weight=np.ascontiguousarray(job.plan.weight - fit.mean))
    saved = coded_bits(job.plan, c) - coded_bits(plan, c) - fit.function_bits
    told = Function(job.coded.name, fit.candidate, round(fit.function_bits), saved)
    return replace(job, plan=plan, function=pack_term(fit.term), told=told)


def dependent(members: Sequence[Member], chosen: Mapping[str, Fit]) -> list[list[str]]:
    """Names of matrices that have their f together or not at all: those that share one, and every other by itself."""
    found: list[list[str]] = []
    for kind in kinds_of(members):
        names = [member.name for member in kind if member.name in chosen]
        together = any(chosen[name].candidate == "shared" for name in names)
        found += [names] if together else [[name] for name in names]
    return found


SELECTORS = {NoFunction: unchanged, LowRank: unchanged, Selected: selected}


def kinds_of(members: Sequence[Member]) -> list[list[Member]]:
    """Members of the same name but for numbers, and of the same shape."""
    found: dict[tuple[str, tuple[int, ...]], list[Member]] = {}
    for member in members:
        found.setdefault((re.sub(r"\d+", "#", member.name), member.matrix.shape), []).append(member)
    return list(found.values())


def saved_bits(member: Member, fit: Fit) -> float:
    """Estimated bits that a fit saves."""
    return member.bits - fit.bits


def select(members: Sequence[Member], candidates: Mapping[str, Candidate] = CANDIDATES) -> dict[str, Fit]:
    """Name of a matrix ─▶ the fit that is chosen for it; matrices that stay whole are left out."""
    chosen: dict[str, Fit] = {}
    for kind in kinds_of(members):
        chosen |= _of_kind(kind, candidates)
    return chosen


def _of_kind(kind: Sequence[Member], candidates: Mapping[str, Candidate]) -> dict[str, Fit]:
    """Each its own best fit, or all one that depends on the others."""
    alone: dict[str, Fit] = {}
    together: dict[str, Fit] = {}
    for candidate in candidates.values():
        fits = dict(zip((member.name for member in kind), candidate(kind), strict=False))
        if candidate is shared:
            together = fits if _saved(kind, fits) > _margin(fits) else {}
            continue
        for member in kind:
            known = alone.get(member.name)
            if saved_bits(member, fits[member.name]) > max(
                _margin({member.name: fits[member.name]}), 0 if known is None else saved_bits(member, known)
            ):
                alone[member.name] = fits[member.name]
    return together if _saved(kind, together) > _saved(kind, alone) else alone


def _saved(kind: Sequence[Member], fits: Mapping[str, Fit]) -> float:
    return sum(saved_bits(member, fits[member.name]) for member in kind if member.name in fits)


def _margin(fits: Mapping[str, Fit]) -> float:
    return sum(LEAST_BITS + MARGIN * fit.function_bits for fit in fits.values())
