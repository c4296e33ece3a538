"""Compressed-tensors: linear layers as integers of 4 or 8 bits in groups, as transformers and vLLM read them.

checkpoint ─▶ metric of every linear layer, if there is text ─▶ rounding ─▶ weight_packed, weight_scale, weight_shape
           └▶ everything else as it is ─────────────────────────────────▶ the same shards; config.json says which

Embeddings, head, norms and biases keep their dtype. Writing needs no package; reading needs compressed-tensors.

Reference: https://github.com/vllm-project/compressed-tensors (layout `pack-quantized`).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import reduce
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueaxis.container import INDEX, SHARD_BYTES, shard_names
from trueaxis.export.rounding import round_groups
from trueaxis.metric.calibrate import calibrate
from trueaxis.metric.source import read_tokens
from trueaxis.metric.statistics import Statistics, load_statistics, merge
from trueaxis.model.architecture import skeleton
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.model.graph import trace
from trueaxis.types import Array, CheckpointError, TrueaxisError, Weight

if TYPE_CHECKING:
    import torch

    from trueaxis.export.journey import Wanted

BITS = {"int4": 4, "int8": 8}
GROUPS = (128, 64, 32)


def write_compressed_tensors(checkpoint: Checkpoint, directory: Path, wanted: Wanted) -> tuple[str, ...]:
    """Writes a checkpoint whose linear layers are integers.

    Args:
        checkpoint: Of a model whose linear layers transformers has as nn.Linear under their own names.
        directory: Exists already.
        wanted: Type, group, and what to measure the metric on.

    Returns:
        What is otherwise than asked for, a sentence each.

    Raises:
        TrueaxisError: The type or the group is none that the layout has, or a layer does not fit it; names it.
    """
    import torch
    from safetensors.torch import save_file

    kind = wanted.type or "int4"
    if kind not in BITS:
        raise TrueaxisError(f"{kind!r} is no type of compressed-tensors exports; known: {', '.join(BITS)}")
    weights = trace(checkpoint)
    layers, ignored = _layers(checkpoint, weights)
    group = _group(layers, wanted.group)
    moments, notes = _moments(checkpoint, weights, wanted)
    shard: dict[str, torch.Tensor] = {}
    shards, filled = [], 0
    for name in checkpoint.entries:
        value = checkpoint.tensor(name)
        if name in layers:
            moment = moments(layers[name])
            rounded = round_groups(value.float(), moment, BITS[kind], group, value.dtype)
            found = {
                f"{name}_packed": pack(rounded.indices.numpy(), BITS[kind]),
                f"{name}_scale": rounded.scales,
                f"{name}_shape": torch.tensor(value.shape),
            }
        else:
            found = {} if name in checkpoint.aliases else {name: value}
        size = sum(one.nbytes for one in found.values())
        if shard and filled + size > SHARD_BYTES:
            shards.append(_saved(shard, directory, len(shards), save_file))
            shard, filled = {}, 0
        shard, filled = {**shard, **found}, filled + size
    shards.append(_saved(shard, directory, len(shards), save_file))
    _name_shards(directory, shards)
    _write_config(checkpoint, directory, BITS[kind], group, ignored)
    for file in checkpoint.files_to_copy():
        shutil.copyfile(file, directory / file.name)
    return notes


def pack(indices: Array, bits: int) -> torch.Tensor:
    """int32 [m, n · bits / 32] of integers int8 [m, n], first column in the lowest bits, half the range added.

    Example:
        >>> pack(np.array([[-8, 7, 0, 0, 0, 0, 0, 0]], np.int8), 4).tolist()
        [[-2004317968]]
    """
    import torch

    raised = (indices.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    if bits == 4:
        raised = raised[:, ::2] | raised[:, 1::2] << 4
    return torch.from_numpy(np.ascontiguousarray(raised).view("<i4").astype(np.int32))


def _layers(checkpoint: Checkpoint, weights: tuple[Weight, ...]) -> tuple[dict[str, Weight], list[str]]:
    """Matrices to be rounded by their names, and the linear modules that are not."""
    import torch

    model = skeleton(checkpoint.config)
    if model is None:
        raise CheckpointError(f"{checkpoint.path}: transformers cannot build this model, nor what loads such an export")
    modules = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    linear = {weight.name: weight for weight in weights if weight.role == "linear"}
    layers = {f"{name}.weight": linear[f"{name}.weight"] for name in modules if f"{name}.weight" in linear}
    if left := sorted(linear.keys() - layers.keys()):
        raise CheckpointError(
            f"{left[0]}: is no nn.Linear of its own name in transformers, as compressed-tensors needs it "
            f"({len(left)} such matrices); export as gguf or safetensors"
        )
    return layers, [name for name in modules if f"{name}.weight" not in layers]


def _group(layers: Mapping[str, Weight], wanted: int | None) -> int:
    """Columns that share a scale."""
    step, shared = min(GROUPS), gcd(*(weight.shape[1] for weight in layers.values())) or max(GROUPS)
    allowed = [group for group in range(step, shared + 1, step) if shared % group == 0]
    if not allowed:
        misfit = next(weight for weight in layers.values() if weight.shape[1] % step)
        raise TrueaxisError(
            f"{misfit.name}: groups are multiples of {step} that divide every layer's inputs, and this layer has "
            f"{misfit.shape[1]}; export as gguf or safetensors"
        )
    if wanted is not None and wanted not in allowed:
        raise TrueaxisError(
            f"--group {wanted}: groups are multiples of {step} that divide every layer's inputs; of this model these "
            f"are {', '.join(map(str, allowed))}"
        )
    return wanted or max(group for group in GROUPS if group in allowed)


def _moments(checkpoint: Checkpoint, weights: tuple[Weight, ...], wanted: Wanted) -> tuple[Any, tuple[str, ...]]:
    """H of a matrix as a function of it, None for nearest rounding."""
    if not wanted.calibration and wanted.statistics is None:
        return lambda weight: None, (
            "rounded to the nearest: with --calibration TEXT it is rounded by what inputs are",
        )
    statistics = _measured(checkpoint, wanted)
    deaf = set(statistics.unheard) | {None}
    notes = [f"{one.name}: rounded to the nearest" for one in weights if one.role == "linear" and one.space in deaf]
    return lambda weight: None if weight.space in deaf else statistics.second_moment(weight.space), tuple(notes)


def _measured(checkpoint: Checkpoint, wanted: Wanted) -> Statistics:
    """Second moments alone: sensitivities and gradients change nothing here."""
    if wanted.statistics is not None:
        found = load_statistics(wanted.statistics)
        found.require(checkpoint)
        return found
    parts = [
        calibrate(checkpoint, tokens, seed=wanted.seed, device=wanted.device, threads=wanted.threads)
        for tokens in read_tokens(checkpoint.path, wanted.calibration)
    ]
    return reduce(merge, parts)


def _saved(shard: Mapping[str, torch.Tensor], directory: Path, number: int, save: Any) -> dict[str, int]:
    contiguous = {name: value.contiguous() for name, value in shard.items()}
    save(contiguous, directory / f"{number}.partial", metadata={"format": "pt"})
    return {name: value.nbytes for name, value in contiguous.items()}


def _name_shards(directory: Path, shards: list[dict[str, int]]) -> None:
    """Names that Hugging Face has for so many shards, and their index where there are several."""
    names = shard_names(len(shards))
    for number, name in enumerate(names):
        (directory / f"{number}.partial").rename(directory / name)
    if len(shards) > 1:
        total = sum(sum(shard.values()) for shard in shards)
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_config(checkpoint: Checkpoint, directory: Path, bits: int, group: int, ignored: list[str]) -> None:
    weights = {
        "num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": group, "dynamic": False,
    }  # fmt: skip
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    entry = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
        "config_groups": {"group_0": scheme}, "ignore": ignored, "kv_cache_scheme": None,
    }  # fmt: skip
    config = {**checkpoint.config, "quantization_config": entry}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
