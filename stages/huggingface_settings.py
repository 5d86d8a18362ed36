"""Our ModelConfig -> config.json of transformers 5, for the architectures of stages/huggingface_twins.py.

Scaling `ntk` is another theta and no more, so it is written as that: 10000 with factor 4 and heads of 64
becomes 41829.6. Windows are written layer by layer where the architecture has `layer_types`. Dropout and
the losses of a router belong to a training, not to the model, and are written as none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.config import ModelConfig
from stages.huggingface_twins import EXAONE4, GEMMA3, LLAMA, OLMO3, Architecture

LAYER_TYPES = {"full_attention": "full", "sliding_attention": "swa"}
YARN: dict[str, float] = {"beta_fast": 32, "beta_slow": 1}
LLAMA3: dict[str, float] = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
SIZES_OF_LATENT = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")


def settings_of(
    architecture: Architecture, config: ModelConfig, vocab_size: int, context_length: int, token_ids: Mapping[str, int]
) -> dict[str, Any]:
    """config.json of the twin, in the form of transformers 5."""
    activations = {our: their for their, our in reversed(list(architecture.activations.items()))}
    settings = {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.width_of_mlp,
        "hidden_act": activations[config.mlp],
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": context_length,
        **({} if architecture.is_gpt2 else _attention(architecture, config, context_length)),
        **(_experts(architecture, config) if architecture.experts else {}),
        **architecture.fixed,
    }
    if architecture is LLAMA:
        settings.update(attention_bias=config.bias, mlp_bias=config.bias)
    if architecture.logit_softcap:
        settings["final_logit_softcapping"] = config.logit_softcap or None
    dropouts = ("resid_pdrop", "embd_pdrop", "attn_pdrop") if architecture.is_gpt2 else ("attention_dropout",)
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "dtype": "float32",
        "vocab_size": vocab_size,
        **{architecture.keys.get(key, (key,))[0]: value for key, value in settings.items()},
        **dict.fromkeys(dropouts, 0.0),
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "use_cache": True,
        **token_ids,
    }


def _attention(architecture: Architecture, config: ModelConfig, context_length: int) -> dict[str, Any]:
    if architecture.latent:
        return {
            "num_key_value_heads": config.n_heads,
            "head_dim": config.qk_rope_head_dim,
            "q_lora_rank": config.q_lora_rank or None,
            **{key: getattr(config, key) for key in SIZES_OF_LATENT},
            "first_k_dense_replace": config.n_layers,
            "num_nextn_predict_layers": 0,
            "rope_interleave": True,
            "rope_parameters": _rotary(config, config.qk_rope_head_dim),
        }
    rotary = _rotary(config, config.width_of_head)
    settings = {
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.width_of_head,
        "rope_parameters": dict.fromkeys(LAYER_TYPES, rotary) if architecture in (GEMMA3, OLMO3) else rotary,
    }
    if architecture.is_gemma:
        settings["query_pre_attn_scalar"] = config.width_of_head
    return settings | _windows(architecture, config, context_length)


def _windows(architecture: Architecture, config: ModelConfig, context_length: int) -> dict[str, Any]:
    if architecture.windows == "none":
        return {}
    windowed = "swa" in config.kinds
    unused = context_length if architecture.is_gemma else None  # the Gemmas make a mask of it that no layer takes
    settings: dict[str, Any] = {"sliding_window": config.window if windowed else unused}
    if "use_sliding_window" in architecture.defaults:
        settings["use_sliding_window"] = windowed
    if architecture.windows == "each" or architecture is EXAONE4:
        names = {our: their for their, our in LAYER_TYPES.items()}
        settings["layer_types"] = [names[kind] for kind in config.kinds]
    return settings


def _experts(architecture: Architecture, config: ModelConfig) -> dict[str, Any]:
    counts = {"num_experts": config.n_experts, "num_experts_per_tok": config.experts_per_token}
    if architecture.leading_dense_layers:
        dense = list(range(config.dense_layers))
        return {**counts, "moe_intermediate_size": config.width_of_expert, "mlp_only_layers": dense}
    return {**counts, "intermediate_size": config.width_of_expert}


def _rotary(config: ModelConfig, width: int) -> dict[str, Any]:
    theta, factor = config.rope_theta, config.rope_factor
    if config.rope_scaling in ("none", "ntk"):
        ntk = config.rope_scaling == "ntk" and width > 2
        return {"rope_type": "default", "rope_theta": theta * factor ** (width / (width - 2)) if ntk else theta}
    rotary: dict[str, Any] = {"rope_type": config.rope_scaling, "rope_theta": theta, "factor": factor}
    if config.rope_scaling == "linear":
        return rotary
    bounds = YARN if config.rope_scaling == "yarn" else LLAMA3
    return {**rotary, **bounds, "original_max_position_embeddings": config.rope_original_length}
