# mypy: disable-error-code="import-not-found, no-untyped-def, no-untyped-call, untyped-decorator, misc, assignment"
# mypy: disable-error-code="operator, union-attr, arg-type"
"""One token of one sequence on a GPU in five kernels a layer, where the weights are all that has to be read.

A decoder of 18 layers and 2,048 channels (1.01B) holds 2.0 GB in bf16, which an H200 reads in 0.48 ms. torch.compile
makes 151 kernels of a step, each of which waits for the one before to be over (rows.py): 0.91 ms. Here a layer is

    matvec     norm, then queries, keys and values          matvec     output onto the residual
    attention  norms of heads, rotation, writing, softmax   gated      norm, gate and up, activation
                                                            matvec     down onto the residual

Two ideas. A norm is a factor, so its sum of squares is taken beside the product that it scales: one kernel. And a
kernel begins while the one before still runs (programmatic dependent launch): it loads its weights, which wait for
nobody, and then waits for its input. Keys and values of earlier tokens were written by earlier steps, so they are
loaded before the wait as well. How many there are is read on the device: one recording serves all lengths.

`Kernels.serves` says which decoders: RMS norms before each branch and of the heads, rotation, silu gates, no biases,
no windows. Sums are in fp32; logits differ from the decoder's by rounding in bf16. A first form of these was measured
(docs/serving.md); this one, which loads keys before it waits, ran in Triton's interpreter and was compiled only, so
it is asked for by `--compile kernels`, and its first step is compared with the decoder's own.

Shapes: N outputs, K inputs, H query heads, D width of a head, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from model.attention import Attention
from model.cache import KeyValueCache, LayerCache
from model.decoder import Decoder
from model.mlp import GatedMLP
from model.norm import RMSNorm
from model.rotary import rotation

WIDEST = 2048  # inputs that a program loads of a row at once
ROWS = {"matvec": 2, "gated": 2, "head": 8}  # outputs of a program
WARPS = 8
SLOTS = 8192  # numbers of keys that a program loads at once, so 128 slots of width 64


@triton.jit
def matvec(x_ptr, gain_ptr, w_ptr, residual_ptr, y_ptr, N, eps, K: tl.constexpr, NORM: tl.constexpr,
           RESIDUAL: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, EARLY: tl.constexpr):  # fmt: skip
    """y = W x + residual, or W (x / rms(x) * gain)"""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    n, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    row, real = w_ptr + n[:, None].to(tl.int64) * K, n[:, None] < N
    w = tl.load(row + k[None, :], mask=real & (k[None, :] < K), other=0.0)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    total, squares = tl.zeros((ROWS, WIDTH), tl.float32), tl.zeros((WIDTH,), tl.float32)
    for start in range(0, K, WIDTH):
        at, ahead = start + k, start + WIDTH + k
        x = tl.load(x_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        if NORM:
            squares += x * x
            x *= tl.load(gain_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        total += w.to(tl.float32) * x[None, :]
        w = tl.load(row + ahead[None, :], mask=real & (ahead[None, :] < K), other=0.0)
    y = tl.sum(total, axis=1)
    if NORM:
        y *= tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    if RESIDUAL:
        y += tl.load(residual_ptr + n, mask=n < N, other=0.0).to(tl.float32)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def gated(x_ptr, gain_ptr, w_ptr, y_ptr, N, eps, K: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
          EARLY: tl.constexpr):  # fmt: skip
    """y = silu(G z) * (U z) with z = x / rms(x) * gain; w is G, and U below it"""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    n, k = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    gate, real = w_ptr + n[:, None].to(tl.int64) * K, n[:, None] < N
    up = gate + N.to(tl.int64) * K
    g = tl.load(gate + k[None, :], mask=real & (k[None, :] < K), other=0.0)
    u = tl.load(up + k[None, :], mask=real & (k[None, :] < K), other=0.0)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    gates, ups = tl.zeros((ROWS, WIDTH), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
    squares = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, K, WIDTH):
        at, ahead = start + k, start + WIDTH + k
        x = tl.load(x_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        squares += x * x
        x *= tl.load(gain_ptr + at, mask=at < K, other=0.0).to(tl.float32)
        gates += g.to(tl.float32) * x[None, :]
        ups += u.to(tl.float32) * x[None, :]
        g = tl.load(gate + ahead[None, :], mask=real & (ahead[None, :] < K), other=0.0)
        u = tl.load(up + ahead[None, :], mask=real & (ahead[None, :] < K), other=0.0)
    factor = tl.rsqrt(tl.sum(squares, axis=0) / K + eps)
    opened = tl.sum(gates, axis=1) * factor
    y = opened / (1 + tl.exp(-opened)) * (tl.sum(ups, axis=1) * factor)
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=n < N)


@triton.jit
def turned(head_ptr, gain_ptr, cosine, sine, eps, D: tl.constexpr):
    """A head normed and rotated, as its two halves, fp32."""
    d = tl.arange(0, D // 2)
    left, right = tl.load(head_ptr + d).to(tl.float32), tl.load(head_ptr + D // 2 + d).to(tl.float32)
    factor = tl.rsqrt(tl.sum(left * left + right * right, axis=0) / D + eps)
    left *= factor * tl.load(gain_ptr + d).to(tl.float32)
    right *= factor * tl.load(gain_ptr + D // 2 + d).to(tl.float32)
    return left * cosine - right * sine, right * cosine + left * sine


@triton.jit
def attention(qkv_ptr, query_gain_ptr, key_gain_ptr, cosine_ptr, sine_ptr, keys_ptr, values_ptr, position_ptr, y_ptr,
              row_stride, eps, scale, H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
              EARLY: tl.constexpr):  # fmt: skip
    """A program for each query head; the first of those that share keys writes the new ones."""
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    head = tl.program_id(0)
    key_head = head // GROUP
    position = tl.load(position_ptr).to(tl.int32)
    half, d, s = tl.arange(0, D // 2), tl.arange(0, D), tl.arange(0, BLOCK)
    keys, values = keys_ptr + key_head * row_stride, values_ptr + key_head * row_stride
    place, held = s[:, None] * D, s[:, None] < position
    k_left = tl.load(keys + place + half[None, :], mask=held, other=0.0)
    k_right = tl.load(keys + place + D // 2 + half[None, :], mask=held, other=0.0)
    v = tl.load(values + place + d[None, :], mask=held, other=0.0)
    cosine, sine = tl.load(cosine_ptr + position * D + half), tl.load(sine_ptr + position * D + half)
    if EARLY:
        tl.extra.cuda.gdc_wait()
    new_key, new_value = qkv_ptr + (H + key_head) * D, qkv_ptr + (H + H // GROUP + key_head) * D
    q_left, q_right = turned(qkv_ptr + head * D, query_gain_ptr, cosine, sine, eps, D)
    own_left, own_right = turned(new_key, key_gain_ptr, cosine, sine, eps, D)
    own_value = tl.load(new_value + d)
    kind = keys_ptr.dtype.element_ty
    if head % GROUP == 0:
        tl.store(keys + position * D + half, own_left.to(kind))
        tl.store(keys + position * D + D // 2 + half, own_right.to(kind))
        tl.store(values + position * D + d, own_value)
    q_left, q_right = q_left * scale, q_right * scale
    most = tl.sum(q_left * own_left.to(kind).to(tl.float32) + q_right * own_right.to(kind).to(tl.float32), axis=0)
    total, y = most * 0 + 1.0, own_value.to(tl.float32)
    for start in range(0, position, BLOCK):
        scores = tl.sum(k_left.to(tl.float32) * q_left[None, :] + k_right.to(tl.float32) * q_right[None, :], axis=1)
        scores = tl.where(start + s < position, scores, float("-inf"))
        highest = tl.maximum(most, tl.max(scores, axis=0))
        weight, kept = tl.exp(scores - highest), tl.exp(most - highest)
        total = total * kept + tl.sum(weight, axis=0)
        y = y * kept + tl.sum(v.to(tl.float32) * weight[:, None], axis=0)
        most = highest
        place, held = (start + BLOCK + s[:, None]) * D, start + BLOCK + s[:, None] < position
        k_left = tl.load(keys + place + half[None, :], mask=held, other=0.0)
        k_right = tl.load(keys + place + D // 2 + half[None, :], mask=held, other=0.0)
        v = tl.load(values + place + d[None, :], mask=held, other=0.0)
    tl.store(y_ptr + head * D + d, (y / total).to(y_ptr.dtype.element_ty))


class Kernels:
    """Steps of the sequence in the first row of the caches. Its buffers are those of every recording."""

    def __init__(self, model: Decoder, caches: Sequence[LayerCache], capacity: int, joined: Sequence[Tensor | None]):
        self.model, self.caches, self.joined = model, caches, joined
        config, like = model.config, model.embedding.weight
        self.eps, self.early = config.norm_eps, like.is_cuda and torch.cuda.get_device_capability(like.device) >= (9, 0)
        self.launch = {"num_warps": WARPS, "launch_pdl": self.early} if like.is_cuda else {}
        tables = rotation(torch.arange(capacity, device=like.device)[None], config, config.width_of_head)
        self.cosine, self.sine = (table[0, 0].contiguous() for table in tables)
        heads = config.n_heads * config.width_of_head
        self.qkv, self.y = like.new_empty(sum(model.blocks[0].attention.widths)), like.new_empty(heads)
        self.x, self.beside = like.new_empty(config.hidden_size), like.new_empty(config.hidden_size)
        self.inner, self.logits = like.new_empty(config.width_of_mlp), like.new_empty(len(self.head))

    @staticmethod
    def serves(model: Decoder) -> bool:
        """Whether the decoder is of the one common kind that is written here."""
        config = model.config
        width = config.width_of_head
        parts = all(
            type(block.attention) is Attention
            and type(block.attention.query_norm) is RMSNorm
            and type(block.mlp) is GatedMLP
            and type(block.attention_norm) is type(block.mlp_norm) is RMSNorm
            and type(block.attention_post_norm) is type(block.mlp_post_norm) is nn.Identity
            and all(type(part) is not nn.Linear or part.bias is None for part in block.modules())
            for block in model.blocks
        )
        return (
            parts and type(model.final_norm) is RMSNorm and config.qk_norm_scope == "head" and config.qk_norm_gain
            and config.mlp == "swiglu" and config.positions == "rope" and set(config.kinds) == {"full"}
            and config.fused_qkv and 16 <= width <= 256 and width & (width - 1) == 0
        )  # fmt: skip

    @property
    def head(self) -> Tensor:
        return self.model.embedding.weight if self.model.head is None else self.model.head.weight

    def step(self, input_11: Tensor, position_11: Tensor) -> Tensor:
        """Reads the token at its position. Logits behind it, [1, V]."""
        config, x, beside = self.model.config, self.model.embedding(input_11)[0, 0], self.beside
        for block, cache, gate_up in zip(self.model.blocks, self.caches, self.joined, strict=True):
            assert isinstance(cache, KeyValueCache)
            part, heads, keys = block.attention, config.n_heads, config.n_kv_heads
            self._matvec(x, part.query_key_value.weight, self.qkv, gain=block.attention_norm.weight)
            attention[(heads,)](
                self.qkv, part.query_norm.weight, part.key_norm.weight, self.cosine, self.sine, cache.keys,
                cache.values, position_11, self.y, cache.keys.stride(1), self.eps, part.scale, H=heads,
                GROUP=heads // keys, D=part.head_dim, BLOCK=SLOTS // part.head_dim, EARLY=self.early, **self.launch,
            )  # fmt: skip
            self._matvec(self.y, part.output.weight, beside, residual=x)
            n, k = len(self.inner), len(beside)
            gated[(triton.cdiv(n, ROWS["gated"]),)](
                beside, block.mlp_norm.weight, gate_up, self.inner, n, self.eps, K=k, ROWS=ROWS["gated"],
                WIDTH=min(triton.next_power_of_2(k), WIDEST), EARLY=self.early, **self.launch,
            )  # fmt: skip
            self._matvec(self.inner, block.mlp.down.weight, self.x, residual=beside)
            x = self.x
        self._matvec(x, self.head, self.logits, gain=self.model.final_norm.weight, rows=ROWS["head"])
        cap, logits_1V = config.logit_softcap, self.logits[None, : self.model.vocab_size]
        return cap * torch.tanh(logits_1V / cap) if cap else logits_1V

    def _matvec(
        self, x: Tensor, w_NK: Tensor, y: Tensor, gain: Tensor | None = None, residual: Tensor | None = None,
        rows: int = ROWS["matvec"],
    ) -> None:  # fmt: skip
        n, k = w_NK.shape
        matvec[(triton.cdiv(n, rows),)](
            x, x if gain is None else gain, w_NK, x if residual is None else residual, y, n, self.eps, K=k,
            NORM=gain is not None, RESIDUAL=residual is not None, ROWS=rows,
            WIDTH=min(triton.next_power_of_2(k), WIDEST), EARLY=self.early, **self.launch,
        )  # fmt: skip
