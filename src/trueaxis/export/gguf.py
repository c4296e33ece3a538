"""GGUF: a checkpoint as llama.cpp reads it, in floats or in blocks of small integers.

checkpoint ─▶ places: name, and order of rows, of every tensor ─▶ FILE.gguf (metadata, vocabulary, matrices, vectors)

Matrices take the type asked for, vectors float32. llama.cpp turns neighbouring channels by position where transformers
turns halves, so that rows of q and k of some architectures change their order, and it multiplies by a norm's whole
weight where some store what it has beyond one. One tensor is in memory at a time.

References: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (format);
https://github.com/ggml-org/llama.cpp (names of tensors, types of the head).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from trueaxis.export.journey import GGUF_FLOATS
from trueaxis.export.vocabulary import read_vocabulary
from trueaxis.model.architecture import architecture
from trueaxis.model.checkpoint import Checkpoint
from trueaxis.types import Array, CheckpointError, TrueaxisError

LARGEST = 65504.0  # of float16
BLOCK = 32  # columns that share a scale
GGUF_TYPES = (*GGUF_FLOATS, "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """One of llama.cpp's.

    Attributes:
        name: As it is called there.
        inside: Names there of what a block holds.
        interleaved: Whether its rows of q and k are those of neighbouring channels.
        norm_offset: What is added to the weights of norms.
        scaled: Types of positions whose frequencies it takes from a tensor.
    """

    name: str
    inside: Mapping[str, str]
    interleaved: bool = False
    norm_offset: float = 0.0
    scaled: tuple[str, ...] = ()


OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LINEAR = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
INSIDE = {**LINEAR, "post_attention_layernorm": "ffn_norm"}
SANDWICH = {
    **LINEAR, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", INSIDE, interleaved=True, scaled=("llama3", "linear")),
    "MistralForCausalLM": Architecture("llama", INSIDE, interleaved=True),
    "Qwen2ForCausalLM": Architecture("qwen2", INSIDE),
    "Qwen3ForCausalLM": Architecture("qwen3", INSIDE),
    "Gemma3ForCausalLM": Architecture("gemma3", SANDWICH, norm_offset=1.0),
}
TENSOR = re.compile(r"(?:model\.layers\.(?P<block>\d+)\.)?(?P<module>[a-z_.]+)\.(?P<kind>weight|bias)")


@dataclass(frozen=True)
class GgufPlace:
    """Where a tensor goes: its name there, the heads whose rows are interleaved (0 for rows as they are), and what is
    added to its values."""

    name: str
    heads: int
    offset: float = 0.0


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
        known = OUTSIDE if block is None else family.inside
        if found is None or found["module"] not in known:
            raise CheckpointError(f"{name}: a GGUF file of the architecture {family.name} has no place for this tensor")
        module = known[found["module"]]
        start = "" if block is None else f"blk.{block}."
        offset = family.norm_offset if module.endswith("norm") else 0.0
        places[name] = GgufPlace(f"{start}{module}.{found['kind']}", heads.get(module, 0), offset)
    return places


def write_gguf(checkpoint: Checkpoint, file: str | Path, kind: str = "F16") -> tuple[str, ...]:
    """Writes a checkpoint as one GGUF file.

    Args:
        checkpoint: Of an architecture in `ARCHITECTURES`.
        file: To write.
        kind: Of the matrices, one of `GGUF_TYPES` in any case. With 4 or 5 bits the head takes Q8_0, and so does a tied
            embedding.

    Returns:
        What the file lacks or has otherwise than asked for, a sentence each.

    Raises:
        CheckpointError: Something in the checkpoint has no place in such a file; names it.
        TrueaxisError: The package gguf is missing, or the type is unknown.
    """
    if kind.upper() not in GGUF_TYPES:
        raise TrueaxisError(f"{kind!r} is no type that GGUF files are written in; known: {', '.join(GGUF_TYPES)}")
    if find_spec("gguf") is None:
        raise TrueaxisError("GGUF files need the package gguf; install it with: pip install 'trueaxis[export]'")
    import gguf

    kind = kind.upper()
    places, config = gguf_places(checkpoint), _configuration(checkpoint)
    factors = _rope_factors(checkpoint, config)
    kinds = {name: _kind(checkpoint, name, kind) for name in places}
    with closing(gguf.GGUFWriter(file, _family(checkpoint).name)) as writer:
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
        _add_sizes(writer, checkpoint, config)
        notes = (*_add_vocabulary(writer, checkpoint, config), *_fallbacks(kinds, kind))
        for name, place in places.items():
            _announce(writer, place.name, checkpoint.entries[name].shape, gguf.GGMLQuantizationType[kinds[name]])
        if factors is not None:
            _announce(writer, ROPE_FACTORS, factors.shape, gguf.GGMLQuantizationType.F32)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, place in places.items():
            values = _values(name, checkpoint.tensor(name).float().numpy(), place, kinds[name])
            writer.write_tensor_data(gguf.quants.quantize(values, gguf.GGMLQuantizationType[kinds[name]]))
        if factors is not None:
            writer.write_tensor_data(factors)
    return notes


def _announce(writer: Any, name: str, shape: tuple[int, ...], kind: Any) -> None:
    """Tells of a tensor that is written later."""
    from gguf.constants import GGML_QUANT_SIZES

    entries, size = GGML_QUANT_SIZES[kind]
    writer.add_tensor_info(name, shape, np.dtype(np.float32), math.prod(shape) // entries * size, kind)


def interleaved(values: Array, heads: int) -> Array:
    """Rows [m, …] with channel i and i + half of every head side by side.

    Example:
        >>> interleaved(np.arange(8), 2).tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _add_sizes(writer: Any, checkpoint: Checkpoint, config: Any) -> None:
    """Everything that llama.cpp needs to know of the network."""
    writer.add_name(checkpoint.path.resolve().name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    side = _side(config)
    writer.add_key_length(side)
    writer.add_value_length(side)
    writer.add_rope_dimension_count(side)
    writer.add_rope_freq_base(float(_positions(checkpoint, config)["rope_theta"]))
    if _family(checkpoint).name == "gemma3":
        _add_windows(writer, checkpoint, config)


def _add_windows(writer: Any, checkpoint: Checkpoint, config: Any) -> None:
    """Sliding windows, in which llama.cpp has every sixth layer see all; it scales queries by the size of a head."""
    whole = [number % 6 == 5 for number in range(config.num_hidden_layers)]
    if [kind == "full_attention" for kind in config.layer_types] != whole:
        raise CheckpointError(f"{checkpoint.path}: llama.cpp has every sixth layer see all positions, this has others")
    if config.query_pre_attn_scalar != _side(config) or config.final_logit_softcapping or config.attn_logit_softcapping:
        raise CheckpointError(f"{checkpoint.path}: scales queries or caps logits as no GGUF file made here can say")
    if config.rope_parameters["sliding_attention"]["rope_theta"] != 10000.0:
        raise CheckpointError(f"{checkpoint.path}: llama.cpp has base 10000 for the positions in windows")
    writer.add_sliding_window(config.sliding_window)


def _add_vocabulary(writer: Any, checkpoint: Checkpoint, config: Any) -> Iterator[str]:
    found = read_vocabulary(checkpoint.path, config.vocab_size)
    if isinstance(found, str):
        writer.add_tokenizer_model("no_vocab")
        yield f"the file has no vocabulary: {found}; give llama.cpp token ids"
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(found.splitter)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.types)
    writer.add_token_merges(found.merges)
    writer.add_add_bos_token(found.begins)
    for add, number in ((writer.add_bos_token_id, config.bos_token_id), (writer.add_eos_token_id, config.eos_token_id)):
        if number is not None:
            add(number[0] if isinstance(number, list) else number)


def _kind(checkpoint: Checkpoint, name: str, wanted: str) -> str:
    """Type of one tensor: heads of few bits are widened as llama.cpp widens them, and blocks have to fit."""
    shape = checkpoint.entries[name].shape
    if len(shape) == 1:
        return "F32"
    if wanted in GGUF_FLOATS:
        return wanted
    if shape[-1] % BLOCK:
        return "F16"
    head = "lm_head.weight"
    heads = [head] if head in checkpoint.entries and head not in checkpoint.aliases else ["model.embed_tokens.weight"]
    return "Q8_0" if name in heads else wanted


def _fallbacks(kinds: Mapping[str, str], wanted: str) -> Iterator[str]:
    for name, kind in kinds.items():
        if kind == "F16" and wanted not in GGUF_FLOATS:
            yield f"{name}: its columns are no multiple of {BLOCK}, so it is F16"


def _values(name: str, values: Array, place: GgufPlace, kind: str) -> Array:
    ordered = (interleaved(values, place.heads) if place.heads else values) + np.float32(place.offset)
    if kind != "F32" and kind != "BF16" and not np.abs(ordered).max(initial=0.0) <= LARGEST:
        raise CheckpointError(f"{name}: holds values beyond {LARGEST:g}, which float16 does not have; BF16 has them")
    return ordered


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


def _side(config: Any) -> int:
    """Width of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _positions(checkpoint: Checkpoint, config: Any) -> Mapping[str, Any]:
    """How positions turn queries and keys."""
    found = config.rope_parameters
    found = found.get("full_attention", found)  # by kind of layer, where there are several
    kind = found.get("rope_type", "default")
    if kind not in ("default", *_family(checkpoint).scaled):
        raise CheckpointError(f"{checkpoint.path}: positions of type {kind} have no place in a GGUF file made here")
    return found


def _rope_factors(checkpoint: Checkpoint, config: Any) -> Array | None:
    """What each frequency is divided by, float32 [side / 2]; None where frequencies are those of the base."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found = _positions(checkpoint, config)
    kind, side = found.get("rope_type", "default"), _side(config)
    if kind == "default":
        return None
    frequencies = ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0].double().numpy()
    plain = float(found["rope_theta"]) ** (-np.arange(0, side, 2) / side)
    return (plain / frequencies).astype(np.float32)
