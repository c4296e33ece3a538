"""GGUF: a checkpoint of the Llama family as llama.cpp reads it, in float16.

checkpoint ─▶ places: name, and order of rows, of every tensor ─▶ FILE.gguf (metadata, matrices F16, vectors F32)

llama.cpp turns neighbouring channels by position where transformers turns halves, so that rows of q and k of some
architectures change their order. The file has no tokenizer.

References: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trueaxis.model.architecture import architecture
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.types import Array, CheckpointError, TrueaxisError

LARGEST = 65504.0  # of float16


@dataclass(frozen=True)
class Architecture:
    """What llama.cpp calls it, and whether its rows of q and k are those of neighbouring channels."""

    name: str
    interleaved: bool


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", True),
    "MistralForCausalLM": Architecture("llama", True),
    "Qwen2ForCausalLM": Architecture("qwen2", False),
    "Qwen3ForCausalLM": Architecture("qwen3", False),
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
INSIDE = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
TENSOR = re.compile(r"(?:model\.layers\.(?P<block>\d+)\.)?(?P<module>[a-z_.]+)\.(?P<kind>weight|bias)")


@dataclass(frozen=True)
class GgufPlace:
    """Where a tensor goes: its name there, and the heads whose rows are interleaved, 0 for rows as they are."""

    name: str
    heads: int


def gguf_places(checkpoint: Checkpoint) -> dict[str, GgufPlace]:
    """Places of all tensors by their names in the checkpoint, tied ones left out.

    Raises:
        CheckpointError: llama.cpp has no place for a tensor, or the architecture has no map here.
    """
    family, config = _family(checkpoint), _configuration(checkpoint)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads} if family.interleaved else {}
    places = {}
    for name in checkpoint.entries:
        if name in checkpoint.aliases:
            continue
        found = TENSOR.fullmatch(name)
        block = found["block"] if found else None
        known = OUTSIDE if block is None else INSIDE
        if found is None or found["module"] not in known:
            raise CheckpointError(f"{name}: a GGUF file of the architecture {family.name} has no place for this tensor")
        module = known[found["module"]]
        start = "" if block is None else f"blk.{block}."
        places[name] = GgufPlace(f"{start}{module}.{found['kind']}", heads.get(module, 0))
    return places


def write_gguf(checkpoint: Checkpoint, file: str | Path) -> None:
    """Writes a checkpoint in float16, without a tokenizer.

    Args:
        checkpoint: Of an architecture in `ARCHITECTURES`.
        file: To write.

    Raises:
        CheckpointError: Something in the checkpoint has no place in such a file; names it.
        TrueaxisError: The package gguf is missing.
    """
    if find_spec("gguf") is None:
        raise TrueaxisError(f"{file}: GGUF files need the package gguf; install it with: pip install 'trueaxis[gguf]'")
    import gguf

    places, config = gguf_places(checkpoint), _configuration(checkpoint)
    writer = gguf.GGUFWriter(file, _family(checkpoint).name)
    writer.add_name(checkpoint.path.resolve().name)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    side = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(side)
    writer.add_value_length(side)
    writer.add_rope_dimension_count(side)
    writer.add_rope_freq_base(_rope_base(checkpoint, config))
    for name, place in places.items():
        writer.add_tensor(place.name, _values(name, checkpoint.tensor(name).float().numpy(), place.heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(values: Array, heads: int) -> Array:
    """Rows [m, …] with channel i and i + half of every head side by side.

    Example:
        >>> interleaved(np.arange(8), 2).tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _values(name: str, values: Array, heads: int) -> Array:
    ordered = interleaved(values, heads) if heads else values
    if ordered.ndim == 1:
        return ordered
    if not np.abs(ordered).max(initial=0.0) <= LARGEST:
        raise CheckpointError(f"{name}: holds values beyond {LARGEST:g}, which float16 does not have")
    return ordered.astype(np.float16)


def _family(checkpoint: Checkpoint) -> Architecture:
    name = (checkpoint.config.get("architectures") or ["none"])[0]
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{checkpoint.path}: GGUF files are written for {known}; this is {name}")
    return ARCHITECTURES[name]


def _configuration(checkpoint: Checkpoint) -> Any:
    """As transformers completes it."""
    found = architecture(checkpoint.config)
    assert found is not None  # its architecture is one of `ARCHITECTURES`
    return found[0]


def _rope_base(checkpoint: Checkpoint, config: Any) -> float:
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, Mapping) or parameters.get("rope_type", "default") != "default":
        kind = parameters.get("rope_type") if isinstance(parameters, Mapping) else parameters
        raise CheckpointError(f"{checkpoint.path}: positions of type {kind} have no place in a GGUF file made here")
    return float(parameters["rope_theta"])
