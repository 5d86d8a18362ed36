"""Which tensor of theirs is which of ours, and of what size: names alone, for stages/huggingface_weights.py.

model.layers.0.self_attn.q_proj.weight     attention.query.weight
model.layers.0.mlp.experts.gate_up_proj    mlp.gate and mlp.up, [E, F, C] each, joined to [E, 2F, C]
transformer.h.0.attn.c_attn.weight         query, key and value joined, and transposed: a Conv1D
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from model.config import ModelConfig
from stages.huggingface_twins import Architecture

PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
POST = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
BOTH = {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm", **POST}
QK_NORMS = {"attention.query_norm": "self_attn.q_norm", "attention.key_norm": "self_attn.k_norm"}
ATTENTION = {
    "self_attn.q_proj": ("attention.query",),
    "self_attn.k_proj": ("attention.key",),
    "self_attn.v_proj": ("attention.value",),
    "self_attn.o_proj": ("attention.output",),
}
LATENT = {
    "self_attn.kv_a_proj_with_mqa": ("attention.key_value_down",),
    "self_attn.kv_b_proj": ("attention.key_value_up",),
    "self_attn.o_proj": ("attention.output",),
}
LATENT_QUERY = {"self_attn.q_a_proj": ("attention.query_down",), "self_attn.q_b_proj": ("attention.query_up",)}
LATENT_DIRECT_QUERY = {"self_attn.q_proj": ("attention.query_up",)}
MLP = {"mlp.gate_proj": ("mlp.gate",), "mlp.up_proj": ("mlp.up",), "mlp.down_proj": ("mlp.down",)}
GPT2_MATRICES = {
    "attn.c_attn": ("attention.query", "attention.key", "attention.value"),
    "attn.c_proj": ("attention.output",),
    "mlp.c_fc": ("mlp.up",),
    "mlp.c_proj": ("mlp.down",),
}
GPT2_NORMS = {"attention_norm": "ln_1", "mlp_norm": "ln_2"}


@dataclass(frozen=True)
class Piece:
    """One tensor of theirs: ours, joined along an axis in equal parts, then perhaps transposed."""

    their: str
    ours: tuple[str, ...]
    axis: int = 0
    transposed: bool = False


def pieces_of(architecture: Architecture, config: ModelConfig) -> Iterator[Piece]:
    """Every tensor of the twin."""
    norms = ["weight", "bias"] if architecture.norm == "layernorm" else ["weight"]
    matrices = ["weight", "bias"] if config.bias else ["weight"]
    yield Piece(embedding_of(architecture), ("embedding.weight",))
    if architecture.positions == "learned":
        yield Piece("transformer.wpe.weight", ("position_embedding.weight",))
    for layer in range(config.n_layers):
        our, their = f"blocks.{layer}.", f"{block_of(architecture)}{layer}."
        for our_norm, their_norm in _norms(architecture, config).items():
            for kind in norms:
                yield Piece(f"{their}{their_norm}.{kind}", (f"{our}{our_norm}.{kind}",))
        for name, parts in _matrices(architecture, config, layer).items():
            for kind in matrices:
                transposed = architecture.is_gpt2 and kind == "weight"
                ours = tuple(f"{our}{part}.{kind}" for part in parts)
                yield Piece(f"{their}{name}.{kind}", ours, transposed=transposed)
        if config.has_experts(layer):
            yield Piece(f"{their}mlp.gate.weight", (f"{our}mlp.router.weight",))
            yield Piece(f"{their}mlp.experts.gate_up_proj", (f"{our}mlp.gate", f"{our}mlp.up"), axis=1)
            yield Piece(f"{their}mlp.experts.down_proj", (f"{our}mlp.down",))
    for kind in norms:
        final = "transformer.ln_f" if architecture.is_gpt2 else "model.norm"
        yield Piece(f"{final}.{kind}", (f"final_norm.{kind}",))
    if not config.tie_embeddings:
        yield Piece("lm_head.weight", ("head.weight",))


def block_of(architecture: Architecture) -> str:
    return "transformer.h." if architecture.is_gpt2 else "model.layers."


def embedding_of(architecture: Architecture) -> str:
    return "transformer.wte.weight" if architecture.is_gpt2 else "model.embed_tokens.weight"


def _norms(architecture: Architecture, config: ModelConfig) -> Mapping[str, str]:
    """Our names of the norms of a block, and theirs."""
    if architecture.is_gpt2:
        return GPT2_NORMS
    beside = BOTH if config.pre_norm and config.post_norm else PRE if config.pre_norm else POST
    if architecture.latent:
        query = {"attention.query_norm": "self_attn.q_a_layernorm"} if config.q_lora_rank else {}
        return {**beside, **query, "attention.key_value_norm": "self_attn.kv_a_layernorm"}
    return {**beside, **(QK_NORMS if config.qk_norm else {})}


def _matrices(architecture: Architecture, config: ModelConfig, layer: int) -> Mapping[str, tuple[str, ...]]:
    """Their names of the matrices of a block, and ours."""
    if architecture.is_gpt2:
        return GPT2_MATRICES
    mlp = {} if config.has_experts(layer) else MLP
    if architecture.latent:
        return {**LATENT, **(LATENT_QUERY if config.q_lora_rank else LATENT_DIRECT_QUERY), **mlp}
    return {**ATTENTION, **mlp}


def sizes_of(config: ModelConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """The sizes of our tensors, by their names behind the layer, but for norms of the residual stream."""
    width, inner, expert = config.hidden_size, config.width_of_mlp, config.width_of_expert
    heads, head, latent = config.n_heads, config.width_of_head, "mla" in config.kinds
    nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    queries, keys = heads * head, config.n_kv_heads * head
    matrices = {
        **dict.fromkeys(("embedding", "head"), (vocab_size, width)),
        "attention.query": (queries, width),
        **dict.fromkeys(("attention.key", "attention.value"), (keys, width)),
        "attention.output": (width, heads * value if latent else queries),
        "attention.query_down": (config.q_lora_rank, width),
        "attention.query_up": (heads * (nope + rope), config.q_lora_rank or width),
        "attention.key_value_down": (config.kv_lora_rank + rope, width),
        "attention.key_value_up": (heads * (nope + value), config.kv_lora_rank),
        **dict.fromkeys(("mlp.gate", "mlp.up"), (inner, width)),
        "mlp.down": (width, inner),
        "mlp.router": (config.n_experts, width),
    }
    whole = config.qk_norm_scope == "full"
    return {
        "position_embedding.weight": (0, width),
        **{f"{name}.weight": size for name, size in matrices.items()},
        **{f"{name}.bias": size[:1] for name, size in matrices.items()},
        "attention.query_norm.weight": (config.q_lora_rank if latent else queries if whole else head,),
        "attention.key_norm.weight": (keys if whole else head,),
        "attention.key_value_norm.weight": (config.kv_lora_rank,),
        **dict.fromkeys(("mlp.gate", "mlp.up"), (config.n_experts, expert, width)),
        "mlp.down": (config.n_experts, width, expert),
    }


def size_of(sizes: Mapping[str, tuple[int, ...]], config: ModelConfig, our_name: str) -> tuple[int, ...]:
    return sizes.get(re.sub(r"^blocks\.\d+\.", "", our_name), (config.hidden_size,))
