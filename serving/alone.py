"""One token of one sequence on a GPU in five kernels a layer (kernels.py): weights are all that has to be read.

A decoder of 18 layers and 2,048 channels (1.01B) holds 2.0 GB in bf16, which an H200 reads in 0.48 ms. torch.compile
makes 151 kernels of a step, each of which waits for the one before to be over (rows.py): 0.91 ms. Here a layer is

    product    norm, then queries, keys and values          product    output onto the residual
    attention  norms of heads, rotation, writing, softmax   gated      norm, gate and up, activation
                                                            product    down onto the residual

`Alone.serves` says which decoders: RMS norms before each branch, and of each head or none, rotation, silu gates, no
biases, no windows, sizes that are multiples of 64. How many tokens were read is read on the device: one recording
serves all lengths. Numbers between weights are fp32, so logits are nearer to those of fp32 than the decoder's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor, nn

from model.attention import Attention
from model.cache import KeyValueCache, LayerCache
from model.decoder import Decoder
from model.mlp import GatedMLP
from model.norm import RMSNorm
from model.rotary import rotation
from serving.kernels import attention, embed, gated, product

UNIT = 64  # sizes of matrices are multiples of it, so programs have equal numbers of rows
WIDEST = 2048  # columns that the threads of a program take at once
MOST_SPLITS = 8  # parts of the tokens of a head


class Setting(NamedTuple):
    """Of the programs of a kernel: the bytes of weights, or of keys, that one loads at once, and its warps."""

    size: int
    warps: int


# the fastest of 27 on an H200 at 1.01B (docs/LOG.md); 124M takes them too
SETTINGS = {
    "qkv": Setting(16384, 4),
    "output": Setting(16384, 8),
    "gated": Setting(16384, 4),
    "down": Setting(32768, 8),
    "head": Setting(16384, 4),
    "attention": Setting(16384, 8),
}


class Alone:
    """Steps of the sequence in the first row of the caches. Its buffers are those of every recording."""

    def __init__(
        self, model: Decoder, caches: Sequence[LayerCache], capacity: int, joined: Sequence[Tensor | None]
    ) -> None:
        self.model, self.caches, self.joined = model, caches, joined
        self.projections = [query_key_value(block.attention) for block in model.blocks]  # type: ignore[arg-type]
        config, like = model.config, model.embedding.weight
        self.eps, self.on_gpu = config.norm_eps, like.is_cuda
        self.early = self.on_gpu and torch.cuda.get_device_capability(like.device) >= (9, 0)
        tables = rotation(torch.arange(capacity, device=like.device)[None], config, config.width_of_head)
        self.cosine, self.sine = (table[0, 0].contiguous() for table in tables)
        self.n_slots = max(SETTINGS["attention"].size // (2 * config.width_of_head), 1)
        self.n_splits = min(MOST_SPLITS, triton.next_power_of_2(-(-capacity // self.n_slots)))

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return like.new_empty(shape, dtype=dtype)

        heads, width = config.n_heads, config.width_of_head
        self.qkv, self.y = empty((heads + 2 * config.n_kv_heads) * width), empty(heads * width, dtype=like.dtype)
        self.x, self.beside = empty(config.hidden_size), empty(config.hidden_size)
        self.inner, self.logits = empty(config.width_of_mlp, dtype=like.dtype), empty(len(self.head))
        self.parts, self.sums = empty(heads, self.n_splits, width), empty(heads, self.n_splits, 2)
        self.arrived = like.new_zeros(heads, dtype=torch.int32)

    @staticmethod
    def serves(model: Decoder) -> bool:
        """Whether the decoder is of the one common kind that is written here."""
        config, norms = model.config, (RMSNorm, nn.Identity)
        width, n_inner = config.width_of_head, config.width_of_mlp
        parts = all(
            type(block.attention) is Attention
            and type(block.attention.query_norm) is type(block.attention.key_norm) in norms
            and type(block.mlp) is GatedMLP
            and type(block.attention_norm) is type(block.mlp_norm) is RMSNorm
            and type(block.attention_post_norm) is type(block.mlp_post_norm) is nn.Identity
            and all(not isinstance(part, nn.Linear) or part.bias is None for part in block.modules())
            for block in model.blocks
        )
        return (
            parts and type(model.final_norm) is RMSNorm and config.mlp == "swiglu" and config.positions == "rope"
            and not (config.qk_norm and (config.qk_norm_scope != "head" or not config.qk_norm_gain))
            and set(config.kinds) == {"full"} and 16 <= width <= 256 and width & (width - 1) == 0
            and not any(size % UNIT for size in (config.hidden_size, n_inner, config.n_kv_heads * width))
        )  # fmt: skip

    @property
    def head(self) -> Tensor:
        return self.model.embedding.weight if self.model.head is None else self.model.head.weight

    def step(self, input_11: Tensor, position_11: Tensor) -> Tensor:
        """Reads the token at its position. Logits behind it, [1, V], fp32."""
        config, x, beside = self.model.config, self.x, self.beside
        width = min(triton.next_power_of_2(len(x)), 1024)
        embed[(triton.cdiv(len(x), width),)](
            input_11, self.model.embedding.weight, x, K=len(x), WIDTH=width, EARLY=self.early, **self._launch(4, False)
        )
        heads, keys, normed = config.n_heads, config.n_kv_heads, config.qk_norm
        layers = zip(self.model.blocks, self.caches, self.projections, self.joined, strict=True)
        for block, cache, projection, gate_up in layers:
            assert isinstance(cache, KeyValueCache)
            part: Any = block.attention
            mlp: Any = block.mlp
            self._product("qkv", x, projection, self.qkv, gain=block.attention_norm.weight)  # type: ignore[union-attr]
            attention[(heads, self.n_splits)](
                self.qkv, part.query_norm.weight if normed else x, part.key_norm.weight if normed else x, self.cosine,
                self.sine, cache.keys, cache.values, position_11, self.parts, self.sums, self.arrived, self.y,
                cache.keys.stride(1), self.eps, part.scale, H=heads, GROUP=heads // keys, D=part.head_dim,
                BLOCK=self.n_slots, SPLITS=self.n_splits, NORM=normed, EARLY=self.early,
                **self._launch(SETTINGS["attention"].warps),
            )  # fmt: skip
            self._product("output", self.y, part.output.weight, beside, residual=x)
            self._gated(beside, block.mlp_norm.weight, gate_up)  # type: ignore[union-attr]
            self._product("down", self.inner, mlp.down.weight, x, residual=beside)
        self._product("head", x, self.head, self.logits, gain=self.model.final_norm.weight)
        cap, logits_1V = config.logit_softcap, self.logits[None, : self.model.vocab_size]
        return cap * torch.tanh(logits_1V / cap) if cap else logits_1V

    def _launch(self, warps: int, early: bool = True) -> dict[str, Any]:
        """What is said to a kernel beside its arguments; the interpreter takes none of it."""
        return {"num_warps": warps, "launch_pdl": self.early and early} if self.on_gpu else {}

    def _product(
        self, kind: str, x: Tensor, w_NK: Tensor, y: Tensor, gain: Any = None, residual: Tensor | None = None
    ) -> None:
        (n, k), setting = w_NK.shape, SETTINGS[kind]
        rows = rows_of(setting.size, k)
        product[(n // rows,)](
            x, x if gain is None else gain, w_NK, x if residual is None else residual, y, self.eps, N=n, K=k,
            NORM=gain is not None, RESIDUAL=residual is not None, ROWS=rows, WIDTH=width_of(k),
            EARLY=self.early, **self._launch(setting.warps),
        )  # fmt: skip

    def _gated(self, x: Tensor, gain: Any, w_NK: Any) -> None:
        n, k, setting = len(self.inner), len(x), SETTINGS["gated"]
        rows = rows_of(setting.size // 2, k)
        gated[(n // rows,)](
            x, gain, w_NK, self.inner, self.eps, N=n, K=k, ROWS=rows, WIDTH=width_of(k),
            EARLY=self.early, **self._launch(setting.warps),
        )  # fmt: skip


def query_key_value(attention: Attention) -> Tensor:
    """The three matrices as one, whose parts they become."""
    if attention.fused:
        return attention.query_key_value.weight
    matrices = (attention.query, attention.key, attention.value)
    whole = torch.cat([matrix.weight for matrix in matrices])
    for matrix, part in zip(matrices, whole.split(attention.widths), strict=True):
        matrix.weight = nn.Parameter(part, requires_grad=False)
    return whole


def rows_of(size: int, k: int) -> int:
    """The power of two of rows in bf16 that come to about so many bytes."""
    return max(1, min(UNIT, 1 << (size // (2 * k)).bit_length() - 1)) if size >= 2 * k else 1


def width_of(k: int) -> int:
    return min(triton.next_power_of_2(k), WIDEST)
