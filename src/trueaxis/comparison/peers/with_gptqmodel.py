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
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoConfig, PreTrainedTokenizerFast

GROUP = 64
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
COUNTED = ("*.safetensors", "quantize_config.json")


def main() -> None:
    """`python with_gptqmodel.py MODEL "4 bits" FOLDER`, FOLDER with the files of comparison/inputs.py."""
    model, bits, folder = Path(sys.argv[1]), int(sys.argv[2].split()[0]), Path(sys.argv[3])
    made, linear, begun = folder / "made", linear_names(model), time.perf_counter()
    quantize(with_tokenizer(model, folder), bits, np.load(folder / "calibration.npy"), made)
    seconds = time.perf_counter() - begun
    for pattern in COUNTED:
        for file in made.glob(pattern):
            os.link(file, folder / "files" / file.name)
    tensors, begun = read_tensors(model), time.perf_counter()
    layers = dict(GPTQModel.load(str(made), device="cpu", backend=BACKEND.GPTQ_TORCH).model.named_modules())
    fallbacks = []
    for name in linear:
        layer = layers[name.removesuffix(".weight")]
        if hasattr(layer, "dequantize_weight"):
            tensors[name] = layer.dequantize_weight().T.float()
        else:
            fallbacks.append(f"{name}: not quantized")
    tell(seconds, time.perf_counter() - begun, fallbacks)
    write_dense(model, tensors, folder)


def with_tokenizer(model: Path, folder: Path) -> Path:
    """The model, or, where it has no tokenizer, links to it beside one of bare numbers: the package loads no
    model without, though it is given token ids."""
    if any((model / name).exists() for name in TOKENIZERS):
        return model
    place, size = folder / "model", AutoConfig.from_pretrained(model).vocab_size
    place.mkdir()
    for file in model.iterdir():
        (place / file.name).symlink_to(file)
    numbers = Tokenizer(WordLevel({str(number): number for number in range(size)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=numbers, unk_token="0", pad_token="0").save_pretrained(place)
    return place


def quantize(model: Path, bits: int, tokens: np.ndarray, out: Path) -> None:
    """Writes the quantized model, in bfloat16 as the package would have it; the text passes through it in float32,
    since processors without instructions for bfloat16 take ten times as long with that."""
    torch.manual_seed(0)
    settings = QuantizeConfig(bits=bits, group_size=GROUP, device="cpu", offload_to_disk=False)
    whole = GPTQModel.load(str(model), settings, dtype=torch.float32)
    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in tokens.astype(np.int64)]
    whole.quantize(rows, batch_size=4, backend=BACKEND.GPTQ_TORCH)
    whole.model.to(torch.bfloat16)
    whole.save(str(out))


if __name__ == "__main__":
    main()
