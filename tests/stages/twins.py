"""Our decoders and those of transformers that the tests of stages/huggingface*.py go through, and their making."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from model.config import ModelConfig
from model.decoder import Decoder
from stages.huggingface import to_huggingface

TOKEN_IDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
VOCAB_SIZE, CONTEXT_LENGTH, WINDOW = 151, 48, 7
TOLERANCE = 1e-5

LLAMA = {"qk_norm": False}
OLMO = {"pre_norm": False, "post_norm": True, "qk_norm_scope": "full"}
EXAONE = {"pre_norm": False, "post_norm": True}
WINDOWS = {"window": WINDOW, "sink_tokens": 0}
UNEVEN = {"hidden_size": 50, "n_heads": 3, "n_kv_heads": 1, "head_dim": 14}
EXPERTS = {"n_experts": 5, "experts_per_token": 2, "intermediate_size": 48}
LATENT = {
    "layer_pattern": "mla", "kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
}  # fmt: skip
GPT2 = {
    "norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True, "qk_norm": False,
    "n_heads": 4, "n_kv_heads": 4,
}  # fmt: skip
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 16}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_length": 32}

# Ours, and the twin it must be.
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "llama, linear": ("llama", {**LLAMA, "rope_scaling": "linear", "rope_factor": 3.0}),
    "llama, ntk": ("llama", {**LLAMA, "rope_scaling": "ntk", "rope_factor": 4.0}),
    "llama, yarn": ("llama", {**LLAMA, **YARN}),
    "llama, llama3": ("llama", {**LLAMA, **LLAMA3}),
    "llama, biases": ("llama", {**LLAMA, "bias": True}),
    "llama, fused": ("llama", {**LLAMA, "fused_qkv": True, "bias": True}),
    "llama, geglu": ("llama", {**LLAMA, "mlp": "geglu"}),
    "mistral, uneven heads": ("mistral", {**LLAMA, **UNEVEN}),
    "mistral, window": ("mistral", {**LLAMA, **WINDOWS, "layer_pattern": "swa"}),
    "ministral": ("ministral", {**LLAMA, **WINDOWS, "layer_pattern": "swa*2,full", "n_layers": 4}),
    "qwen3": ("qwen3", {}),
    "qwen3, no gain, fused": ("qwen3", {"qk_norm_gain": False, "fused_qkv": True}),
    "qwen3, windows": ("qwen3", {**WINDOWS, "layer_pattern": "full,swa", "n_layers": 3}),
    "qwen3, yarn": ("qwen3", YARN),
    "olmo2": ("olmo2", OLMO),
    "olmo2, no gain": ("olmo2", {**OLMO, "qk_norm_gain": False, **UNEVEN}),
    "olmo3, yarn": ("olmo3", {**OLMO, **WINDOWS, **YARN, "layer_pattern": "swa*3,full", "n_layers": 4}),
    "exaone4": ("exaone4", EXAONE),
    "exaone4, window": ("exaone4", {**EXAONE, **WINDOWS, "layer_pattern": "swa"}),
    "gemma2": ("gemma2", {"post_norm": True, **LLAMA, "logit_softcap": 3.0}),
    "gemma2, windows": ("gemma2", {"post_norm": True, **LLAMA, **WINDOWS, "layer_pattern": "swa,full"}),
    "gemma3": ("gemma3_text", {"post_norm": True, "mlp": "geglu"}),
    "gemma3, no gain": ("gemma3_text", {"post_norm": True, "qk_norm_gain": False, "tie_embeddings": False}),
    "gemma3, windows": (
        "gemma3_text",
        {"post_norm": True, **WINDOWS, **YARN, "layer_pattern": "swa*5,full", "n_layers": 7, "logit_softcap": 5.0},
    ),
    "mixtral": ("mixtral", {**LLAMA, **EXPERTS, "tie_embeddings": False}),
    "mixtral, window, yarn": (
        "mixtral",
        {**LLAMA, **EXPERTS, **WINDOWS, **YARN, "layer_pattern": "swa", "mlp": "geglu", "expert_size": 40},
    ),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "expert_size": 24, "dense_layers": 1, "n_layers": 3}),
    "qwen3_moe, window": ("qwen3_moe", {**EXPERTS, **WINDOWS, "layer_pattern": "swa", "experts_per_token": 5}),
    "deepseek_v3": ("deepseek_v3", LATENT),
    "deepseek_v3, low rank": ("deepseek_v3", {**LATENT, "q_lora_rank": 20, "tie_embeddings": False, "n_kv_heads": 4}),
    "deepseek_v3, yarn": ("deepseek_v3", {**LATENT, **YARN}),
    "deepseek_v3, ntk": ("deepseek_v3", {**LATENT, "rope_scaling": "ntk", "rope_factor": 2.0}),
    "gpt2": ("gpt2", GPT2),
    "gpt2, untied, fused, relu2": (
        "gpt2", {**GPT2, "tie_embeddings": False, "fused_qkv": True, "mlp": "relu2", "intermediate_size": 72},
    ),
}  # fmt: skip

SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2}
SMALL = {**GROUPED, "head_dim": 16}
GEMMA = {
    **SMALL, "hidden_activation": "gelu", "query_pre_attn_scalar": 16, "attn_logit_softcapping": None,
    "sliding_window": WINDOW,
}  # fmt: skip
LATENT_SIZES = {
    "kv_lora_rank": 24, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "num_key_value_heads": 4,
    "first_k_dense_replace": 2,
}  # fmt: skip
MOE_SIZES = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}

# Theirs, as transformers' own configuration classes take them; the first word is the model_type.
THEIRS: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "tie_word_embeddings": True},
    "llama heads": {**SIZES, "head_dim": 10, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-5},
    "llama linear": {**GROUPED, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
    "llama yarn": {
        **GROUPED,
        "rope_parameters": {
            "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16,
        },
    },
    "llama llama3": {
        **GROUPED,
        "rope_parameters": {
            "rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "original_max_position_embeddings": 32,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        },
    },
    "mistral": {**GROUPED, "sliding_window": WINDOW},
    "mistral full": {**GROUPED, "sliding_window": None, "hidden_act": "gelu"},
    "ministral": {
        **SMALL, "sliding_window": WINDOW, "num_hidden_layers": 3,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    },
    "qwen3": {**SMALL, "tie_word_embeddings": True},
    "qwen3 windows": {**SMALL, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, "num_hidden_layers": 5, "sliding_window": WINDOW},
    "exaone4": {**GROUPED, "sliding_window": None, "layer_types": ["full_attention"] * 2},
    "exaone4 window": {**GROUPED, "sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 2},
    "gemma2": {**GEMMA, "num_hidden_layers": 3, "final_logit_softcapping": 3.0},
    "gemma3_text": {
        **GEMMA, "num_hidden_layers": 7,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "gemma3_text untied": {**GEMMA, "hidden_activation": "silu", "num_hidden_layers": 2, "tie_word_embeddings": False},
    "mixtral": {**GROUPED, "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 12},
    "mixtral window": {**GROUPED, "num_local_experts": 3, "sliding_window": WINDOW, "tie_word_embeddings": True},
    "qwen3_moe": {**GROUPED, **MOE_SIZES, "mlp_only_layers": [0]},
    "qwen3_moe window": {**GROUPED, **MOE_SIZES, "use_sliding_window": True, "sliding_window": WINDOW},
    "deepseek_v3": {**SIZES, **LATENT_SIZES, "q_lora_rank": None},
    "deepseek_v3 halves": {**SIZES, **LATENT_SIZES, "q_lora_rank": None, "rope_interleave": False},
    "deepseek_v3 low": {**SIZES, **LATENT_SIZES, "q_lora_rank": 20, "tie_word_embeddings": True},
    "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": CONTEXT_LENGTH},
    "gpt2 untied": {
        "n_layer": 2, "n_embd": 64, "n_head": 8, "n_positions": CONTEXT_LENGTH, "n_inner": 72,
        "tie_word_embeddings": False,
    },
}  # fmt: skip

# As they stand on the hub, but for the keys that say nothing about the function, and in the form of transformers 4.
HUB: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama-2-7b": (
        {
            "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "initializer_range": 0.02, "pretraining_tp": 1,
            "rope_scaling": None, "tie_word_embeddings": False, "torch_dtype": "float16",
        },
        {"n_layers": 32, "n_kv_heads": 32, "head_dim": 128, "rope_theta": 1e4, "qk_norm": False, "norm_eps": 1e-5},
    ),
    "Llama-3.1-8B": (
        {
            "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "initializer_range": 0.02,
            "attention_bias": False, "mlp_bias": False, "rope_theta": 500000.0, "tie_word_embeddings": False,
            "rope_scaling": {
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
        },
        {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_length": 8192, "rope_theta": 5e5, "bias": False},
    ),
    "Mistral-7B-v0.1": (
        {
            "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
            "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "initializer_range": 0.02, "rope_theta": 10000.0,
            "sliding_window": 4096, "tie_word_embeddings": False,
        },
        {"layer_pattern": "swa", "window": 4096, "sink_tokens": 0, "n_kv_heads": 8},
    ),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
            "hidden_act": "silu", "max_position_embeddings": 40960, "max_window_layers": 28, "rms_norm_eps": 1e-6,
            "attention_bias": False, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
            "use_sliding_window": False, "tie_word_embeddings": True,
        },
        {"qk_norm": True, "head_dim": 128, "layer_pattern": "full", "sink_tokens": 4, "rope_theta": 1000000},
    ),
    "Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
            "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
            "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "decoder_sparse_step": 1,
            "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True, "num_experts": 128,
            "num_experts_per_tok": 8, "sliding_window": None, "use_sliding_window": False, "max_window_layers": 48,
        },
        {"n_experts": 128, "experts_per_token": 8, "expert_size": 768, "tie_embeddings": False, "dense_layers": 0},
    ),
    "Mixtral-8x7B": (
        {
            "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
            "num_local_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
            "sliding_window": None, "router_aux_loss_coef": 0.02, "tie_word_embeddings": False,
        },
        {"n_experts": 8, "layer_pattern": "full", "intermediate_size": 14336, "rope_theta": 1e6},
    ),
    "OLMo-2-1124-7B": (
        {
            "model_type": "olmo2", "vocab_size": 100352, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu",
            "attention_bias": False, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 500000,
            "tie_word_embeddings": False,
        },
        {"pre_norm": False, "post_norm": True, "qk_norm_scope": "full"},
    ),
    "gpt2": (
        {
            "model_type": "gpt2", "activation_function": "gelu_new", "attn_pdrop": 0.1, "embd_pdrop": 0.1,
            "resid_pdrop": 0.1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-5, "n_ctx": 1024, "n_embd": 768,
            "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257, "bos_token_id": 50256,
        },
        {"norm": "layernorm", "positions": "learned", "n_heads": 12, "intermediate_size": 3072, "bias": True},
    ),
}  # fmt: skip


def ours_of(changes: dict[str, Any]) -> ModelConfig:
    sizes = {"n_layers": 2, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 2}
    return ModelConfig(**{**sizes, **changes})


def drawn(module: torch.nn.Module, gain: float = 1.0, seed: int = 0) -> Any:
    """Weights, gains and biases included, that no error can hide behind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            is_gain = parameter.ndim == 1 and not name.endswith("bias")
            scale = 0.1 if parameter.ndim > 1 else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + is_gain * gain)
    return module.eval()


def decoder(config: ModelConfig, weights: dict[str, Any] | None = None, vocab_size: int = VOCAB_SIZE) -> Decoder:
    made = Decoder(config, vocab_size, CONTEXT_LENGTH)
    if weights is None:
        return drawn(made)
    made.load_state_dict(weights)
    return made.eval()


def their_model(case: str, **changes: Any) -> Any:
    """A model of transformers with random weights; the Gemmas' gains are 1 + weight."""
    model_type = case.split()[0]
    sizes = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": CONTEXT_LENGTH}
    settings = {**sizes, **TOKEN_IDS, **THEIRS[case], **changes}
    config = AutoConfig.for_model(model_type, **settings)
    attention = "eager" if "gemma2" in case else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return drawn(model, gain=0.0 if "gemma" in case else 1.0)


def exported(made: Decoder) -> tuple[dict[str, Any], dict[str, Any]]:
    return to_huggingface(made.state_dict(), made.config, VOCAB_SIZE, CONTEXT_LENGTH, TOKEN_IDS)


def loaded(settings: dict[str, Any], weights: dict[str, Any]) -> Any:
    """The model of transformers with these very tensors and no others."""
    rest = dict(settings)
    config = AutoConfig.for_model(rest.pop("model_type"), **rest)
    attention = "eager" if config.model_type == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    absent, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown and absent == (["lm_head.weight"] if config.tie_word_embeddings else [])
    model.tie_weights()
    assert type(model).__name__ == settings["architectures"][0]
    return model


def difference(ours: Decoder, theirs: Any) -> float:
    """Of logits, at every position, of rows several windows long."""
    inputs = torch.randint(VOCAB_SIZE, (2, CONTEXT_LENGTH), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        a, b = ours(inputs), theirs(inputs, use_cache=False).logits
    assert a.shape == b.shape == (2, CONTEXT_LENGTH, VOCAB_SIZE)
    assert a.std() > 0.3
    return float((a - b).abs().max())


def saved(model: Any, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What transformers writes, and from_huggingface reads: config.json and model.safetensors."""
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
