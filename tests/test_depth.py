"""Depth: which block and kind a tensor is of, and means of a figure over them."""

from __future__ import annotations

from trueaxis.depth import Curve, block_of, by_depth, kinds
from trueaxis.types import TensorReport


def row(name: str, shape: tuple[int, ...], bits: float, coordinates: str = "identity") -> TensorReport:
    return TensorReport(name, shape, coordinates, bits, 0.0, 0.0, 0.0)


def test_numbers_of_blocks_and_short_kinds() -> None:
    names = ["layers.10.mlp.experts.3.up.weight", "layers.2.norm.weight", "model.embed_2.weight", "1.weight"]
    assert [block_of(name) for name in names] == [10, 2, None, None]
    assert list(kinds(names).values()) == ["mlp.experts.*.up", "norm", "model.embed_2", "1"]


def test_stacks_apart_keep_their_names() -> None:
    names = ["encoder.layers.0.k.weight", "decoder.layers.0.k.weight"]
    assert list(kinds(names).values()) == ["encoder.layers.*.k", "decoder.layers.*.k"]


def test_curves_are_means_over_weights_and_leave_out_what_is_exact_or_in_no_block() -> None:
    rows = [
        row("a.1.e.0.k.weight", (4, 2), 3.0),
        row("a.1.e.1.k.weight", (2, 1), 8.0),
        row("a.0.e.0.k.weight", (2, 2), 2.0),
        row("a.0.norm.weight", (2,), 16.0, "exact"),
        row("head.weight", (9, 2), 5.0),
    ]
    assert by_depth(rows, lambda one: one.bits_per_weight) == [Curve("e.*.k", (0, 1), (2.0, 4.0))]
