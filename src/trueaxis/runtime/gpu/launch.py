"""Launches: a plan and coded streams to values, with whatever is damaged told by stream.

plan, coded ─▶ decode_streams ─▶ scratch ─▶ place_columns ─▶ tensors      statuses ─▶ message
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trueaxis.runtime.gpu.kernels import INTERPRETED, decode_streams, place_columns
from trueaxis.runtime.gpu.plan import TILE, Coded, Plan

MOST_EVEN = 8  # values of bfloat16 in the widest store
DAMAGE = (
    "a lane starts below its floor",
    "a class without a table occurs",
    "an escape is out of range",
    "escapes are truncated",
    "truncated",
    "a lane does not end where it began",
    "words are left over",
    "escapes are longer than their symbols",
)
"""What each bit of a status says."""


def decode(plan: Plan, coded: Coded, scratch: torch.Tensor, statuses: torch.Tensor) -> None:
    """Launches the decoding of all streams of a plan.

    Args:
        plan: What to decode.
        coded: Its bytes.
        scratch: int64 for bfloat16, four values each, else float32; at least `plan.scratch_entries` values.
        statuses: int32 [streams], written.
    """
    decode_streams[(plan.streams.shape[0],)](
        coded.words, coded.escapes, plan.streams, plan.strips, plan.column_codes, plan.column_steps, plan.groups,
        plan.row_codes, plan.row_steps, plan.tables.symbols, plan.info, plan.tables.orders,
        scratch, statuses,
        LARGEST=plan.tables.largest, CLASSES=plan.tables.classes, WIDE=plan.wide, WARP=not INTERPRETED,
        num_warps=1, num_stages=1, enable_fp_fusion=False,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Placed:
    """What the second launch is told.

    Attributes:
        tiles, matrices: As `Plan.placing` makes them.
        transposed: Whether transposes are written.
        even: A power of two that divides rows of what is written and its addresses, in values.
    """

    tiles: torch.Tensor
    matrices: torch.Tensor
    transposed: bool
    even: int

    @classmethod
    def on(cls, plan: Plan, chosen: Sequence[tuple[int, torch.Tensor]], transposed: bool) -> Placed:
        """For matrices of a plan, by number, and where each goes: contiguous [rows, columns], or its transpose."""
        even = MOST_EVEN
        for number, out in chosen:
            inner = plan.matrices[number].rows if transposed else plan.matrices[number].columns
            even = math.gcd(even, inner, out.data_ptr() // out.element_size())
        tables = plan.placing([number for number, _ in chosen], [out.data_ptr() for _, out in chosen])
        return cls(*tables, transposed, even)


def place(plan: Plan, scratch: torch.Tensor, placed: Placed) -> None:
    """Launches the placing of matrices that were decoded into `scratch`."""
    place_columns[(placed.tiles.numel(),)](
        scratch.view(torch.float32 if plan.wide else torch.int16), placed.tiles, placed.matrices, plan.places,
        WIDE=plan.wide, TRANSPOSED=placed.transposed, EVEN=placed.even, BLOCK=TILE, num_warps=4,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip


def new_scratch(plan: Plan) -> torch.Tensor:
    """Memory for what a plan decodes."""
    if plan.wide:
        return torch.empty(plan.scratch_entries, dtype=torch.float32, device=plan.device)
    return torch.empty(plan.scratch_entries // 4, dtype=torch.int64, device=plan.device)


def told(status: int) -> str:
    """What a status says first."""
    return next(text for bit, text in enumerate(DAMAGE) if status >> bit & 1)
