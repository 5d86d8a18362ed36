"""Attention with grouped keys and values (Ainslie et al., 2023), whole or in a sliding window with sinks.

The kinds `full` and `swa` of `model.layer_pattern`. Queries and keys may be normed (Henry et al., 2020),
per head or as whole vectors, before they are rotated. A window reaches `window` tokens back and always
to the first `sink_tokens` of the document (Beltagy et al., 2020; Xiao et al., 2023).

Attention to another sequence (`memory`) is the same module: queries from x, keys and values from there.

Shapes: B rows, T queries, S keys, C hidden, H query heads, K key heads, D width of a head.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.backends import attend
from model.cache import KeyValueCache, Slots
from model.config import ModelConfig
from model.context import EVERYTHING, Context, Places, Reach, visible
from model.norm import RMSNorm
from model.rotary import rotate


class Attention(nn.Module):
    """Attention to everything that its reach lets a query see."""

    def __init__(self, config: ModelConfig, kind: str = "full"):
        super().__init__()
        self.kind = kind
        self.reach = Reach(config.window, config.sink_tokens) if kind == "swa" else EVERYTHING
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.head_dim = config.width_of_head
        self.scale = self.head_dim**-0.5
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.widths = (queries, keys, keys)
        self.fused = config.fused_qkv
        if self.fused:
            self.query_key_value = nn.Linear(config.hidden_size, sum(self.widths), bias=config.bias)
        else:
            self.query = nn.Linear(config.hidden_size, queries, bias=config.bias)
            self.key = nn.Linear(config.hidden_size, keys, bias=config.bias)
            self.value = nn.Linear(config.hidden_size, keys, bias=config.bias)
        self.output = nn.Linear(queries, config.hidden_size, bias=config.bias)
        self.norm_whole_vector = config.qk_norm and config.qk_norm_scope == "full"
        self.query_norm: nn.Module = nn.Identity()
        self.key_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            widths = (queries, keys) if self.norm_whole_vector else (self.head_dim, self.head_dim)
            self.query_norm, self.key_norm = (RMSNorm(w, config.norm_eps, config.qk_norm_gain) for w in widths)

    def project(self, x_BTC: Tensor, context: Context, memory_BSC: Tensor | None = None) -> tuple[Tensor, ...]:
        """Queries [B, H, T, D], keys and values [B, K, S, D], normed and rotated."""
        source = x_BTC if memory_BSC is None else memory_BSC
        if not self.fused:
            q, k, v = self.query(x_BTC), self.key(source), self.value(source)
        elif memory_BSC is None:
            q, k, v = self.query_key_value(x_BTC).split(self.widths, dim=-1)
        else:
            q = self.query_key_value(x_BTC)[..., : self.widths[0]]
            k, v = self.query_key_value(source)[..., self.widths[0] :].split(self.widths[1:], dim=-1)
        if self.norm_whole_vector:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (q, k, v))
        if not self.norm_whole_vector:
            q, k = self.query_norm(q), self.key_norm(k)
        if context.rotations and memory_BSC is None:
            cosine, sine = context.rotations[self.head_dim]
            q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        return q, k, v

    def forward(self, x_BTC: Tensor, context: Context, cache: KeyValueCache | None = None) -> Tensor:
        q, k, v = self.project(x_BTC, context)
        if cache is None:
            y_BHTD = attend(q, k, v, context.masks[self.kind], self.scale)
        else:
            y_BHTD = cache.attend(q, k, v, context, self.scale)
        return self.output(y_BHTD.transpose(1, 2).flatten(2))

    def cross(self, x_BTC: Tensor, memory_BSC: Tensor, context: Context) -> Tensor:
        """Attention to `memory`, all of it or what its mask lets through."""
        q, k, v = self.project(x_BTC, context, memory_BSC)
        return self.output(attend(q, k, v, context.masks[self.kind], self.scale).transpose(1, 2).flatten(2))

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> KeyValueCache:
        """An empty cache for `capacity` tokens, or for the window if that is less."""
        widths, slots = (self.head_dim, self.head_dim), Slots.of(capacity, self.reach)
        return KeyValueCache.empty(batch, self.n_kv_heads, widths, slots, like)

    def probabilities(self, x_BTC: Tensor, context: Context) -> Tensor:
        """What each query pays to each key, [B, H, T, T] in fp32; rows sum to 1. For analysis."""
        q, k, _ = self.project(x_BTC, context)
        return probabilities(q, k, context.places, self.reach, context.causal, self.scale)


def probabilities(q_BHTD: Tensor, k_BKTD: Tensor, places: Places, reach: Reach, causal: bool, scale: float) -> Tensor:
    """Softmax of the visible scores, [B, H, T, T] in fp32."""
    k_BHTD = k_BKTD.repeat_interleave(q_BHTD.shape[1] // k_BKTD.shape[1], dim=1)
    scores = (q_BHTD.float() @ k_BHTD.float().transpose(-1, -2)) * scale
    return scores.masked_fill(~visible(places, places, reach, causal), float("-inf")).softmax(dim=-1)
