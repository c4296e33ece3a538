"""What peers share: which matrices they quantize, and how their result is put down for evaluation.

    MODEL ─▶ every tensor, and the names of its linear layers ─▶ quantized by the peer ─▶ FOLDER/files (counted)
                                                              └▶ decoded again ────────▶ FOLDER/dense (evaluated)

Peers quantize linear layers; embeddings, norms and the head stay as they are, as their own integrations have it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Coded = tuple[Tensors, Callable[[], torch.Tensor]]
"""What is stored of a matrix, and what decodes it."""
Quantize = Callable[[torch.Tensor], Coded]
"""W [m, n] float32 ─▶ W coded; ValueError says why a matrix cannot be done."""


def read_tensors(model: Path) -> Tensors:
    """Every tensor of every shard."""
    found: Tensors = {}
    for file in sorted(model.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def linear_names(model: Path) -> list[str]:
    """Names of the weights of linear layers, the head left out."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    head = network.get_output_embeddings()
    modules = network.named_modules()
    return [f"{name}.weight" for name, one in modules if isinstance(one, torch.nn.Linear) and one is not head]


def write_dense(model: Path, tensors: Tensors, folder: Path) -> None:
    """A plain checkpoint with the configuration of `model`, in float32 so that nothing is rounded again."""
    dense = folder / "dense"
    dense.mkdir()
    save_file({name: one.float().contiguous() for name, one in tensors.items()}, dense / "model.safetensors")
    for file in model.iterdir():
        if file.suffix in (".json", ".txt", ".model") and not file.name.endswith(".index.json"):
            shutil.copyfile(file, dense / file.name)


def tell(seconds: float, load_seconds: float, fallbacks: list[str]) -> None:
    """The last line that a script prints: seconds from weights to files, and from files to weights."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024  # getrusage knows the process that started this one, too
    times = {"seconds": seconds, "load_seconds": load_seconds}
    print(json.dumps({**times, "peak_memory_bytes": peak, "fallbacks": fallbacks}))


def quantize_linears(quantizer: Callable[[str], Quantize]) -> None:
    """A script's whole run: `python script MODEL SETTING FOLDER`; `quantizer` makes the function of a setting."""
    model, setting, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    quantize, linear = quantizer(setting), linear_names(model)
    tensors = read_tensors(model)
    file, begun, stored, fallbacks = folder / "files" / "model.safetensors", time.perf_counter(), dict(tensors), []
    decoders = {}
    for name in linear:
        try:
            parts, decoders[name] = quantize(tensors[name].float())
        except ValueError as reason:
            fallbacks.append(f"{name}: {reason}")
            continue
        del stored[name]
        stored.update({f"{name}.{part}": value.contiguous() for part, value in parts.items()})
    save_file(stored, file)
    loaded = time.perf_counter()
    load_file(file)  # for the time it takes: what decoders hold is the same
    for name, decode in decoders.items():
        tensors[name] = decode().float().reshape(tensors[name].shape)
    tell(loaded - begun, time.perf_counter() - loaded, fallbacks)
    write_dense(model, tensors, folder)
