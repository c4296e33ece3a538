"""The families of models that trueaxis knows by name: facts only, one table each.

    model_type ─▶ Family      which matrix reads which space, what it writes, which norms and scales surround it

Names are those of the checkpoint, of the class that has a head, and relative to the block where they belong to one:
"self_attn.q_proj", "transformer.wte". A *space* is an input shared by several matrices (q, k and v read one). What a
checkpoint of an unknown family holds is found in the model itself, see graph.py.

Vocabulary of `Linear.writes`: "residual" (added to the stream), "query", "key", "value", "gate", "up", "router" (one
number per expert), "expert gate" (one number, a sigmoid on the shared expert), "fused:a,b" (rows of a, then of b),
"fused:query_key_value" (per head: query, key, value), "other".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal


@dataclass(frozen=True)
class Linear:
    """One matrix.

    Attributes:
        module: Its module.
        reads: The space it reads; the first matrix of a space is the one calibration listens to.
        norm: Norm whose output is that space and nothing else, or None.
        writes: What its output is, see above.
        needed: Whether every block has it.
    """

    module: str
    reads: str
    norm: str | None
    writes: str
    needed: bool = True


@dataclass(frozen=True)
class Experts:
    """Experts of a block: module that holds them, the space they read, and its norm."""

    module: str
    reads: str
    norm: str | None


@dataclass(frozen=True)
class Norms:
    """The kind of a family's norms and where they stand.

    Attributes:
        kind: "rms", or "layer" (subtracts the mean, has a bias).
        placement: "pre" (before a sublayer), "post" (after the addition), "sandwich" (before and after a sublayer).
        offset: The factor is the stored weight plus this.
        queries_keys: Whether queries and keys are normalized before their product.
    """

    kind: Literal["rms", "layer"] = "rms"
    placement: Literal["pre", "post", "sandwich"] = "pre"
    offset: float = 0.0
    queries_keys: bool = False


@dataclass(frozen=True)
class Family:
    """One model_type.

    Attributes:
        blocks: Module that holds the list of blocks.
        linears: Matrices of a block.
        block_norms: Norms of a block.
        embedding, final_norm, head: Modules outside the blocks; None for one that the family does not have.
        prefix: First component of names, which checkpoints of the class without a head may lack.
        outside: Matrices outside the blocks, with full names; none of them is needed.
        lookups: Tables outside the blocks that are looked up but are no token embedding: kept exactly.
        experts: Of a block, if it has any.
        renamed: (part of a checkpoint's name, what the running model has there).
        transposed: Whether matrices are stored [n, m].
        norms: Kind and placement.
        positions: "rope" (coordinates i and i + half turn together), "partial rope" (on the first part of a head),
            "learned".
        parallel: Whether attention and MLP read the same residual stream.
        scales: What multiplies or caps embeddings, logits and attention, as keys of config.json where it has one.
        depth, heads, key_value_heads: Keys of config.json.
        tied: Whether embedding and head are one where config.json does not say.
        variants: (key of config.json, value, fields that differ there).
    """

    blocks: str
    linears: tuple[Linear, ...]
    block_norms: tuple[str, ...]
    embedding: str
    final_norm: str | None
    head: str
    prefix: str = "model"
    outside: tuple[Linear, ...] = ()
    lookups: tuple[str, ...] = ()
    experts: Experts | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    transposed: bool = False
    norms: Norms = Norms()
    positions: Literal["rope", "partial rope", "learned"] = "rope"
    parallel: bool = False
    scales: tuple[str, ...] = ()
    depth: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    key_value_heads: str | None = "num_key_value_heads"
    tied: bool = False
    variants: tuple[tuple[str, Any, Mapping[str, Any]], ...] = ()


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The table that a config.json calls for, its variants applied; None for a family without one."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        return None
    for key, value, changes in family.variants:
        if config.get(key) == value:
            family = replace(family, **changes)
    return family


def _attention(norm: str | None, output: str = "o_proj", module: str = "self_attn") -> tuple[Linear, ...]:
    return (
        Linear(f"{module}.q_proj", f"{module}.in", norm, "query"),
        Linear(f"{module}.k_proj", f"{module}.in", norm, "key"),
        Linear(f"{module}.v_proj", f"{module}.in", norm, "value"),
        Linear(f"{module}.{output}", f"{module}.out", None, "residual"),
    )


def _gated(norm: str, module: str = "mlp", reads: str = "mlp.in", needed: bool = True) -> tuple[Linear, ...]:
    return (
        Linear(f"{module}.gate_proj", reads, norm, "gate", needed),
        Linear(f"{module}.up_proj", reads, norm, "up", needed),
        Linear(f"{module}.down_proj", f"{module}.hidden", None, "residual", needed),
    )


_PRE, _POST = "input_layernorm", "post_attention_layernorm"

LLAMA = Family(
    blocks="model.layers",
    linears=_attention(_PRE) + _gated(_POST),
    block_norms=(_PRE, _POST),
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
)

_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
QWEN3 = replace(LLAMA, block_norms=(_PRE, _POST, *_QK_NORMS), norms=Norms(queries_keys=True))

MIXTRAL = replace(
    LLAMA,
    linears=(*_attention(_PRE), Linear("block_sparse_moe.gate", "mlp.in", _POST, "router")),
    experts=Experts("block_sparse_moe.experts", "mlp.in", _POST),
    renamed=((".block_sparse_moe.", ".mlp."),),
)

QWEN2_MOE = replace(
    LLAMA,
    linears=(
        *_attention(_PRE),
        *_gated(_POST, needed=False),
        *_gated(_POST, "mlp.shared_expert", needed=False),  # runs first, router and experts after it
        Linear("mlp.gate", "mlp.in", _POST, "router", needed=False),
        Linear("mlp.shared_expert_gate", "mlp.in", _POST, "expert gate", needed=False),
    ),
    experts=Experts("mlp.experts", "mlp.in", _POST),
)
QWEN3_MOE = replace(QWEN2_MOE, block_norms=QWEN3.block_norms, norms=QWEN3.norms)

_GEMMA_NORMS = (_PRE, _POST, "pre_feedforward_layernorm", "post_feedforward_layernorm")
GEMMA2 = replace(
    LLAMA,
    linears=_attention(_PRE) + _gated("pre_feedforward_layernorm"),
    block_norms=_GEMMA_NORMS,
    norms=Norms(placement="sandwich", offset=1.0),
    scales=(
        "embedding: sqrt(hidden_size)",
        "attention: query_pre_attn_scalar",
        "attention: attn_logit_softcapping",
        "logits: final_logit_softcapping",
    ),
    tied=True,
)
GEMMA3 = replace(
    GEMMA2,
    block_norms=(*_GEMMA_NORMS, *_QK_NORMS),
    norms=Norms(placement="sandwich", offset=1.0, queries_keys=True),
)

PHI = Family(
    blocks="model.layers",
    linears=(
        *_attention(_PRE, "dense"),
        Linear("mlp.fc1", "self_attn.in", _PRE, "up"),
        Linear("mlp.fc2", "mlp.hidden", None, "residual"),
    ),
    block_norms=(_PRE,),
    embedding="model.embed_tokens",
    final_norm="model.final_layernorm",
    head="lm_head",
    norms=Norms("layer"),
    positions="partial rope",
    parallel=True,
    variants=(("qk_layernorm", True, {"norms": Norms("layer", queries_keys=True)}),),
)

PHI3 = replace(
    LLAMA,
    linears=(
        Linear("self_attn.qkv_proj", "self_attn.in", _PRE, "fused:query,key,value"),
        Linear("self_attn.o_proj", "self_attn.out", None, "residual"),
        Linear("mlp.gate_up_proj", "mlp.in", _POST, "fused:gate,up"),
        Linear("mlp.down_proj", "mlp.hidden", None, "residual"),
    ),
    positions="partial rope",
)

GPT2 = Family(
    blocks="transformer.h",
    linears=(
        Linear("attn.c_attn", "attn.in", "ln_1", "fused:query,key,value"),
        Linear("attn.c_proj", "attn.out", None, "residual"),
        Linear("mlp.c_fc", "mlp.in", "ln_2", "up"),
        Linear("mlp.c_proj", "mlp.hidden", None, "residual"),
    ),
    block_norms=("ln_1", "ln_2"),
    embedding="transformer.wte",
    final_norm="transformer.ln_f",
    head="lm_head",
    prefix="transformer",
    lookups=("transformer.wpe",),
    transposed=True,
    norms=Norms("layer"),
    positions="learned",
    depth="n_layer",
    heads="n_head",
    key_value_heads=None,
    tied=True,
)

GPT_NEOX = Family(
    blocks="gpt_neox.layers",
    linears=(
        Linear("attention.query_key_value", "attention.in", _PRE, "fused:query_key_value"),
        Linear("attention.dense", "attention.out", None, "residual"),
        Linear("mlp.dense_h_to_4h", "mlp.in", _POST, "up"),
        Linear("mlp.dense_4h_to_h", "mlp.hidden", None, "residual"),
    ),
    block_norms=(_PRE, _POST),
    embedding="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    head="embed_out",
    prefix="gpt_neox",
    renamed=(("embed_out", "lm_head"),),
    norms=Norms("layer"),
    positions="partial rope",
    parallel=True,
    key_value_heads=None,
    variants=(("use_parallel_residual", False, {"parallel": False}),),
)

_OPT_LINEARS = (
    *_attention("self_attn_layer_norm", "out_proj"),
    Linear("fc1", "mlp.in", "final_layer_norm", "up"),
    Linear("fc2", "mlp.hidden", None, "residual"),
)
OPT = Family(
    blocks="model.decoder.layers",
    linears=_OPT_LINEARS,
    block_norms=("self_attn_layer_norm", "final_layer_norm"),
    embedding="model.decoder.embed_tokens",
    final_norm="model.decoder.final_layer_norm",
    head="lm_head",
    outside=(
        Linear("model.decoder.project_in", "project_in.in", None, "residual"),
        Linear("model.decoder.project_out", "project_out.in", None, "other"),
    ),
    lookups=("model.decoder.embed_positions",),
    norms=Norms("layer"),
    positions="learned",
    key_value_heads=None,
    tied=True,
    variants=(
        (
            "do_layer_norm_before",
            False,
            {
                "linears": tuple(replace(linear, norm=None) for linear in _OPT_LINEARS),
                "norms": Norms("layer", "post"),
                "final_norm": None,
            },
        ),
        ("_remove_final_layer_norm", True, {"final_norm": None}),
    ),
)

BERT = Family(
    blocks="bert.encoder.layer",
    linears=(
        Linear("attention.self.query", "attention.in", None, "query"),
        Linear("attention.self.key", "attention.in", None, "key"),
        Linear("attention.self.value", "attention.in", None, "value"),
        Linear("attention.output.dense", "attention.out", None, "residual"),
        Linear("intermediate.dense", "mlp.in", None, "up"),
        Linear("output.dense", "mlp.hidden", None, "residual"),
    ),
    block_norms=("attention.output.LayerNorm", "output.LayerNorm"),
    embedding="bert.embeddings.word_embeddings",
    final_norm=None,
    head="cls.predictions.decoder",
    prefix="bert",
    outside=(
        Linear("bert.pooler.dense", "pooler.in", None, "other"),
        Linear("cls.predictions.transform.dense", "cls.predictions.in", None, "other"),
        Linear("classifier", "classifier.in", None, "other"),
        Linear("qa_outputs", "qa_outputs.in", None, "other"),
    ),
    lookups=("bert.embeddings.position_embeddings", "bert.embeddings.token_type_embeddings"),
    norms=Norms("layer", "post"),
    positions="learned",
    key_value_heads=None,
    tied=True,
)

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": QWEN3,
    "mixtral": MIXTRAL,
    "qwen2_moe": QWEN2_MOE,
    "qwen3_moe": QWEN3_MOE,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "phi": PHI,
    "phi3": PHI3,
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "opt": OPT,
    "bert": BERT,
}
