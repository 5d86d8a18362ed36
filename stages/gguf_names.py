"""Which models GGUF is written of, and what their parts are called there. Data alone, no gguf and no torch.

    llama       Llama, Mistral without windows, Mixtral        olmo2   Olmo2
    qwen3       Qwen3 (the default)                            gpt2    GPT2
    qwen3moe    Qwen3Moe

Example: `model.layers.0.self_attn.q_proj.weight` of transformers is `blk.0.attn_q.weight`.
"""

from __future__ import annotations

import re
from typing import Any

from model.config import ModelConfig
from stages.huggingface_twins import twin_of
from stages.pretoken_rules import GPT2, GPT4, Rule, rule_of

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen3": "qwen3", "qwen3_moe": "qwen3moe",
    "olmo2": "olmo2", "gpt2": "gpt2",
}  # fmt: skip
SCALINGS = ("none", "linear", "ntk")
# How llama.cpp cuts text. Those of Llama 3 cut as dbrx do, but llama.cpp merges otherwise for them: whole words first.
PRE_TOKENIZERS = {Rule(GPT4, 3): "dbrx", Rule(GPT4, 1): "qwen2", Rule(GPT2, 0): "gpt-2"}

WHOLE = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
}  # fmt: skip
IN_LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
OLMO2 = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
EXPERT = re.compile(r"model\.layers\.(\d+)\.\w+\.experts\.(\d+)\.(\w+)\.weight")  # layer, expert, part
EXPERT_PARTS = {
    "w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
}  # fmt: skip
PLACE = re.compile(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.*)\.(weight|bias)")


def gguf_name(model_type: str, theirs: str) -> str:
    """The name of a tensor of transformers in GGUF; experts apart, whose tensors are joined there."""
    if found := PLACE.fullmatch(theirs):
        layer, part, kind = found.groups()
        names = {**IN_LAYER, **OLMO2} if model_type == "olmo2" else IN_LAYER
        return f"blk.{layer}.{names[part]}.{kind}"
    part, _, kind = theirs.rpartition(".")
    return f"{WHOLE[part]}.{kind}"


def problem_of_model(config: ModelConfig) -> str:
    """Why no GGUF is written of this decoder; empty if it is."""
    twin = twin_of(config)
    if twin is None:
        return "is written of architectures of transformers, and this model is of none (docs/export.md)"
    if twin.model_type not in ARCHITECTURES:
        return f"is written of {', '.join(sorted(set(ARCHITECTURES.values())))}, and this model is a {twin.class_name}"
    if set(config.kinds) != {"full"}:
        return "is written without windows (layer_pattern swa)"
    if config.rope_scaling not in SCALINGS:
        return f"is written with rope_scaling {', '.join(SCALINGS)}, not {config.rope_scaling}"
    if config.mlp not in ("swiglu", "gelu"):
        return f"is written with mlp swiglu (gelu for GPT2), not {config.mlp}"
    if twin.model_type == "qwen3_moe" and config.dense_layers:
        return "is written with experts in every layer; set dense_layers: 0"
    if twin.model_type == "olmo2" and config.n_heads * config.width_of_head != config.hidden_size:
        return "is written of an Olmo2 with heads of hidden_size / n_heads"
    return ""


def problem_of_tokenizer(described: Any) -> str:
    """Why llama.cpp would cut text otherwise than a tokenizer.json; empty if it does the same."""
    model = described["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or described.get("normalizer"):
        return "holds byte-level BPE alone"
    if (rule := rule_of(described["pre_tokenizer"])) not in PRE_TOKENIZERS:
        return f"cuts text as GPT-2, or as Llama 3 with max_digits 3 or 1, not as {rule or 'this tokenizer'}"
    return ""


def problem_of_learned(kind: str, max_digits: int) -> str:
    """The same of one that is still to be learned."""
    if kind != "bpe":
        return f"holds byte-level BPE alone, not tokenizer.type {kind}"
    if Rule(GPT4, max_digits) not in PRE_TOKENIZERS:
        return f"cuts digits in groups of 3 or 1; tokenizer.max_digits is {max_digits}"
    return ""
