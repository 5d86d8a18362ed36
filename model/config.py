"""The architecture as data: one frozen dataclass, the section `model` of params.yaml.

It imports nothing heavy, so that params can be validated without torch. The size of the vocabulary
and the context length are no part of it: they are facts of the packed data. Example, the default:
hidden_size 192 with 4 heads gives heads of 48; intermediate_size 0 becomes 8/3 * 192 = 512, a
multiple of 64 already.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

VOCABULARY_MULTIPLE = 128


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder. Sizes are counts; 0 means "derive" where a comment says so.

    Raises:
        ValueError: a combination that is no architecture, with the reason.
    """

    n_layers: int = 3
    hidden_size: int = 192
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 0  # 0: hidden_size / n_heads
    intermediate_size: int = 0  # 0: 8/3 * hidden_size, rounded up to a multiple of 64
    pre_norm: bool = True
    post_norm: bool = False
    qk_norm: bool = True
    qk_norm_scope: Literal["head", "full"] = "head"
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_embeddings: bool = True
    init_std: float = 0.02

    def __post_init__(self) -> None:
        for name in ("n_layers", "hidden_size", "n_heads", "n_kv_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.head_dim, self.intermediate_size) < 0:
            raise ValueError("head_dim and intermediate_size must be positive, or 0 to derive them")
        if self.head_dim == 0 and self.hidden_size % self.n_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of n_heads {self.n_heads}; "
                "change one of them, or set head_dim"
            )
        if self.width_of_head % 2:
            raise ValueError(f"heads are {self.width_of_head} wide; rotary embedding needs an even width")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}")
        if not (self.pre_norm or self.post_norm):
            raise ValueError("pre_norm and post_norm are both false; a decoder without norms does not train")
        for name in ("norm_eps", "rope_theta", "init_std"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive number")

    @property
    def width_of_head(self) -> int:
        return self.head_dim or self.hidden_size // self.n_heads

    @property
    def width_of_mlp(self) -> int:
        return self.intermediate_size or -(-8 * self.hidden_size // 3 // 64) * 64

    def n_parameters(self, vocab_size: int) -> int:
        """The number of parameters of `Decoder(self, vocab_size)` by formula, tied weights counted once."""
        width, head = self.hidden_size, self.width_of_head
        queries, keys = self.n_heads * head, self.n_kv_heads * head
        attention = width * (queries + 2 * keys) + queries * width
        if self.qk_norm:
            attention += 2 * head if self.qk_norm_scope == "head" else queries + keys
        norms = 2 * width * (self.pre_norm + self.post_norm)
        block = attention + 3 * width * self.width_of_mlp + norms
        embeddings = padded_vocabulary(vocab_size) * width * (1 if self.tie_embeddings else 2)
        return embeddings + self.n_layers * block + width


def padded_vocabulary(vocab_size: int) -> int:
    """Embedding rows: the vocabulary rounded up to a multiple of 128, which matrix units like."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
