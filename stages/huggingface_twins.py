"""The decoders of transformers that ours can be, and which of them a config is. Data alone, no torch.

    Llama        the plain decoder, also with biases          Ministral    with windows in some layers
    Mistral      with a window in every layer, or with heads that do not divide the width
    Qwen3        normed queries and keys                      Exaone4      the same, norms behind the branches
    Olmo2        normed whole queries and keys, norms behind  Olmo3        with windows
    Gemma2       norms before and behind each branch          Gemma3       with normed queries and keys
    Mixtral      experts                                      Qwen3Moe     experts, normed queries and keys
    DeepseekV3   latent attention in every layer              GPT2         LayerNorm, learned positions, no gate

A config is a twin if both compute the same function. Examples: `layer_pattern: swa*3,full` with no sinks and
head QK-norm is a Qwen3; with sinks it is nobody's, and is exported with our own code. `qk_norm_gain:
false` is a Qwen3 with gains of one. `fused_qkv` and dropout change no function and so decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from model.config import ModelConfig

SILU_OR_GELU = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu"}
GPT2_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu2": "relu2"}
EXPERT_MULTIPLE = 8  # its grouped product refuses matrices whose rows are no whole 16 bytes, 8 numbers in bf16
LATENT_NORM_EPS = 1e-6  # of the norms within DeepseekV3's attention, whatever its config says


@dataclass(frozen=True)
class Architecture:
    """A decoder of transformers, and the params that make ours its twin.

    Attributes:
        qk_norm: head, full, or empty for none.
        besides: what else chooses it, in words.
        windows: none has them, all layers or none, or each layer as it likes.
        biases: the values of `model.bias` that it has.
        activations: names of its config.json, and our `mlp`; of two for one of ours the first is written.
        keys: names of keys of config.json where they are not Llama's; of several the first is written.
        fixed: keys that must have this value for ours to be its twin.
        defaults: what transformers takes an absent key to be.
    """

    model_type: str
    class_name: str
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: str = ""
    besides: str = ""
    norm: str = "rmsnorm"
    positions: str = "rope"
    windows: Literal["none", "all", "each"] = "none"
    latent: bool = False
    experts: bool = False
    leading_dense_layers: bool = False
    biases: tuple[bool, ...] = (False,)
    heads_divide_width: bool = False
    equal_heads: bool = False
    logit_softcap: bool = False
    activations: Mapping[str, str] = field(default_factory=lambda: SILU_OR_GELU)
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        """What in the params chose it, such as `pre_norm and qk_norm (head)`."""
        placed = [name for name in ("pre_norm", "post_norm") if getattr(self, name)]
        queries = [] if self.latent else [f"qk_norm ({self.qk_norm})" if self.qk_norm else "no qk_norm"]
        return " and ".join([*placed, *queries, *([self.besides] if self.besides else [])])

    @property
    def is_gemma(self) -> bool:
        return self.model_type.startswith("gemma")

    @property
    def is_gpt2(self) -> bool:
        return self.model_type == "gpt2"


COMMON = {
    "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "initializer_range": 0.02, "tie_word_embeddings": False, "rope_theta": 10000.0,
}  # fmt: skip
GEMMA = {
    **COMMON, "num_key_value_heads": 4, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "sliding_window": 4096, "attention_bias": False,
}  # fmt: skip
GEMMA_KEYS = {"hidden_act": ("hidden_activation",)}
GEMMA_FIXED = {"attention_bias": False, "attn_logit_softcapping": None, "use_bidirectional_attention": False}
NO_BIAS = {"attention_bias": False}
QWEN_WINDOW = {"use_sliding_window": False, "sliding_window": 4096}

LLAMA = Architecture(
    "llama", "LlamaForCausalLM", biases=(False, True), heads_divide_width=True,
    defaults={**COMMON, "attention_bias": False, "mlp_bias": False},
)  # fmt: skip
MISTRAL = Architecture(
    "mistral", "MistralForCausalLM", windows="all",
    besides="windows in all layers or heads that do not divide hidden_size",
    defaults={**COMMON, "num_key_value_heads": 8, "sliding_window": 4096},
)  # fmt: skip
MINISTRAL = Architecture(
    "ministral", "MinistralForCausalLM", windows="each", besides="windows in some layers",
    defaults={**COMMON, "num_key_value_heads": 8, "sliding_window": 4096},
)  # fmt: skip
QWEN3 = Architecture(
    "qwen3", "Qwen3ForCausalLM", qk_norm="head", windows="each", fixed=NO_BIAS,
    defaults={
        **COMMON, **NO_BIAS, **QWEN_WINDOW, "num_key_value_heads": 32, "head_dim": 128, "max_window_layers": 28,
    },
)  # fmt: skip
OLMO2 = Architecture(
    "olmo2", "Olmo2ForCausalLM", False, True, "full", fixed=NO_BIAS,
    defaults={**COMMON, **NO_BIAS, "rms_norm_eps": 1e-5},
)  # fmt: skip
OLMO3 = Architecture(
    "olmo3", "Olmo3ForCausalLM", False, True, "full", windows="each", besides="windows", fixed=NO_BIAS,
    defaults={**COMMON, **NO_BIAS, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "sliding_window": 4096},
)  # fmt: skip
EXAONE4 = Architecture(  # beside windows, its full layers have no positions: so all layers or none
    "exaone4", "Exaone4ForCausalLM", False, True, "head", windows="all",
    defaults={
        **COMMON, "num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4,
    },
)  # fmt: skip
GEMMA2 = Architecture(
    "gemma2", "Gemma2ForCausalLM", True, True, windows="each", heads_divide_width=True, logit_softcap=True,
    keys=GEMMA_KEYS, fixed=GEMMA_FIXED,
    defaults={
        **GEMMA, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "use_bidirectional_attention": None,
    },
)  # fmt: skip
GEMMA3 = Architecture(
    "gemma3_text", "Gemma3ForCausalLM", True, True, "head", windows="each", heads_divide_width=True,
    logit_softcap=True, keys=GEMMA_KEYS, fixed=GEMMA_FIXED,
    defaults={
        **GEMMA, "final_logit_softcapping": None, "attn_logit_softcapping": None, "use_bidirectional_attention": False,
        "sliding_window_pattern": 6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
    },
)  # fmt: skip
MIXTRAL = Architecture(
    "mixtral", "MixtralForCausalLM", windows="all", experts=True, besides="experts",
    keys={"num_experts": ("num_local_experts", "num_experts")},
    defaults={
        **COMMON, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None,
        "num_experts": 8, "num_experts_per_tok": 2,
    },
)  # fmt: skip
QWEN3_MOE = Architecture(
    "qwen3_moe", "Qwen3MoeForCausalLM", qk_norm="head", windows="all", experts=True, leading_dense_layers=True,
    besides="experts", keys={"num_experts": ("num_experts", "num_local_experts")},
    fixed={**NO_BIAS, "norm_topk_prob": True, "decoder_sparse_step": 1},
    defaults={
        **COMMON, **NO_BIAS, **QWEN_WINDOW, "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 768, "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": None,
    },
)  # fmt: skip
DEEPSEEK_V3 = Architecture(
    "deepseek_v3", "DeepseekV3ForCausalLM", latent=True, besides="latent attention (mla)",
    fixed=NO_BIAS,
    defaults={
        **COMMON, **NO_BIAS, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "first_k_dense_replace": 3,
        "rope_interleave": True,
    },
)  # fmt: skip
GPT2 = Architecture(
    "gpt2", "GPT2LMHeadModel", norm="layernorm", positions="learned", besides="layernorm and learned positions",
    biases=(True,), heads_divide_width=True, equal_heads=True, activations=GPT2_ACTIVATIONS,
    keys={
        "hidden_size": ("n_embd",), "num_hidden_layers": ("n_layer",), "num_attention_heads": ("n_head",),
        "intermediate_size": ("n_inner",), "max_position_embeddings": ("n_positions",),
        "hidden_act": ("activation_function",), "rms_norm_eps": ("layer_norm_epsilon",),
    },
    fixed={
        "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    defaults={
        "intermediate_size": None, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "initializer_range": 0.02,
        "tie_word_embeddings": True, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False, "add_cross_attention": False,
    },
)  # fmt: skip

# The first that fits is the twin: Llama before Mistral before Ministral, Olmo2 before Olmo3.
ARCHITECTURES = {
    a.model_type: a
    for a in (
        LLAMA, MISTRAL, MINISTRAL, QWEN3, OLMO2, OLMO3, EXAONE4, GEMMA2, GEMMA3, MIXTRAL, QWEN3_MOE, DEEPSEEK_V3, GPT2,
    )
}  # fmt: skip


def twin_of(config: ModelConfig) -> Architecture | None:
    """The decoder of transformers that computes the same function, or None if there is none."""
    if config.n_experts and (config.hidden_size % EXPERT_MULTIPLE or config.width_of_expert % EXPERT_MULTIPLE):
        return None
    return next((architecture for architecture in ARCHITECTURES.values() if fits(architecture, config)), None)


def fits(architecture: Architecture, config: ModelConfig) -> bool:
    """Whether this decoder of transformers computes the same function as ours."""
    return (
        (architecture.pre_norm, architecture.post_norm) == (config.pre_norm, config.post_norm)
        and architecture.norm == config.norm
        and architecture.positions == config.positions
        and config.bias in architecture.biases
        and config.mlp in architecture.activations.values()
        and (architecture.logit_softcap or not config.logit_softcap)
        and _attention_fits(architecture, config)
        and _experts_fit(architecture, config)
    )


def _attention_fits(architecture: Architecture, config: ModelConfig) -> bool:
    kinds = set(config.kinds)
    if architecture.latent:
        return kinds == {"mla"} and config.norm_eps == LATENT_NORM_EPS
    whole = config.n_heads * config.width_of_head == config.hidden_size and config.n_heads == config.n_kv_heads
    return (
        architecture.qk_norm == (config.qk_norm_scope if config.qk_norm else "")
        and (kinds == {"full"} or _windows_fit(architecture, config, kinds))
        and not (architecture.heads_divide_width and config.hidden_size % config.n_heads)
        and (whole or not architecture.equal_heads)
    )


def _windows_fit(architecture: Architecture, config: ModelConfig, kinds: set[str]) -> bool:
    allowed = {"none": 0, "all": 1, "each": 2}[architecture.windows]
    return kinds <= {"full", "swa"} and len(kinds) <= allowed and config.sink_tokens == 0


def _experts_fit(architecture: Architecture, config: ModelConfig) -> bool:
    if not config.n_experts:
        return not architecture.experts
    leading = architecture.leading_dense_layers or not config.dense_layers
    return architecture.experts and leading and not config.n_shared_experts
