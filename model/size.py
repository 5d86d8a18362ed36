"""Counts in closed form, from the config alone: parameters, work per token, bytes of cache per token.

Example: gpt2-124m with layernorm, learned positions, gelu, biases and no qk_norm has 124,475,904
parameters at the vocabulary 50,257 (padded to 50,304) and context 1,024.
"""

from __future__ import annotations

from model.config import GATED, ModelConfig, padded_vocabulary

BYTES_OF_BF16 = 2


def n_parameters(config: ModelConfig, vocab_size: int, context_length: int = 0) -> int:
    """Parameters of `Decoder(config, vocab_size, context_length)`, tied weights counted once.

    Parts of one's own (model/parts.py) are not known here.
    """
    width = config.hidden_size
    n_norms = 1 + 2 * config.n_layers * (config.pre_norm + config.post_norm)
    total = n_norms * norm_parameters(config, width)
    total += padded_vocabulary(vocab_size) * width * (1 if config.tie_embeddings else 2)
    if config.positions == "learned":
        total += context_length * width
    for layer, kind in enumerate(config.kinds):
        total += attention_parameters(config, kind)
        total += expert_parameters(config) if config.has_experts(layer) else mlp_parameters(config)
    return total


def norm_parameters(config: ModelConfig, width: int) -> int:
    return {"rmsnorm": width, "layernorm": 2 * width, "dyt": 2 * width + 1}[config.norm]


def attention_weights(config: ModelConfig, kind: str) -> int:
    """Weights in matrix products of one attention."""
    width, heads = config.hidden_size, config.n_heads
    if kind == "mla":
        nope, rope, value = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        rank, query_rank = config.kv_lora_rank, config.q_lora_rank
        query = (
            (width * query_rank + query_rank * heads * (nope + rope)) if query_rank else width * heads * (nope + rope)
        )
        return query + width * (rank + rope) + rank * heads * (nope + value) + heads * value * width
    queries, keys = heads * config.width_of_head, config.n_kv_heads * config.width_of_head
    return width * (queries + 2 * keys) + queries * width


def attention_parameters(config: ModelConfig, kind: str) -> int:
    """Weights, biases and norms of one attention."""
    width, heads = config.hidden_size, config.n_heads
    total = attention_weights(config, kind)
    if kind == "mla":
        total += config.q_lora_rank + config.kv_lora_rank
        biases = config.q_lora_rank + config.kv_lora_rank + config.qk_rope_head_dim + width
        return total + (biases if config.bias else 0)
    queries, keys = heads * config.width_of_head, config.n_kv_heads * config.width_of_head
    if config.qk_norm and config.qk_norm_gain:
        total += 2 * config.width_of_head if config.qk_norm_scope == "head" else queries + keys
    return total + (queries + 2 * keys + width if config.bias else 0)


def mlp_parameters(config: ModelConfig) -> int:
    width, inner = config.hidden_size, config.width_of_mlp
    gated = config.mlp in GATED
    biases = (2 * inner if gated else inner) + width
    return (3 if gated else 2) * width * inner + (biases if config.bias else 0)


def expert_parameters(config: ModelConfig) -> int:
    each = 3 * config.hidden_size * config.width_of_expert
    return config.n_experts * config.hidden_size + (config.n_experts + config.n_shared_experts) * each


def flops_per_token(config: ModelConfig, vocab_size: int, context_length: int) -> float:
    """Of forward and backward: 6 per weight in a matrix product, and 6 per head width of queries, keys and of
    values for each pair of a query and a key that is computed (Chowdhery et al., 2022).

    Half of the pairs of a full row are in the future and not counted; a window counts its own. Of the
    experts only the chosen ones work. The embedding is a look-up and counts once, as the head.
    """
    weights = padded_vocabulary(vocab_size) * config.hidden_size
    pairs = 0.0
    for layer, kind in enumerate(config.kinds):
        weights += attention_weights(config, kind)
        if config.has_experts(layer):
            each = 3 * config.hidden_size * config.width_of_expert
            weights += config.n_experts * config.hidden_size
            weights += (config.experts_per_token + config.n_shared_experts) * each
        else:
            weights += (3 if config.mlp in GATED else 2) * config.hidden_size * config.width_of_mlp
        widths = 2 * config.width_of_head
        if kind == "mla":
            widths = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        most = min(config.window + config.sink_tokens, context_length) if kind == "swa" else context_length
        reach = most - most * most / (2 * context_length)  # the first queries of a row see fewer
        pairs += 6.0 * config.n_heads * widths * reach
    return 6.0 * weights + pairs


def cache_numbers_per_token(config: ModelConfig, kind: str) -> int:
    """How many numbers a layer remembers of each token that it remembers."""
    if kind == "mla":
        return config.kv_lora_rank + config.qk_rope_head_dim
    return 2 * config.n_kv_heads * config.width_of_head


def summary(config: ModelConfig, parameters: int) -> str:
    """What a model costs, in one line: parameters, and bytes of bf16 that a layer of each kind remembers of a token.

    Example: `7,362,144 parameters; a token in the cache (bf16; twice in fp32, as on CPUs): 384 bytes a full layer, 768
    with MHA`.
    """
    parts = []
    for kind in dict.fromkeys(config.kinds):
        if "." in kind:
            continue  # a part of one's own says itself what it remembers
        bytes_per_token = f"{BYTES_OF_BF16 * cache_numbers_per_token(config, kind):,}"
        window = f" (of the last {config.window} and first {config.sink_tokens} alone)" if kind == "swa" else ""
        parts.append(f"{bytes_per_token} bytes {'an' if kind == 'mla' else 'a'} {kind} layer{window}")
    mha = BYTES_OF_BF16 * 2 * config.n_heads * config.width_of_head
    if not parts:
        return f"{parameters:,} parameters"
    cache = f"{', '.join(parts)}, {mha:,} with MHA"
    return f"{parameters:,} parameters; a token in the cache (bf16; twice in fp32, as on CPUs): {cache}"
