"""Plain: decoded tensors to ordinary safetensors shards, with one shard in memory at a time.

Decoder ─▶ names and sizes divided into shards ─▶ decode, write, forget ─▶ files (and their index)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from trueaxis.container import INDEX
from trueaxis.runtime.decode import Decoder

if TYPE_CHECKING:
    import torch


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
    from safetensors.torch import save_file

    shapes = {
        name: torch.empty(info.shape, dtype=_stored_dtype(decoder.dtype(name), dtype), device="meta")
        for name, info in decoder.container.tensors.items()
    }
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=shard_bytes)
    for file, names in split.filename_to_tensors.items():
        # cloned: a tied tensor may share its storage with the other name, which safetensors refuses
        shard = {name: decoder.tensor(name, dtype).contiguous() for name in names}
        shard |= {name: value.clone() for name, value in shard.items() if decoder.alias(name)}
        save_file(shard, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=2))
    return [directory / file for file in split.filename_to_tensors]


def _stored_dtype(own: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    return wanted if wanted is not None and own.is_floating_point else own
