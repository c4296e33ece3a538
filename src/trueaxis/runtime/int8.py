"""Int8: linear layers on integers of the fine grid, for a model that takes about half the memory of bfloat16.

    W ≈ row step · u · column step          u = 2k or 2k − sgn k, so that parities of the trellis cost nothing
    y = row step · ((column step · x) uᵀ)   |u| > 127 is clipped, and what is missing is kept sparsely

Reconstruction offsets are left out, the one thing besides rounding that changes results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from trueaxis.quantize.grid import steps
from trueaxis.runtime.deferred import Decoded, Deferred, Source
from trueaxis.runtime.held import HeldDecoder
from trueaxis.types import TrueaxisError

LARGEST = 127
MOST_SPARSE = 0.02  # of the entries: beyond, a matrix of bfloat16 is smaller or quicker
PACKED = 32  # extents that torch's product of 8-bit weights takes are multiples of this


@dataclass(frozen=True)
class Int8Report:
    """What became of the matrices.

    Attributes:
        packed: Sparse entries of every weight in 8 bits, by name.
        dense: Why any other one is not, by name.
    """

    packed: dict[str, int] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)


class Int8Linear(nn.Module):
    """y = W x + b with W in 8 bits.

    Args:
        fine: u, integers [m, n] in float32.
        column_steps, row_steps: float32 [n], [m].
        bias: Of the layer that this one replaces.
    """

    indices: torch.Tensor
    sparse_rows: torch.Tensor
    sparse_columns: torch.Tensor
    sparse_values: torch.Tensor
    column_steps: torch.Tensor
    row_steps: torch.Tensor

    def __init__(
        self, fine: torch.Tensor, column_steps: torch.Tensor, row_steps: torch.Tensor, bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = fine.shape
        clipped = fine.clamp(-LARGEST, LARGEST)
        rows, columns = torch.nonzero(fine != clipped, as_tuple=True)
        self.register_buffer("indices", clipped.to(torch.int8))
        self.register_buffer("sparse_rows", rows)
        self.register_buffer("sparse_columns", columns)
        self.register_buffer("sparse_values", (fine - clipped)[rows, columns])
        self.register_buffer("column_steps", column_steps)
        self.register_buffer("row_steps", row_steps)
        self.bias = bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[…, n] to […, m], in the dtype of the inputs."""
        scaled = (inputs * self.column_steps).to(inputs.dtype).reshape(-1, self.in_features)
        found = product(scaled, self.indices)
        if self.sparse_values.numel():
            found.index_add_(1, self.sparse_rows, scaled[:, self.sparse_columns] * self.sparse_values.to(scaled.dtype))
        found = (found * self.row_steps).to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)
        return found if self.bias is None else found + self.bias

    def _save_to_state_dict(self, *_: Any) -> None:
        raise TrueaxisError("8-bit weights are not saved; load with resident='dense', or run 'trueaxis unpack'")

    def train(self, mode: bool = True) -> Int8Linear:
        """Evaluation mode only."""
        if mode:
            raise TrueaxisError("8-bit weights serve inference; load with resident='dense' to train")
        return super().train(mode)

    def extra_repr(self) -> str:
        """Extents, as a linear layer shows them."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def product(inputs: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """x uᵀ for x [T, n] and u int8 [m, n]: torch's kernel where it takes them, else a product in the dtype of x.

    Example:
        >>> product(torch.ones(1, 2), torch.tensor([[3, 4]], dtype=torch.int8)).tolist()
        [[7.0]]
    """
    rows, columns = indices.shape
    known = inputs.device.type == "cpu" or (inputs.device.type == "cuda" and inputs.dtype == torch.bfloat16)
    if known and rows % PACKED == 0 and columns % PACKED == 0:
        return torch.ops.aten._weight_int8pack_mm(inputs.contiguous(), indices, inputs.new_ones(rows))
    return nn.functional.linear(inputs, indices.to(inputs.dtype))


def settle_int8(model: nn.Module, decoder: HeldDecoder, dtype: torch.dtype) -> Int8Report:
    """Replaces linear layers whose weight is one plain matrix of the file; decodes all other deferred weights."""
    report = Int8Report()
    uses: dict[int, int] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            if isinstance(weight, Deferred):
                uses[id(weight.origin)] = uses.get(id(weight.origin), 0) + 1
    decoded = Decoded(lambda source: decoder.tensor(source, dtype))
    for module in model.modules():  # biases before the layers that take them over
        for attribute, weight in list(module._parameters.items()):
            if isinstance(weight, Deferred) and weight.ndim < 2:
                module._parameters[attribute] = decoded(weight)
    for name, module in list(model.named_modules()):
        for attribute, weight in list(module._parameters.items()):
            if not isinstance(weight, Deferred):
                continue
            packed = _packed(module, weight, decoder, uses[id(weight.origin)])
            if isinstance(packed, Int8Linear):
                parent, _, last = name.rpartition(".")
                setattr(model.get_submodule(parent), last, packed)
                report.packed[f"{name}.{attribute}"] = packed.sparse_values.numel()
                continue
            report.dense[f"{name}.{attribute}"] = packed
            module._parameters[attribute] = decoded(weight)
    return report


def _packed(module: nn.Module, weight: Deferred, decoder: HeldDecoder, uses: int) -> Int8Linear | str:
    """The layer in 8 bits, or why it stays dense."""
    if type(module) is not nn.Linear:
        return f"{type(module).__name__} is no linear layer"
    if uses > 1:
        return "tied to another weight"
    if not isinstance(weight.origin, Source):
        return "not a tensor of the file"
    header = decoder.plain_header(weight.origin.name)
    if header is None:
        return "exact, transformed, or a product"
    grid = header.grid
    if grid.row_codes.shape[1] > 1:
        return "several steps in a row"
    fine = decoder.fine_grid(weight.origin.name)
    if int((fine.abs() > LARGEST).sum()) > MOST_SPARSE * fine.numel():
        return f"more than {MOST_SPARSE:.0%} of its integers are beyond 8 bits"
    column_steps, row_steps = (
        torch.from_numpy(np.ascontiguousarray(steps(codes, grid.resolution))).to(fine.device)
        for codes in (grid.column_codes, grid.row_codes[:, 0])
    )
    return Int8Linear(fine, column_steps, row_steps, module.bias)
