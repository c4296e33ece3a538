"""HQQ: half-quadratic quantization in groups of 64, zero points in the clear (https://github.com/mobiusml/hqq)."""

from __future__ import annotations

from functools import partial

import torch
from dense import Coded, Quantize, quantize_linears
from hqq.core.quantize import Quantizer  # type: ignore[import-not-found]

GROUP = 64


def quantizer(setting: str) -> Quantize:
    """Of "4 bits" and so on."""
    bits = int(setting.split()[0])

    def quantize(weight: torch.Tensor) -> Coded:
        if weight.numel() % GROUP:
            raise ValueError(f"{weight.numel()} weights are no multiple of the group of {GROUP}")
        packed, meta = Quantizer.quantize(weight, nbits=bits, group_size=GROUP, axis=1, device="cpu")
        meta["scale"], meta["zero"] = meta["scale"].half(), meta["zero"].half()
        stored = {"packed": packed, "scale": meta["scale"], "zero": meta["zero"]}
        return stored, partial(Quantizer.dequantize, packed, meta)

    return quantize


if __name__ == "__main__":
    quantize_linears(quantizer)
