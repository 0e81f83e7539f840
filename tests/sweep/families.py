"""Every family that transformers knows as a causal language model, made tiny by rules that hold for all of them.

A family's configuration is its default one with the sizes of `SIZES` wherever it has a field of that name; `OWN` adds
what single families need besides. Windows and chunks are shorter than the documents of the sweep, so that a path that
forgets them shows it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

# Fields of configurations and their tiny values.
SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Windows.
    "sliding_window": 24,
    "attention_chunk_size": 24,
    "attention_window_size": 24,
    "window_size": 24,
    "local_attention": 24,
    # Mixtures of experts.
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "num_zero_experts": 1,
    "zero_expert_num": 1,
    "first_k_dense_replace": 1,
    # Latent attention.
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "o_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "index_topk": 128,
    "index_head_dim": 16,
    "index_n_heads": 2,
    # State-space models and linear attention.
    "state_size": 8,
    "mamba_d_state": 8,
    "ssm_state_size": 8,
    "mamba_n_heads": 4,
    "mamba_num_heads": 4,
    "mamba_d_head": 32,
    "mamba_head_dim": 32,
    "mamba_d_ssm": 128,
    "mamba_chunk_size": 16,
    "mamba_n_groups": 1,
    "mamba_dt_rank": 4,
    "time_step_rank": 4,
    "chunk_size": 16,
    "block_size": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_head_dim": 16,
    "lru_width": 64,
    # Older names.
    "n_embd": 64,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 2,
    "n_head": 4,
    "n_heads": 4,
    "n_positions": 512,
    "max_seq_len": 512,
    "n_inner": 96,
    "d_model": 64,
    "d_inner": 96,
    "ffn_dim": 96,
    "ffn_hidden_size": 96,
    "dff": 96,
    "emb_dim": 64,
    "embedding_size": 64,
    "embedding_dim": 64,
    "attention_hidden_size": 64,
    "decoder_layers": 2,
    "encoder_layers": 2,
    "decoder_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "encoder_ffn_dim": 96,
    "kv_channels": 16,
    "num_kv_heads": 2,
    "rotary_dim": 8,
    "vocab_size_per_layer_input": 300,
    "hidden_size_per_layer_input": 16,
    "query_pre_attn_scalar": 16,
    # No randomness in the comparison.
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "dropout": 0.0,
    "activation_dropout": 0.0,
    "residual_dropout": 0.0,
    "embed_dropout": 0.0,
    "resid_dropout": 0.0,
    "summary_first_dropout": 0.0,
}

# What a family needs beside them; None takes a field of SIZES out again.
OWN: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")
        },
    },
    "cpmant": {"dim_ff": 96, "dim_head": 16},
    "dots1": {"n_shared_experts": 1},
    "ernie4_5_moe": {"moe_k": 2, "moe_num_shared_experts": 1},
    "kimi_linear": {"num_experts_per_token": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gemma3": {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        "mm_tokens_per_image": 4,
    },
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "laurel_rank": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "nemotron_h": {"n_groups": 1},
    "qwen2": {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2_moe": {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3": {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3_moe": {"use_sliding_window": True},
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [16, 32]},
    "roc_bert": {"shape_vocab_size": 16, "pronunciation_vocab_size": 16},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 6,
        "layer_types": ["mamba", "mamba", "hybrid"] * 2,
        "n_mamba_heads": 1,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zaya": {"num_experts_per_tok": 1},
}

# Configurations inside others that are made tiny too.
_INSIDE = ("text_config", "vision_config", "audio_config")


def config_of(family: str, **changes: Any) -> Any:
    """The tiny configuration of a family by its model_type, with some fields as given."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    kind = CONFIG_MAPPING[family]
    return kind(**_sizes(kind) | OWN.get(family, {}) | changes)


def _sizes(kind: Any) -> dict[str, Any]:
    """The arguments of a class of configurations, and of those inside it."""
    known = kind().to_dict()
    given = {name: value for name, value in SIZES.items() if name in known}
    if "is_decoder" in known:
        given["is_decoder"] = True
    if "kv_lora_rank" in known:  # latent attention: as many keys as queries, and a head is rotated in part
        given["num_key_value_heads"] = given["num_attention_heads"]
        given |= {"head_dim": given["qk_rope_head_dim"]} if "head_dim" in known else {}
    inner = {name: sub for name, sub in (getattr(kind, "sub_configs", None) or {}).items() if name in _INSIDE}
    return given | {name: _sizes(sub) for name, sub in inner.items() if sub.__name__ != "AutoConfig"}


def build(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """A tiny random fp32 model of a family, no parameter of which is left at its ones or zeros."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_of(family, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model.eval()


def families() -> list[str]:
    """The model types of transformers' causal language models."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
