"""Multi-head latent attention (MLA; DeepSeek-V2, 2024): keys and values from one small vector per token.

    [c, k_pe] = W_kva x        c: kv_lora_rank wide; k_pe: qk_rope_head_dim, rotated, shared by all heads
    k_nope, v = W_kvb norm(c)  per head
    q         = W_q x, or W_qb norm(W_qa x) with q_lora_rank
    score     = (q_nope . k_nope + q_pe . k_pe) * (qk_nope_head_dim + qk_rope_head_dim)^-0.5

A cache holds norm(c) and k_pe alone: 256 + 64 numbers a token where 16 heads of 128 would hold 4,096.
From it attention is computed without rebuilding keys ("absorbed"): q_nope goes through W_kvb into the space
of c, where it meets c itself, and the mean of c goes through W_kvb afterwards.

Shapes: B rows, T queries, S keys, C hidden, H heads, N and R widths without and with rotation, L of c.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import probabilities
from model.backends import attend
from model.cache import LatentCache
from model.config import ModelConfig
from model.context import EVERYTHING, Context
from model.norm import RMSNorm
from model.rotary import rotate


class LatentAttention(nn.Module):
    """The kind `mla` of `model.layer_pattern`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.reach = EVERYTHING
        self.n_heads = config.n_heads
        self.nope, self.rope, self.value_width = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.rank = config.kv_lora_rank
        self.scale = (self.nope + self.rope) ** -0.5
        queries = self.n_heads * (self.nope + self.rope)
        if config.q_lora_rank:
            self.query_down: nn.Module = nn.Linear(config.hidden_size, config.q_lora_rank, bias=config.bias)
            self.query_norm: nn.Module = RMSNorm(config.q_lora_rank, config.norm_eps)
            self.query_up = nn.Linear(config.q_lora_rank, queries, bias=False)
        else:
            self.query_down = self.query_norm = nn.Identity()
            self.query_up = nn.Linear(config.hidden_size, queries, bias=False)
        self.key_value_down = nn.Linear(config.hidden_size, self.rank + self.rope, bias=config.bias)
        self.key_value_norm = RMSNorm(self.rank, config.norm_eps)
        self.key_value_up = nn.Linear(self.rank, self.n_heads * (self.nope + self.value_width), bias=False)
        self.output = nn.Linear(self.n_heads * self.value_width, config.hidden_size, bias=config.bias)

    def compress(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q_nope [B, H, T, N], q_pe [B, H, T, R], norm(c) [B, 1, T, L] and k_pe [B, 1, T, R]."""
        q_BHTD = (
            self.query_up(self.query_norm(self.query_down(x_BTC))).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        )
        q_nope, q_pe = q_BHTD.split((self.nope, self.rope), dim=-1)
        c, k_pe = self.key_value_down(x_BTC)[:, None].split((self.rank, self.rope), dim=-1)
        if context.rotations:
            cosine, sine = context.rotations[self.rope]
            q_pe, k_pe = rotate(q_pe, cosine, sine), rotate(k_pe, cosine, sine)
        return q_nope, q_pe, self.key_value_norm(c), k_pe

    def project(self, x_BTC: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [B, H, T, N + R] and values, rebuilt per head: the naive form, for training."""
        q_nope, q_pe, c_B1TL, k_pe = self.compress(x_BTC, context)
        rebuilt = self.key_value_up(c_B1TL[:, 0]).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        k_nope, v = rebuilt.split((self.nope, self.value_width), dim=-1)
        k = torch.cat((k_nope, k_pe.expand(-1, self.n_heads, -1, -1)), dim=-1)
        return torch.cat((q_nope, q_pe), dim=-1), k, v

    def forward(self, x_BTC: Tensor, context: Context, cache: LatentCache | None = None) -> Tensor:
        if cache is not None:
            return self.absorbed(x_BTC, context, cache)
        q, k, v = self.project(x_BTC, context)
        y_BHTD = attend(q, k, v, context.masks["mla"], self.scale)
        return self.output(y_BHTD.transpose(1, 2).flatten(2))

    def absorbed(self, x_BTC: Tensor, context: Context, cache: LatentCache) -> Tensor:
        """The same from a cache of latents, without a key or value of any head."""
        q_nope, q_pe, c_B1TL, k_pe = self.compress(x_BTC, context)
        c_BSL, k_pe_BSR, mask = cache.append(c_B1TL[:, 0], k_pe[:, 0], context)
        up_HDL = self.key_value_up.weight.view(self.n_heads, self.nope + self.value_width, self.rank)
        key_up, value_up = up_HDL.split((self.nope, self.value_width), dim=1)
        q_BHTL = torch.einsum("bhtn,hnl->bhtl", q_nope, key_up)
        scores = torch.einsum("bhtl,bsl->bhts", q_BHTL, c_BSL) + torch.einsum("bhtr,bsr->bhts", q_pe, k_pe_BSR)
        p_BHTS = (scores.float() * self.scale).masked_fill(~mask, float("-inf")).softmax(dim=-1).to(x_BTC.dtype)
        mean_BHTL = torch.einsum("bhts,bsl->bhtl", p_BHTS, c_BSL)
        y_BHTV = torch.einsum("bhtl,hvl->bhtv", mean_BHTL, value_up)
        return self.output(y_BHTV.transpose(1, 2).flatten(2))

    def new_cache(self, batch: int, capacity: int, like: Tensor) -> LatentCache:
        return LatentCache.empty(batch, self.rank, self.rope, capacity, like)

    def probabilities(self, x_BTC: Tensor, context: Context) -> Tensor:
        """What each query pays to each key, [B, H, T, T] in fp32; rows sum to 1. For analysis."""
        q, k, _ = self.project(x_BTC, context)
        return probabilities(q, k, context.places, self.reach, context.causal, self.scale)
