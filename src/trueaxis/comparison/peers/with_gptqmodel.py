"""GPTQModel: GPTQ in groups of 64, calibrated on the text itself (https://github.com/ModelCloud/GPTQModel)."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

# It runs a pool of two loaders within one of so many workers, half of the processors unless told otherwise.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import numpy as np
import torch
from dense import linear_names, read_tensors, tell, write_dense
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # type: ignore[import-not-found]

GROUP = 64
COUNTED = ("*.safetensors", "quantize_config.json")


def main() -> None:
    """`python with_gptqmodel.py MODEL "4 bits" FOLDER`, FOLDER with the files of comparison/inputs.py."""
    model, bits, folder = Path(sys.argv[1]), int(sys.argv[2].split()[0]), Path(sys.argv[3])
    made, begun = folder / "made", time.perf_counter()
    quantize(model, bits, np.load(folder / "calibration.npy"), made)
    seconds = time.perf_counter() - begun
    for pattern in COUNTED:
        for file in made.glob(pattern):
            os.link(file, folder / "files" / file.name)
    tensors, linear = read_tensors(model), linear_names(model)
    layers = dict(GPTQModel.load(str(made), device="cpu", backend=BACKEND.GPTQ_TORCH).model.named_modules())
    fallbacks = []
    for name in linear:
        layer = layers[name.removesuffix(".weight")]
        if hasattr(layer, "dequantize_weight"):
            tensors[name] = layer.dequantize_weight().T.float()
        else:
            fallbacks.append(f"{name}: not quantized")
    write_dense(model, tensors, folder)
    tell(time.perf_counter() - seconds, fallbacks)


def quantize(model: Path, bits: int, tokens: np.ndarray, out: Path) -> None:
    """Writes the quantized model."""
    torch.manual_seed(0)
    settings = QuantizeConfig(bits=bits, group_size=GROUP, device="cpu", offload_to_disk=False)
    whole = GPTQModel.load(str(model), settings)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in tokens.astype(np.int64)]
    whole.quantize(rows, batch_size=4, backend=BACKEND.GPTQ_TORCH)
    whole.save(str(out))


if __name__ == "__main__":
    main()
