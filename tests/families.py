"""Every family, tiny and random: what to build, what it says, and tokens for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 64,
    "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
MIXTURE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.1}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
OPT = {"ffn_dim": 64, "word_embed_proj_dim": 48, "init_std": 0.1}


@dataclass(frozen=True)
class Case:
    """A tiny model: its transformers class, what its configuration has beside SIZES, and what has to stay exact."""

    cls: str
    config: dict[str, Any] = field(default_factory=dict)
    exact: tuple[str, ...] = ()


CASES = {
    "llama": Case("LlamaForCausalLM"),
    "mistral": Case("MistralForCausalLM", {"sliding_window": 16}),
    "qwen2": Case("Qwen2ForCausalLM", exact=("model.layers.1.self_attn.q_proj.bias",)),
    "qwen3": Case("Qwen3ForCausalLM", {"tie_word_embeddings": True}, ("model.layers.0.self_attn.q_norm.weight",)),
    "mixtral": Case("MixtralForCausalLM", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen2_moe": Case("Qwen2MoeForCausalLM", {**MIXTURE, "shared_expert_intermediate_size": 40}),
    "qwen3_moe": Case("Qwen3MoeForCausalLM", {**MIXTURE, "mlp_only_layers": [0]}),
    "gemma2": Case("Gemma2ForCausalLM", SLIDING),
    "gemma3_text": Case("Gemma3ForCausalLM", SLIDING),
    "phi": Case("PhiForCausalLM", exact=("lm_head.bias", "model.layers.0.mlp.fc1.bias")),
    "phi3": Case("Phi3ForCausalLM"),
    "gpt2": Case("GPT2LMHeadModel", GPT2, ("transformer.wpe.weight", "transformer.h.0.attn.c_attn.bias")),
    "gpt_neox": Case("GPTNeoXForCausalLM"),
    "opt": Case("OPTForCausalLM", OPT, ("model.decoder.embed_positions.weight",)),
    "bert": Case("BertModel", {}, ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")),
    # Variants of these families.
    "opt, post-norm": Case("OPTForCausalLM", {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "bert with heads": Case("BertForPreTraining"),
    "gpt2 without a head": Case("GPT2Model", GPT2),
    "opt, untied": Case("OPTForCausalLM", {**OPT, "tie_word_embeddings": False}),
    "gpt2, untied": Case("GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": False}),
    "phi, normalized": Case("PhiForCausalLM", {"qk_layernorm": True}),
    # No table: found in the model itself.
    "olmo2": Case("Olmo2ForCausalLM"),
    "gpt_oss": Case("GptOssForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mamba": Case("MambaForCausalLM", {"state_size": 4}, ("backbone.layers.0.mixer.A_log",)),
    "t5": Case("T5ForConditionalGeneration", {"d_model": 48, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 12}),
}  # fmt: skip


def build(case: Case) -> Any:
    """The model, with norms and biases that are not ones and zeros."""
    cls = getattr(transformers, case.cls)
    sizes = {} if "n_embd" in case.config else SIZES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = cls(cls.config_class(**{**sizes, **case.config}))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def output_of(model: Any) -> torch.Tensor:
    """Logits, or the last hidden state."""
    ids = (torch.arange(48) * 7 % VOCABULARY).reshape(2, 24)
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        output = model(input_ids=ids, **more)
    return next(iter(output.values()))


def save_tokens(directory: Path) -> Path:
    """Random token ids [32, 32]."""
    np.save(directory / "tokens.npy", np.random.default_rng(3).integers(0, VOCABULARY, (32, 32)).astype(np.uint16))
    return directory / "tokens.npy"
