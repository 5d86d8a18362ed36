"""Causal self-attention with grouped keys and values (Ainslie et al., 2023) and normed queries and keys.

Packed rows hold several documents. A query sees the keys of its own document up to itself, so what
stands before it in the row changes its output by exactly 0. Example with segments 0 0 1: position 2
sees itself alone.

Shapes: B rows, T positions, C hidden, H query heads, K key heads, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.norm import RMSNorm
from model.rotary import rotate


def visible(segments_BT: Tensor) -> Tensor:
    """Which key each query sees, bool [B, 1, T, T]: earlier or equal, and of the same segment.

    Padding has segment -1 and sees the padding before it, so that no row of the mask is empty.
    """
    T = segments_BT.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments_BT.device).tril()
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    return (same & causal)[:, None]


class Attention(nn.Module):
    """Attention whose mask is given; None means plain causal attention."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads
        self.head_dim = config.width_of_head
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.query = nn.Linear(config.hidden_size, queries, bias=False)
        self.key = nn.Linear(config.hidden_size, keys, bias=False)
        self.value = nn.Linear(config.hidden_size, keys, bias=False)
        self.output = nn.Linear(queries, config.hidden_size, bias=False)
        self.norm_whole_vector = config.qk_norm and config.qk_norm_scope == "full"
        if config.qk_norm:
            full = config.qk_norm_scope == "full"
            self.query_norm: nn.Module = RMSNorm(queries if full else self.head_dim, config.norm_eps)
            self.key_norm: nn.Module = RMSNorm(keys if full else self.head_dim, config.norm_eps)
        else:
            self.query_norm = self.key_norm = nn.Identity()

    def _project(self, x_BTC: Tensor, cosine: Tensor, sine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x_BTC.shape
        q, k, v = self.query(x_BTC), self.key(x_BTC), self.value(x_BTC)
        if self.norm_whole_vector:
            q, k = self.query_norm(q), self.key_norm(k)
        q = q.view(B, T, self.n_heads, self.head_dim)
        k = k.view(B, T, self.n_kv_heads, self.head_dim)
        v = v.view(B, T, self.n_kv_heads, self.head_dim)
        if not self.norm_whole_vector:
            q, k = self.query_norm(q), self.key_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return rotate(q, cosine, sine), rotate(k, cosine, sine), v

    def forward(self, x_BTC: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None) -> Tensor:
        B, T, _ = x_BTC.shape
        q_BHTD, k_BKTD, v_BKTD = self._project(x_BTC, cosine, sine)
        y_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BKTD, v_BKTD, attn_mask=mask, is_causal=mask is None, enable_gqa=self.n_heads != self.n_kv_heads
        )
        return self.output(y_BHTD.transpose(1, 2).reshape(B, T, -1))

    def probabilities(self, x_BTC: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor) -> Tensor:
        """What each query pays to each key, [B, H, T, T] in fp32; rows sum to 1. For analysis."""
        q_BHTD, k_BKTD, _ = self._project(x_BTC, cosine, sine)
        k_BHTD = k_BKTD.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        scores = (q_BHTD.float() @ k_BHTD.float().transpose(-1, -2)) * self.head_dim**-0.5
        return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)
