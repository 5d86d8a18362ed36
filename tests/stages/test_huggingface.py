"""Our decoder and its twin in transformers compute the same logits, whichever of them the weights come from.

`pytest tests/stages/test_huggingface.py -o junit_family=xunit1 --junitxml=FILE` records the largest difference
of every case.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import stages
from model.config import ModelConfig
from model.decoder import Decoder
from stages.errors import BadInput
from stages.huggingface import architecture_of, from_huggingface, to_huggingface
from stages.huggingface_config import config_of, contract
from stages.huggingface_twins import ARCHITECTURES, twin_of

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
    "first_k_dense_replace": 2, "rope_interleave": False,
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
    "deepseek_v3 low": {**SIZES, **LATENT_SIZES, "q_lora_rank": 20, "tie_word_embeddings": True},
    "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": CONTEXT_LENGTH},
    "gpt2 untied": {
        "n_layer": 2, "n_embd": 64, "n_head": 8, "n_positions": CONTEXT_LENGTH, "n_inner": 72,
        "tie_word_embeddings": False,
    },
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


@pytest.mark.parametrize("case", OURS)
def test_ours_becomes_a_model_of_transformers(case: str, record_property: Callable[[str, object], None]) -> None:
    model_type, changes = OURS[case]
    made = decoder(ours_of(changes))
    settings, weights = exported(made)
    assert settings["model_type"] == model_type == architecture_of(made.config).model_type
    largest = difference(made, loaded(settings, weights))
    record_property("difference", largest)
    assert largest < TOLERANCE


@pytest.mark.parametrize("case", OURS)
def test_and_comes_back_as_the_same_decoder(case: str) -> None:
    made = decoder(ours_of(OURS[case][1]))
    settings, weights = exported(made)
    config, again = from_huggingface(json.loads(json.dumps(settings)), weights)
    ntk = config.rope_theta if made.config.rope_scaling == "ntk" else None
    expected = dataclasses.replace(
        made.config,
        **({"rope_scaling": "none", "rope_factor": 1.0, "rope_theta": ntk} if ntk else {}),
        fused_qkv=False,
        qk_norm_gain=True,
        layer_pattern=config.layer_pattern,
    )
    assert config.kinds == made.config.kinds
    assert config.width_of_head == expected.width_of_head
    assert (config.width_of_expert if config.n_experts else config.width_of_mlp) == (
        expected.width_of_expert if config.n_experts else expected.width_of_mlp
    )
    free = {"head_dim", "intermediate_size", "expert_size"}  # compared above
    free |= {"n_kv_heads"} if "mla" in config.kinds else set()  # not read there
    free |= set() if config.qk_norm else {"qk_norm_scope"}
    found, wanted = dataclasses.asdict(config), dataclasses.asdict(expected)
    assert [key for key in found if key not in free and found[key] != wanted[key]] == []
    returned = decoder(config, again)
    inputs = torch.arange(CONTEXT_LENGTH)[None]
    with torch.no_grad():
        assert torch.allclose(returned(inputs), made(inputs), atol=1e-6 if "gemma" not in case else TOLERANCE)


@pytest.mark.parametrize("case", THEIRS)
def test_a_folder_of_transformers_becomes_ours_and_is_written_back(
    case: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    theirs = their_model(case)
    settings, weights = saved(theirs, tmp_path / "theirs")
    config, ours = from_huggingface(settings, weights)
    made = decoder(config, ours)
    largest = difference(made, theirs)
    record_property("difference", largest)
    assert largest < TOLERANCE

    again, tensors = exported(made)
    memory = theirs.state_dict()
    for name, tensor in tensors.items():
        if "gemma" in case:  # gains and embeddings are computed, so they may differ by their rounding
            assert torch.allclose(tensor, memory[name], rtol=1e-6, atol=1e-6), name
        else:
            assert torch.equal(tensor, memory[name]), name
    assert set(memory) - set(tensors) <= {"lm_head.weight"}
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text(json.dumps(again))
    save_file(tensors, tmp_path / "ours" / "model.safetensors", metadata={"format": "pt"})
    attention = "eager" if "gemma2" in case else "sdpa"
    opened, loading = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation=attention
    )
    assert not any(loading.values()), loading
    assert difference(made, opened) < TOLERANCE


@pytest.mark.parametrize("case", ["llama, fused", "qwen3, no gain, fused", "gemma2", "qwen3_moe", "gpt2"])
def test_arrays_of_numpy_are_exported_to_the_same_file_as_tensors(case: str, tmp_path: Path) -> None:
    made = decoder(ours_of(OURS[case][1]))
    save_file(made.state_dict(), tmp_path / "checkpoint.safetensors")
    arrays = load_arrays(tmp_path / "checkpoint.safetensors")
    _, from_arrays = to_huggingface(arrays, made.config, VOCAB_SIZE, CONTEXT_LENGTH, TOKEN_IDS)
    save_arrays(from_arrays, tmp_path / "arrays.safetensors")
    save_file(exported(made)[1], tmp_path / "tensors.safetensors")
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("arrays", "tensors"))
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_files_of_gpt2_on_the_hub_have_masks_and_no_first_name() -> None:
    theirs = their_model("gpt2")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in theirs.state_dict().items()}
    del weights["lm_head.weight"]
    for layer in range(2):
        weights[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 48, 48).tril()
        weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    settings = {"model_type": "gpt2", "vocab_size": VOCAB_SIZE, "n_ctx": 48, **THEIRS["gpt2"]}
    config, ours = from_huggingface(settings, weights)
    assert config.norm_eps == 1e-5 and config.tie_embeddings and config.mlp == "gelu"
    assert ours["position_embedding.weight"].shape == (CONTEXT_LENGTH, 64)
    assert difference(decoder(config, ours), theirs) < TOLERANCE


@pytest.mark.parametrize(
    ("case", "folder", "parts"),
    [("mixtral", "block_sparse_moe", ("w1", "w3", "w2")), ("qwen3_moe", "mlp", ("gate_proj", "up_proj", "down_proj"))],
)
def test_the_files_of_experts_on_the_hub_hold_each_by_itself(case: str, folder: str, parts: tuple[str, ...]) -> None:
    theirs = their_model(case)
    weights = {}
    for name, tensor in theirs.state_dict().items():
        block = name.rpartition("mlp.experts")[0] + folder
        if name.endswith("experts.gate_up_proj"):
            for expert, (gate, up) in enumerate(matrix.chunk(2) for matrix in tensor):
                weights[f"{block}.experts.{expert}.{parts[0]}.weight"] = gate
                weights[f"{block}.experts.{expert}.{parts[1]}.weight"] = up
        elif name.endswith("experts.down_proj"):
            weights |= {f"{block}.experts.{e}.{parts[2]}.weight": matrix for e, matrix in enumerate(tensor)}
        else:
            weights[name.replace("mlp.gate.weight", f"{folder}.gate.weight")] = tensor
    settings = json.loads(json.dumps(theirs.config.to_dict()))
    config, ours = from_huggingface(settings, weights)
    assert torch.equal(ours["blocks.1.mlp.load"], torch.full((5,), 0.2))
    assert difference(decoder(config, ours), theirs) < TOLERANCE

    lost = f"model.layers.1.{folder}.experts.3.{parts[1]}.weight"
    with pytest.raises(BadInput, match=lost):
        from_huggingface(settings, {name: tensor for name, tensor in weights.items() if name != lost})
    extra = f"model.layers.1.{folder}.experts.5.{parts[1]}.weight"
    with pytest.raises(BadInput, match=extra):
        from_huggingface(settings, {**weights, extra: weights[lost]})


def test_weights_in_bf16_become_fp32_of_the_same_values() -> None:
    theirs = their_model("llama")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(weights)  # rounded
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)  # as in files of old
    config, ours = from_huggingface(theirs.config.to_dict(), weights)
    assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
    assert difference(decoder(config, ours), theirs) < TOLERANCE


def test_rows_beyond_the_vocabulary_are_padding() -> None:
    made = decoder(ours_of({"tie_embeddings": False}))
    assert len(made.embedding.weight) == 256
    settings, theirs = exported(made)
    assert theirs["model.embed_tokens.weight"].shape == theirs["lm_head.weight"].shape == (VOCAB_SIZE, 64)
    _, ours = from_huggingface(settings, theirs)
    assert ours["embedding.weight"].shape == (256, 64) and not ours["embedding.weight"][VOCAB_SIZE:].any()
    with pytest.raises(
        BadInput, match=r"model\.embed_tokens\.weight is \[151, 64\]; by config\.json it is \[150, 64\]"
    ):
        from_huggingface({**settings, "vocab_size": 150}, theirs)


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
        ("deepseek_v3", {"rope_interleave": ...}, "rope_interleave is True"),
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


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.q_norm.weight"])
def test_a_missing_or_unknown_tensor_is_named(name: str) -> None:
    settings, weights = exported(decoder(ours_of({})))
    with pytest.raises(BadInput, match=f"{name} is missing"):
        from_huggingface(settings, {key: value for key, value in weights.items() if key != name})
    with pytest.raises(BadInput, match="q_proj.bias is missing or has no place in Qwen3ForCausalLM"):
        from_huggingface(settings, {**weights, "model.layers.0.self_attn.q_proj.bias": torch.ones(64)})


@pytest.mark.parametrize("pattern", ["full", "swa*5+full", "swa+full*2+swa", "mla*2+swa", "full+swa"])
def test_a_pattern_is_written_short(pattern: str) -> None:
    assert contract(ModelConfig(n_layers=13, layer_pattern=pattern).kinds) == pattern


def test_no_module_imports_torch_or_transformers() -> None:
    for path in Path(stages.__file__).parent.glob("huggingface*.py"):
        tree = ast.parse(path.read_text())
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        assert not {str(name).split(".")[0] for name in imported} & {"torch", "transformers", "numpy"}
