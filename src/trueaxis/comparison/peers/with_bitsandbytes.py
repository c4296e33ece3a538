"""bitsandbytes: NF4 in blocks of 64 with scales quantized again (QLoRA, arXiv:2305.14314)."""

from __future__ import annotations

from functools import partial

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # type: ignore[import-not-found]
from dense import Coded, Quantize, quantize_linears


def quantizer(setting: str) -> Quantize:
    """Of "nf4"."""

    def quantize(weight: torch.Tensor) -> Coded:
        packed, state = quantize_4bit(weight.bfloat16(), quant_type=setting, compress_statistics=True)
        stored = {name.replace("/", "_"): value for name, value in state.as_dict(packed=True).items()}
        return {"packed": packed, **stored}, partial(dequantize_4bit, packed, state)

    return quantize


if __name__ == "__main__":
    quantize_linears(quantizer)
