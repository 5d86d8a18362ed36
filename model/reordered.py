"""Decoders on a CPU, in fp32, whose matrices lie in memory as oneDNN multiplies by them.

Decoding reads every matrix once a token; that takes the time, and a few rows need take no longer than one. PyTorch's
product of 2 to 64 rows by a plain matrix takes twice as long as that of one: MKL first copies the matrix into blocks
that fit the processor's registers, each time. Here they are laid in blocks once, when the model is opened:

    8 rows by 768 x 50,304, one core, AVX2    27.0 ms plain, 12.0 ms in blocks; one row 12.7 ms and 10.7

The numbers are the same; sums may be added in another order, so products agree within rounding. The plain matrices
are not kept, but for the embedding, in which tokens are looked up. Matrices in parts of one's own stay as they are,
since their code may read them, and so do the two that our own code reads (a router, MLA's `key_value_up`).

Shapes: N outputs, K inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import Attention
from model.config import ModelConfig
from model.decoder import Decoder
from model.latent import LatentAttention
from model.mlp import GatedMLP, PlainMLP

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
# Numbers of rows; others are padded. oneDNN compiles for each and keeps 1,024 such programs, half a megabyte each: with
# prompts of any length that came to 1.6 GB.
SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
ROWS = 8  # blocks are best for about so many; they serve any number
PARTS = (Attention, LatentAttention, GatedMLP, PlainMLP)
READ_BY_OUR_CODE = ("key_value_up",)


class Reordered(nn.Module):
    """x W^T + bias, [.., N] of [.., K], fp32, with W in blocks. For inference.

    `weight` is opaque: it has sizes, and no operation but this takes it.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None = None):
        super().__init__()
        self.register_buffer("weight", torch.ops.mkldnn._reorder_linear_weight(weight_NK.detach(), ROWS))
        self.register_buffer("bias", None if bias_N is None else bias_N.detach())

    def forward(self, x: Tensor) -> Tensor:
        n_rows = x.numel() // x.shape[-1]
        if n_rows in SIZES:
            return self._product(x)
        pieces = x.flatten(0, -2).split(SIZES[-1])
        return torch.cat([self._padded(piece) for piece in pieces]).unflatten(0, x.shape[:-1])

    def _padded(self, x_RK: Tensor) -> Tensor:
        beside = next(size for size in SIZES if size >= len(x_RK)) - len(x_RK)
        return self._product(F.pad(x_RK, (0, 0, 0, beside)))[: len(x_RK)]

    def _product(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class ReorderedDecoder(Decoder):
    """A decoder with such matrices, in eval mode. Args: weights: the `state_dict()` of a Decoder, fp32; the
    dictionary is emptied, so that no matrix stands in memory twice."""

    def __init__(self, config: ModelConfig, vocab_size: int, context_length: int, weights: dict[str, Tensor]):
        with torch.device("meta"):
            super().__init__(config, vocab_size, context_length)
        self.load_state_dict(weights, assign=True)
        weights.clear()
        for name, part in list(self.named_modules()):
            if type(part) in PARTS:
                for child, matrix in list(part.named_children()):
                    if type(matrix) is nn.Linear and child not in READ_BY_OUR_CODE:
                        self.set_submodule(f"{name}.{child}", Reordered(matrix.weight, matrix.bias))
        head = self.embedding if self.head is None else self.head
        self.scores = Reordered(head.weight)
        self.head = None  # which is now in blocks; the embedding is looked into
        self.eval().requires_grad_(False)

    def head_product(self, hidden_BTC: Tensor) -> Tensor:
        return self.scores(hidden_BTC)
