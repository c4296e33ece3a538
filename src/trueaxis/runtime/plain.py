"""Plain: decoded tensors to ordinary safetensors shards, with one tensor in memory at a time.

Decoder ─▶ names and sizes divided into shards ─▶ header of each, then decode, write, forget ─▶ files (and their index)

The files are those of the safetensors library to the last byte: it orders tensors by size of dtype, then by name.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueaxis.container import INDEX
from trueaxis.runtime.decode import TORCH_NAMES, Decoder

if TYPE_CHECKING:
    import torch


DTYPE_ORDER = (
    "BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64",
)  # fmt: skip


def write_plain(decoder: Decoder, directory: Path, dtype: torch.dtype | None, shard_bytes: int) -> list[Path]:
    """Writes model.safetensors, or shards and their index, under the names of the original checkpoint.

    Args:
        decoder: Of a compressed directory.
        directory: Exists already.
        dtype: Of all tensors of floats; by default each has that of the original.
        shard_bytes: A shard ends before it holds more than this, or with one tensor.

    Returns:
        The weight files, in order, without the index.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    shapes = {
        name: torch.empty(info.shape, dtype=_stored_dtype(decoder.dtype(name), dtype), device="meta")
        for name, info in decoder.container.tensors.items()
    }
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=shard_bytes)
    for file, names in split.filename_to_tensors.items():
        _write_shard(decoder, {name: shapes[name] for name in names}, directory / file, dtype)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=2))
    return [directory / file for file in split.filename_to_tensors]


def _write_shard(decoder: Decoder, shapes: Mapping[str, torch.Tensor], file: Path, dtype: torch.dtype | None) -> None:
    """One safetensors file; `shapes` are tensors without data."""
    import torch

    kinds = {getattr(torch, name): kind for kind, name in TORCH_NAMES.items()}
    order = sorted(shapes, key=lambda name: (-DTYPE_ORDER.index(kinds[shapes[name].dtype]), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        start, end = end, end + shapes[name].nbytes
        kind = kinds[shapes[name].dtype]
        header[name] = {"dtype": kind, "shape": list(shapes[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            value = decoder.tensor(name, dtype).contiguous()
            stream.write(value.reshape(-1).view(torch.uint8).numpy().data)


def _stored_dtype(own: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and own.is_floating_point else own
