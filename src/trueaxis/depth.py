"""Depth: what tensors cost, by kind and by block, so that figures of any model have few curves.

"model.layers.3.mlp.up_proj.weight" ─▶ kind "mlp.up_proj", block 3      "lm_head.weight" ─▶ "lm_head", no block
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from trueaxis.types import TensorReport

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Curve:
    """A figure of one kind of tensor: `values` at `blocks`, means over the weights where a block has several."""

    kind: str
    blocks: tuple[int, ...]
    values: tuple[float, ...]


def block_of(name: str) -> int | None:
    """Number of the block that a tensor is in, or None.

    Example:
        >>> block_of("model.layers.3.mlp.experts.7.up_proj.weight"), block_of("lm_head.weight")
        (3, None)
    """
    found = NUMBER.search(name)
    return int(found[0]) if found else None


def name_in_block(name: str) -> str:
    """What a tensor is called within its block.

    Example:
        >>> name_in_block("model.layers.3.mlp.experts.7.up_proj.weight")
        'mlp.experts.7.up_proj'
    """
    found = NUMBER.search(name)
    return (name[found.end() + 1 :] if found else name).removesuffix(".weight") or name


def kinds(names: Sequence[str]) -> dict[str, str]:
    """Short kind of every tensor: all numbers a star, what all tensors of blocks begin with left out.

    Example:
        >>> kinds(["h.0.mlp.up.weight", "h.1.attn.k.weight", "head.weight"])
        {'h.0.mlp.up.weight': 'mlp.up', 'h.1.attn.k.weight': 'attn.k', 'head.weight': 'head'}
    """
    long = {name: NUMBER.sub("*", name).removesuffix(".weight") for name in names}
    starts = {one[: one.index("*") + 2] for name, one in long.items() if block_of(name) is not None}
    start = starts.pop() if len(starts) == 1 else ""
    return {name: one.removeprefix(start) or one for name, one in long.items()}


def by_depth(rows: Sequence[TensorReport], figure: Callable[[TensorReport], float]) -> list[Curve]:
    """A figure of quantized tensors in blocks, a curve per kind, in the order of the file.

    Args:
        rows: Of a report.
        figure: Of a row.
    """
    names = kinds([row.name for row in rows])
    sums: dict[str, dict[int, tuple[float, int]]] = {}
    for row in quantized(rows):
        if (block := block_of(row.name)) is not None:
            cells, size = sums.setdefault(names[row.name], {}), prod(row.shape)
            total, count = cells.get(block, (0.0, 0))
            cells[block] = (total + figure(row) * size, count + size)
    return [
        Curve(kind, tuple(sorted(cells)), tuple(cells[block][0] / cells[block][1] for block in sorted(cells)))
        for kind, cells in sums.items()
    ]


def quantized(rows: Sequence[TensorReport]) -> list[TensorReport]:
    """Those that are not kept bit for bit."""
    return [row for row in rows if row.coordinates != "exact"]
