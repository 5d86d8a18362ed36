"""What kind of value each key of a config.json holds, by the names of Llama.

A file that was written half, by hand or by another program says `"hidden_size": "64"` or `"layer_types": 3`;
both are refused here by their key, before arithmetic fails on them somewhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from model.pattern import MOST_LAYERS

MOST = 1 << 31
Kind = tuple[Callable[[Any], bool], str]


def _is_integer(value: Any, least: int, most: int = MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, kind) for item in value)


SIZE: Kind = (lambda value: _is_integer(value, 1), "an integer of at least 1")
COUNT: Kind = (lambda value: _is_integer(value, 0), "an integer of at least 0")
LAYERS: Kind = (lambda value: _is_integer(value, 1, MOST_LAYERS), f"an integer within 1 and {MOST_LAYERS}")
NUMBER: Kind = (_is_number, "a positive number")
TRUTH: Kind = (lambda value: isinstance(value, bool), "true or false")
TEXT: Kind = (lambda value: isinstance(value, str), "a text")
ENTRIES: Kind = (lambda value: isinstance(value, Mapping), "an object of keys and values")


def or_null(kind: Kind) -> Kind:
    return (lambda value: value is None or kind[0](value)), f"{kind[1]}, or null"


KINDS: dict[str, Kind] = {
    "num_hidden_layers": LAYERS,
    **dict.fromkeys(("vocab_size", "hidden_size", "num_attention_heads", "num_experts"), SIZE),
    **dict.fromkeys(("num_experts_per_tok", "moe_intermediate_size", "kv_lora_rank", "v_head_dim"), SIZE),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "intermediate_size"), SIZE),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "sliding_window", "q_lora_rank"), or_null(SIZE)),
    **dict.fromkeys(("max_window_layers", "first_k_dense_replace"), COUNT),
    **dict.fromkeys(("rms_norm_eps", "initializer_range", "rope_theta", "rope_local_base_freq"), NUMBER),
    **dict.fromkeys(("query_pre_attn_scalar",), NUMBER),
    **dict.fromkeys(("final_logit_softcapping", "partial_rotary_factor"), or_null(NUMBER)),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), TRUTH),
    "hidden_act": TEXT,
    "sliding_window_pattern": (lambda value: SIZE[0](value) or TEXT[0](value), "an integer of at least 1, or a text"),
    "mlp_only_layers": or_null((lambda value: _is_list(value, int), "a list of integers")),
    "layer_types": or_null((lambda value: _is_list(value, str), "a list of texts")),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "full_attention", "sliding_attention"), or_null(ENTRIES)),
    # within the entry of a rotary embedding
    "rope_type": TEXT,
    "factor": or_null(NUMBER),
    "attention_factor": or_null(NUMBER),
    "original_max_position_embeddings": or_null(SIZE),
    "max_position_embeddings": or_null(SIZE),
}
MAY_BE_NULL = {"gpt2": ("intermediate_size",)}  # 4 * hidden_size there


def problem_with(model_type: str, key: str, value: Any) -> str | None:
    """Why a key of Llama's names cannot have this value, or None."""
    kind = KINDS.get(key)
    if kind and key in MAY_BE_NULL.get(model_type, ()):
        kind = or_null(kind)
    if kind is None or kind[0](value):
        return None
    found = "null" if value is None else repr(value)
    return f"is {found}; it must be {kind[1]}"
