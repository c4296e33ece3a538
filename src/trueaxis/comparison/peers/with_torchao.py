"""torchao: round to nearest in groups, the weight-only configurations (https://github.com/pytorch/ao)."""

from __future__ import annotations

import torch
from dense import Coded, Quantize, quantize_linears
from torchao.quantization import IntxWeightOnlyConfig, quantize_  # type: ignore[import-not-found]
from torchao.quantization.granularity import PerAxis, PerGroup  # type: ignore[import-not-found]

GROUP = 64


def quantizer(setting: str) -> Quantize:
    """Of "int4" (groups of 64) and "int8" (one scale per row)."""
    dtype = {"int4": torch.int4, "int8": torch.int8}[setting]
    granularity = PerGroup(GROUP) if setting == "int4" else PerAxis(0)

    def quantize(weight: torch.Tensor) -> Coded:
        if setting == "int4" and weight.shape[1] % GROUP:
            raise ValueError(f"{weight.shape[1]} columns are no multiple of the group of {GROUP}")
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16)
        linear.weight = torch.nn.Parameter(weight.bfloat16(), requires_grad=False)
        quantize_(linear, IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity))
        found = linear.weight
        codes = found.qdata
        # Two codes in a byte, as its packed layouts for devices hold them.
        stored = (codes[:, 0::2] & 15) | (codes[:, 1::2] << 4) if setting == "int4" else codes
        return {"codes": stored, "scale": found.scale.bfloat16()}, found.dequantize

    return quantize


if __name__ == "__main__":
    quantize_linears(quantizer)
