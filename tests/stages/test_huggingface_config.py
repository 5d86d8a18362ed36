"""Which twin a config has, which config a config.json is, and what is refused by its key."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from model.config import ModelConfig
from stages.errors import BadInput
from stages.huggingface import architecture_of
from stages.huggingface_config import config_of, contract
from stages.huggingface_twins import ARCHITECTURES, twin_of
from tests.stages.twins import (
    EXAONE,
    GPT2,
    HUB,
    LLAMA,
    THEIRS,
    UNEVEN,
    VOCAB_SIZE,
    WINDOWS,
    ours_of,
)


@pytest.mark.parametrize("name", HUB)
def test_a_config_of_the_hub_says_what_its_model_is(name: str) -> None:
    given, expected = HUB[name]
    config = config_of(given)
    assert {key: getattr(config, key) for key in expected} == expected
    assert config.kinds == tuple(config.layer_pattern for _ in range(given.get("num_hidden_layers", 12)))


def test_an_absent_key_is_what_transformers_takes_it_to_be() -> None:
    for model_type, architecture in ARCHITECTURES.items():
        theirs = AutoConfig.for_model(model_type)
        for key, value in architecture.defaults.items():
            name = architecture.keys.get(key, (key,))[0]
            if key == "rope_theta":
                rotary = theirs.rope_parameters
                assert rotary.get("full_attention", rotary)["rope_theta"] == value, model_type
            elif key == "rope_local_base_freq":
                assert theirs.rope_parameters["sliding_attention"]["rope_theta"] == value
            elif key == "sliding_window_pattern":
                assert (theirs.layer_types + ["sliding_attention"] * value).index("full_attention") == value - 1
            elif key in ("head_dim", "num_key_value_heads") and value is None:
                assert theirs.to_dict().get(key) in (None, theirs.hidden_size // 32, theirs.num_attention_heads, 64)
            elif key == "sliding_window" and "use_sliding_window" in architecture.defaults:
                assert type(theirs)(use_sliding_window=True).sliding_window == value
            elif key == "mlp_only_layers":
                assert not theirs.mlp_only_layers and not value
            else:
                assert getattr(theirs, name) == value, (model_type, key)


@pytest.mark.parametrize(
    ("changes", "class_name", "reason"),
    [
        ({}, "Qwen3ForCausalLM", "pre_norm and qk_norm (head)"),
        (LLAMA, "LlamaForCausalLM", "pre_norm and no qk_norm"),
        ({"post_norm": True}, "Gemma3ForCausalLM", "pre_norm and post_norm and qk_norm (head)"),
        ({"layer_pattern": "mla"}, "DeepseekV3ForCausalLM", "pre_norm and latent attention (mla)"),
        ({"n_experts": 4}, "Qwen3MoeForCausalLM", "pre_norm and qk_norm (head) and experts"),
    ],
)
def test_the_params_choose_the_twin_and_the_reason_says_how(changes: dict, class_name: str, reason: str) -> None:
    architecture = twin_of(ModelConfig(**changes))
    assert architecture is not None
    assert (architecture.class_name, architecture.reason) == (class_name, reason)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "dyt"},
        {"norm": "layernorm"},
        {"mlp": "relu2"},
        {"mlp": "gelu"},
        {"bias": True},
        {"positions": "none"},
        {"positions": "sinusoidal"},
        {"positions": "learned"},
        {"logit_softcap": 30.0},
        {"qk_norm_scope": "full"},
        {"layer_pattern": "swa"},  # with sinks
        {"layer_pattern": "swa,mla"},
        {"layer_pattern": "full,mla"},
        {"layer_pattern": "model.average.AverageAttention"},
        {"norm": "model.average.Norm"},
        {"layer_pattern": "mla", "norm_eps": 1e-5},  # DeepseekV3's inner norms have 1e-6 whatever its config says
        {"layer_pattern": "mla", "n_experts": 4},
        {"n_experts": 4, "n_shared_experts": 1},
        {"n_experts": 4, "expert_size": 33},  # its grouped products take no such rows
        {**LLAMA, "n_experts": 4, "dense_layers": 1},
        {"n_experts": 4, **WINDOWS, "layer_pattern": "swa,full"},
        {**EXAONE, **WINDOWS, "layer_pattern": "swa,full"},  # Exaone4's full layers would have no positions
        {**EXAONE, "qk_norm": False},
        {**LLAMA, **UNEVEN, "bias": True},
        {**UNEVEN, "post_norm": True},
        {**GPT2, "n_kv_heads": 2},
        {**GPT2, "head_dim": 8},
        {**GPT2, "qk_norm": True},
        {**GPT2, "post_norm": True},
    ],
)
def test_what_transformers_does_not_have_has_no_twin(changes: dict[str, Any]) -> None:
    config = ours_of(changes)
    assert twin_of(config) is None
    with pytest.raises(BadInput, match="no decoder that computes the same"):
        architecture_of(config)


ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("llama", {"model_type": "bloom"}, "model_type is bloom; known are llama"),
        ("llama", {"hidden_size": ...}, "hidden_size is missing"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("llama", {"attention_bias": True}, "mlp_bias is False"),
        ("llama", {"layer_types": ["sliding_attention"] * 2}, "layer_types is"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ("llama", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_type is 'longrope'"),
        ("llama", {"rope_parameters": {**ROPE, "beta_fast": 16}}, "beta_fast is 16; our decoder has 32"),
        ("llama", {"rope_parameters": {**ROPE, "attention_factor": 1.0}}, "attention_factor is 1.0"),
        ("llama", {"rope_parameters": {**ROPE, "mscale_all_dim": 1.0}}, "mscale_all_dim is 1.0"),
        ("llama", {"rope_parameters": {**ROPE, "truncate": False}}, "truncate is False"),
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "llama3"}}, "low_freq_factor is None"),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("qwen3", {"attention_bias": True}, "attention_bias is True"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "layer_types is"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types is"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 2}, "layer_types is"),
        ("mistral", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types is"),
        ("exaone4", {"sliding_window": 8}, "layer_types is"),
        ("exaone4 window", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types is"),
        ("exaone4 window", {"layer_types": ..., "sliding_window_pattern": "LLLG"}, "sliding_window_pattern is 'LLLG'"),
        ("gemma2", {"hidden_activation": ...}, "hidden_activation is 'gelu_pytorch_tanh'"),
        ("gemma2", {"attn_logit_softcapping": ...}, "attn_logit_softcapping is 50.0"),
        ("gemma2", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar is 24"),
        ("gemma2", {"sliding_window": None}, "cannot have these windows"),
        ("gemma3_text", {"rope_parameters": ...}, "rope_parameters are sliding_attention .*10000.* full_attention"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ("qwen3_moe", {"norm_topk_prob": ...}, "norm_topk_prob is False"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers is \[1\]"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1]}, "leaves no layer of 2 with experts"),
        ("deepseek_v3", {"first_k_dense_replace": 1}, "first_k_dense_replace is 1"),
        ("deepseek_v3", {"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "num_key_value_heads is 2"),
        ("gpt2", {"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is False"),
    ],
)
def test_what_our_decoder_does_not_have_is_refused_by_its_key(case: str, changes: dict, message: str) -> None:
    settings = {"model_type": case.split()[0], "vocab_size": VOCAB_SIZE, **THEIRS[case], **changes}
    settings = {key: value for key, value in settings.items() if value is not ...}  # ... leaves it out
    with pytest.raises(BadInput, match=message):
        config_of(settings)


@pytest.mark.parametrize("pattern", ["full", "swa*5+full", "swa+full*2+swa", "mla*2+swa", "full+swa"])
def test_a_pattern_is_written_short(pattern: str) -> None:
    assert contract(ModelConfig(n_layers=13, layer_pattern=pattern).kinds) == pattern
