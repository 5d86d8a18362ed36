"""What a decoder is: sizes, norms, positions, attention, MLP, experts. Data alone, no torch.

Vocabulary and context length are no fields: they come from the packed data. A size of 0 is the one of
`preset`. Names are those of transformers' configurations where there is one.

    ModelConfig(preset="gpt2-124m", norm="layernorm", positions="learned", mlp="gelu", bias=True, qk_norm=False)
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, NamedTuple

from model.pattern import MOST_LAYERS, expand

VOCABULARY_MULTIPLE = 128


class Sizes(NamedTuple):
    """What a preset sets, besides `layer_pattern` (PATTERNS)."""

    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int


PRESETS = {
    "tiny": Sizes(3, 192, 4, 2),
    "gpt2-124m": Sizes(12, 768, 12, 12),
    "d12": Sizes(12, 768, 12, 12),
    "d24": Sizes(24, 1024, 16, 16),
    "d36": Sizes(36, 1280, 20, 20),
    "d48": Sizes(48, 1600, 25, 25),
    "small": Sizes(12, 768, 12, 12),
    "hybrid": Sizes(12, 768, 12, 12),  # small but for its attention
    "base": Sizes(24, 1536, 16, 16),
    "large": Sizes(28, 2048, 16, 16),
    "xl": Sizes(32, 4096, 32, 32),
}
PATTERNS = {"hybrid": "swa*2+mla*1"}  # of presets whose layers are not all `full`
DERIVED = ("head_dim", "intermediate_size", "expert_size")
LARGEST = 1 << 24  # of every other size; beyond it a single matrix fills any memory
GATED = ("swiglu", "geglu")
MLPS = (*GATED, "gelu", "relu2")
NORMS = ("rmsnorm", "layernorm", "dyt")
ATTENTIONS = ("full", "swa", "mla")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The architecture; the same keys as the section `model` of params.yaml, which explains each.

    Raises:
        ValueError: a combination that is no architecture, with the reason.
    """

    preset: str = "tiny"
    n_layers: int = 0
    hidden_size: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0
    head_dim: int = 0  # 0: hidden_size / n_heads
    intermediate_size: int = 0  # 0: 8/3 * hidden_size, rounded up to a multiple of 64; 4 * hidden_size without a gate
    norm: str = "rmsnorm"
    norm_eps: float = 1e-6
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: bool = True
    qk_norm_scope: Literal["head", "full"] = "head"
    qk_norm_gain: bool = True
    positions: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    rope_theta: float = 10000.0
    rope_scaling: Literal["none", "linear", "ntk", "yarn", "llama3"] = "none"
    rope_factor: float = 1.0
    rope_original_length: int = 0
    layer_pattern: str = "auto"  # auto: the preset's
    window: int = 256
    sink_tokens: int = 4
    q_lora_rank: int = 0
    kv_lora_rank: int = 256
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    mlp: str = "swiglu"
    n_experts: int = 0
    experts_per_token: int = 2
    expert_size: int = 0  # 0: the width of the MLP
    n_shared_experts: int = 0
    dense_layers: int = 0
    balance_loss: float = 0.01
    router_z_loss: float = 0.001
    bias: bool = False
    fused_qkv: bool = False
    dropout: float = 0.0
    logit_softcap: float = 0.0
    tie_embeddings: bool = True
    init_std: float = 0.02
    residual_init: Literal["auto", "zero", "scaled", "normal"] = "auto"
    init_sha256: str = ""  # of first weights, which lie wherever execution says

    def __post_init__(self) -> None:
        self._take_sizes()
        self._check_sizes()
        self._check_positions()
        self._check_attention()
        self._check_experts()
        if not (self.pre_norm or self.post_norm):
            raise ValueError("pre_norm and post_norm are both false; a decoder without norms does not train; set one")
        if self.post_norm and self.residual_init == "zero":
            raise ValueError("residual_init: zero: a norm behind a branch of zeros blows its gradient up; use scaled")
        for name in ("norm_eps", "rope_theta", "init_std"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and less than 1")
        if not 0 <= self.logit_softcap < float("inf"):
            raise ValueError(f"logit_softcap is {self.logit_softcap}; it must be positive, or 0 for none")
        object.__setattr__(self, "init_sha256", self.init_sha256.strip().lower())
        if not re.fullmatch("([0-9a-f]{64})?", self.init_sha256):
            raise ValueError(
                f"init_sha256 is {self.init_sha256!r}; it must be the 64 hexadecimal digits of the sha256 of a "
                "model.safetensors, or '' to draw the first weights"
            )

    def _take_sizes(self) -> None:
        if self.preset and self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is unknown; there are {', '.join(PRESETS)}")
        sizes = PRESETS.get(self.preset, Sizes(0, 0, 0, 0))
        for name in Sizes._fields:
            if not getattr(self, name):
                object.__setattr__(self, name, getattr(sizes, name))
        object.__setattr__(self, "layer_pattern", pattern_of(self.layer_pattern, self.preset))

    def _check_sizes(self) -> None:
        for name in Sizes._fields:
            if getattr(self, name) < 1:
                instead = "or 0 for the preset's" if self.preset else "since there is no preset"
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1, {instead}")
        if self.n_layers > MOST_LAYERS:
            raise ValueError(f"n_layers is {self.n_layers}; it must be at most {MOST_LAYERS}")
        for name in DERIVED:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive, or 0 to derive it")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and value > LARGEST:
                raise ValueError(f"{field.name} is {value}; it must be at most {LARGEST}")
        if self.head_dim == 0 and self.hidden_size % self.n_heads and set(self.kinds) != {"mla"}:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of n_heads {self.n_heads}; "
                "change one of them, or set head_dim"
            )
        if self.n_heads % self.n_kv_heads and set(self.kinds) != {"mla"}:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}; set both")

    def _check_positions(self) -> None:
        if self.positions == "rope" and self.width_of_head % 2 and set(self.kinds) != {"mla"}:
            raise ValueError(
                f"head_dim comes to {self.width_of_head}; rotary embedding needs an even one, set head_dim to "
                f"{self.width_of_head + 1}"
            )
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}; sinusoidal positions need an even one")
        if self.rope_original_length and self.rope_scaling not in ("yarn", "llama3"):
            raise ValueError(
                "rope_original_length is read by rope_scaling yarn and llama3 alone; set one of them, or 0"
            )
        if self.rope_theta <= 1:
            raise ValueError(f"rope_theta is {self.rope_theta}; it must be more than 1")
        if self.rope_scaling == "none":
            if self.rope_factor != 1:
                raise ValueError(f"rope_factor is {self.rope_factor} but rope_scaling is none; set one of the kinds")
            return
        if self.positions != "rope":
            raise ValueError(f"rope_scaling is {self.rope_scaling} without positions: rope; set none")
        if not 1 <= self.rope_factor < float("inf"):
            raise ValueError(f"rope_factor is {self.rope_factor}; it must be at least 1")
        if self.rope_scaling in ("yarn", "llama3") and self.rope_original_length < 1:
            raise ValueError(f"rope_scaling {self.rope_scaling} needs rope_original_length, the length before scaling")

    def _check_attention(self) -> None:
        for name, least in (("window", 1), ("sink_tokens", 0), ("q_lora_rank", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if "mla" not in self.kinds:
            return
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; mla needs at least 1")
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim is {self.qk_rope_head_dim}; rotary embedding needs an even one")

    def _check_experts(self) -> None:
        for name, least in (("n_experts", 0), ("n_shared_experts", 0), ("dense_layers", 0), ("experts_per_token", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("balance_loss", "router_z_loss"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a number of at least 0")
        if not self.n_experts:
            for name in ("n_shared_experts", "dense_layers", "expert_size"):
                if getattr(self, name):
                    raise ValueError(f"{name} is {getattr(self, name)} and needs experts; set n_experts, or this to 0")
            return
        if self.experts_per_token > self.n_experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token}, not within 1 and n_experts {self.n_experts}; "
                "lower it, or set n_experts"
            )
        if self.experts_per_token == 1 and self.n_experts > 1:
            raise ValueError(
                "experts_per_token is 1: a softmax over one choice is 1, so the router would learn nothing of it; set 2"
            )
        if self.mlp not in GATED:
            raise ValueError(f"mlp {self.mlp}: experts are gated; set mlp to {' or '.join(GATED)}")
        if self.bias:
            raise ValueError("bias: experts have none; set bias: false")
        if self.dense_layers >= self.n_layers:
            raise ValueError(
                f"dense_layers {self.dense_layers} leaves no layer of {self.n_layers} with experts; lower it"
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of attention of every layer: `layer_pattern`, cycled."""
        return expand(self.layer_pattern, self.n_layers)

    @property
    def own_parts(self) -> tuple[str, ...]:
        """The parts that are classes of one's own, by their full names (model/parts.py)."""
        return tuple(dict.fromkeys(name for name in (self.norm, self.mlp, *self.kinds) if "." in name))

    @property
    def width_of_head(self) -> int:
        return self.head_dim or self.hidden_size // self.n_heads

    @property
    def width_of_mlp(self) -> int:
        if self.intermediate_size:
            return self.intermediate_size
        return -(-8 * self.hidden_size // 3 // 64) * 64 if self.mlp in GATED else 4 * self.hidden_size

    @property
    def width_of_expert(self) -> int:
        return self.expert_size or self.width_of_mlp

    def has_experts(self, layer: int) -> bool:
        return self.n_experts > 0 and layer >= self.dense_layers


def pattern_of(layer_pattern: str, preset: str) -> str:
    """The pattern itself, or for `auto` that of the preset."""
    return PATTERNS.get(preset, "full") if layer_pattern == "auto" else layer_pattern


def padded_vocabulary(vocab_size: int) -> int:
    """Embedding rows: the vocabulary rounded up to a multiple of 128, which matrix units like."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
