"""Experts: the matrices of a mixture, whether a checkpoint keeps them apart or fused in 3-D tensors.

    …experts.7.gate_proj.weight [m, n]      one stored tensor per matrix
    …experts.gate_up_proj [experts, m, n]   a slice per expert

Running models have them fused: `gate_up_proj` holds the rows of gate, then those of up. All experts of a layer read
one space, each of them other tokens of it: expert e has the spaces EXPERTS.e.in and EXPERTS.e.hidden, and the layer
the pools EXPERTS.in and EXPERTS.hidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from trueaxis.model.checkpoint import Checkpoint
from trueaxis.types import Place, Weight

_APART = re.compile(
    r"^(?P<experts>.+\.experts)\.(?P<index>\d+)\.(?P<part>gate_proj|up_proj|down_proj|w1|w2|w3)\.weight$"
)
_FUSED = re.compile(r"^(?P<experts>.+\.experts)\.(?P<part>gate_up_proj|down_proj)(\.weight)?$")


class _Part(NamedTuple):
    writes: str
    parameter: str
    rows: tuple[int, int]


_GATE, _UP = _Part("gate", "gate_up_proj", (0, 2)), _Part("up", "gate_up_proj", (1, 2))
_DOWN = _Part("residual", "down_proj", (0, 1))
_PARTS = {
    "gate_proj": _GATE, "w1": _GATE, "up_proj": _UP, "w3": _UP, "down_proj": _DOWN, "w2": _DOWN,
    "gate_up_proj": _Part("fused:gate,up", "gate_up_proj", (0, 1)),
}  # fmt: skip


class ExpertTensor(NamedTuple):
    """A stored tensor that belongs to experts: all of them, or the one with this index."""

    name: str
    part: str
    index: int | None


def expert_tensors(checkpoint: Checkpoint) -> dict[str, list[ExpertTensor]]:
    """Tensors of experts by the module that holds them, in the order of experts."""
    found: dict[str, list[ExpertTensor]] = {}
    for name, entry in checkpoint.entries.items():
        if (match := _APART.match(name)) and len(entry.shape) == 2:
            found.setdefault(match["experts"], []).append(ExpertTensor(name, match["part"], int(match["index"])))
        elif (match := _FUSED.match(name)) and len(entry.shape) == 3 and 0 not in entry.shape:
            found.setdefault(match["experts"], []).append(ExpertTensor(name, match["part"], None))
    for tensors in found.values():
        # Matrices of one space side by side: they share a factorization.
        tensors.sort(key=lambda tensor: (-1 if tensor.index is None else tensor.index, _PARTS[tensor.part].parameter))
    return found


def missing_tensors(tensors: Sequence[ExpertTensor]) -> Iterator[str]:
    """Yield the names that the experts of one layer lack: each has the parts that any of them has."""
    stored = {tensor.name for tensor in tensors}
    apart = [tensor for tensor in tensors if tensor.index is not None]
    count = max((tensor.index or 0 for tensor in apart), default=-1) + 1
    for part in sorted({tensor.part for tensor in apart}):
        module = apart[0].name.split(".experts.")[0]
        for index in range(count):
            name = f"{module}.experts.{index}.{part}.weight"
            if name not in stored:
                yield name


def expert_weights(
    checkpoint: Checkpoint,
    tensor: ExpertTensor,
    module: str,
    runs_as: str | None,
    *,
    norm: str | None = None,
    norm_offset: float = 0.0,
    transposed: bool = False,
) -> Iterator[Weight]:
    """Yield the matrices of one stored tensor.

    Args:
        checkpoint: Where it is.
        tensor: Of that checkpoint.
        module: Name of the experts, for spaces and groups.
        runs_as: Name of the module in the running model; None where calibration cannot listen to it.
        norm: Norm whose output they read.
        norm_offset: Its offset.
        transposed: Whether the running model and a fused tensor hold [n, m].
    """
    entry = checkpoint.entries[tensor.name]
    part = _PARTS[tensor.part]
    side = "hidden" if part is _DOWN else "in"
    turned = transposed and tensor.index is None
    shape = (entry.shape[-1], entry.shape[-2]) if turned else entry.shape[-2:]
    for index in range(entry.shape[0]) if tensor.index is None else (tensor.index,):
        yield Weight(
            f"{tensor.name}[{index}]" if tensor.index is None else tensor.name,
            tuple(shape),
            entry.dtype,
            "linear",
            space=None if runs_as is None else f"{module}.{index}.{side}",
            norm=None if part is _DOWN else norm,
            norm_offset=norm_offset,
            stored=tensor.name,
            slice=index if tensor.index is None else None,
            transposed=turned,
            place=None if runs_as is None else Place(f"{runs_as}.{part.parameter}", index, part.rows, transposed),
            writes=part.writes,
            pool=None if runs_as is None else f"{module}.{side}",
            group=f"{module}.{tensor.part}",
        )
