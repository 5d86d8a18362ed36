"""One token of one sequence on a CPU, in a third of the operations that the decoder takes for a batch.

A small decoder that continues one text spends its time on calling operations, not on arithmetic. With 2M parameters
and three layers, a token takes 0.5 ms of products and used to take ten times that: PyTorch's rms_norm is seven
operations on a CPU (40 microseconds for 192 numbers), attention with a mask first makes numbers of it, writing a
token into a cache goes through index tensors. For one token all this is simpler:

    a norm           one dot product; what is left is plain arithmetic and one factor
    norms of heads   queries and keys together; |x| beside sqrt(D eps) is the root that rms_norm takes
    rotation         read from a table; rolling by half a head swaps the partners
    attention        the slots so far are a slice: no mask
    a product        a matrix by a vector, onto the residual where nothing stands between

What is none of these (experts, latent attention, LayerNorm, packed matrices, parts of one's own) is called as it is. A
subclass of a known part may compute something else, so parts are known by their very type.
The decoder's own path stays the reference: logits agree within rounding (tests/serving/test_single.py).

Shapes: C hidden, H query heads, K key heads, G query heads per key head, D width of a head, S slots, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from model.attention import Attention
from model.cache import KeyValueCache, LayerCache
from model.context import Context
from model.decoder import Block, Decoder
from model.mlp import GatedMLP, PlainMLP
from model.norm import RMSNorm
from model.rotary import rotation
from serving.vectors import of_vectors

Vectors = Callable[[Tensor], Tensor]
MOST_HIDDEN = 512  # at 768 and two threads, attention behind products of many rows took 7 ms an operation, not 0.02


class Single:
    """Steps of the sequence in the first row of the caches."""

    def __init__(self, model: Decoder, caches: Sequence[LayerCache], capacity: int):
        self.model, self.caches = model, [cache.part(0, 1, capacity) for cache in caches]
        self.tables: tuple[Tensor, Tensor] | None = None
        if model.config.positions == "rope":
            cosine, sine = rotation(torch.arange(capacity)[None], model.config, model.config.width_of_head)
            half = sine.shape[-1] // 2
            self.tables = cosine[0, 0], torch.cat((-sine[0, 0, :, :half], sine[0, 0, :, half:]), dim=-1)
        self.layers = [Layer(block, cache) for block, cache in zip(model.blocks, self.caches, strict=True)]  # type: ignore[arg-type]
        self.needs_context = not all(layer.is_plain for layer in self.layers)
        self.final_norm = norm_of(model.final_norm)

    @staticmethod
    def serves(model: Decoder) -> bool:
        weight, small = model.embedding.weight, model.config.hidden_size <= MOST_HIDDEN
        return small and weight.device.type == "cpu" and weight.dtype == torch.float32

    def step(self, token: int, position: int) -> Tensor:
        """Reads the token at this position. Logits behind it, [V]."""
        inputs, positions = torch.tensor([[token]]), torch.tensor([[position]])
        context = self.model.context(inputs, None, positions, cached=True) if self.needs_context else None
        turn = None if self.tables is None else (self.tables[0][position], self.tables[1][position])
        x_C = self.model.embed(inputs, positions)[0, 0]
        for layer in self.layers:
            x_C = layer(x_C, position, turn, context)
        return self.model.logits(self.final_norm(x_C)[None, None])[0, 0]


class Layer:
    """A block, as far as it consists of known parts in few operations."""

    def __init__(self, block: Block, cache: LayerCache):
        self.block, self.cache = block, cache
        attention, self.attention = block.attention, None
        if type(attention) is Attention and type(cache) is KeyValueCache:
            self.attention = SingleAttention(attention, cache)
        self.norms = [norm_of(norm) for norm in (block.attention_norm, block.mlp_norm)]
        self.post_norms = [
            None if type(norm) is nn.Identity else norm_of(norm)
            for norm in (block.attention_post_norm, block.mlp_post_norm)
        ]
        self.mlp = mlp_of(block.mlp)
        self.is_plain = self.attention is not None and not block.has_experts

    def __call__(
        self, x_C: Tensor, position: int, turn: tuple[Tensor, Tensor] | None, context: Context | None
    ) -> Tensor:
        normed = self.norms[0](x_C)
        if self.attention is None:
            x_C = self._added(x_C, self.block.attention(normed[None, None], context, self.cache)[0, 0], 0)
        else:
            y, output = self.attention(normed, position, turn), self.attention.module.output
            x_C = self._product_added(x_C, output, y, 0)
        normed = self.norms[1](x_C)
        if self.mlp is not None:
            return self._product_added(x_C, self.block.mlp.down, self.mlp(normed), 1)  # type: ignore[arg-type]
        if self.block.has_experts:
            return self._added(x_C, self.block.mlp(normed[None, None], context)[0][0, 0], 1)
        return self._added(x_C, of_vectors(self.block.mlp, normed), 1)

    def _added(self, x_C: Tensor, branch_C: Tensor, which: int) -> Tensor:
        post_norm = self.post_norms[which]
        return x_C + (branch_C if post_norm is None else post_norm(branch_C))

    def _product_added(self, x_C: Tensor, matrix: nn.Module, y: Tensor, which: int) -> Tensor:
        """The residual with W y: in one operation, where neither bias nor norm stands between."""
        if type(matrix) is nn.Linear and matrix.bias is None and self.post_norms[which] is None:
            return torch.addmv(x_C, matrix.weight, y)
        return self._added(x_C, product(matrix, y), which)


class SingleAttention:
    """Attention of one token to a cache, up to the matrix `output`."""

    def __init__(self, module: Attention, cache: KeyValueCache):
        self.module, self.slots = module, cache.slots
        self.keys_KSD, self.values_KSD = cache.keys[0], cache.values[0]
        self.n_queries = module.n_heads
        self.norms = [norm_of(norm) for norm in (module.query_norm, module.key_norm)]
        self.gain_HD: Tensor | None = None  # of the norms of heads, with the root of D
        norm, of_keys = module.query_norm, module.key_norm
        self.has_norms = type(norm) is RMSNorm
        if type(norm) is RMSNorm and type(of_keys) is RMSNorm and not module.norm_whole_vector:
            heads = (norm, module.n_heads), (of_keys, module.n_kv_heads)
            ones = torch.ones(module.head_dim)
            gains = [(ones if n.weight is None else n.weight).expand(count, -1) for n, count in heads]
            self.gain_HD = torch.cat(gains) * module.head_dim**0.5
            self.epsilon = torch.tensor((module.head_dim * norm.eps) ** 0.5)

    def __call__(self, x_C: Tensor, position: int, turn: tuple[Tensor, Tensor] | None) -> Tensor:
        """[H * D]"""
        module = self.module
        qk_HD, v_KD = self._project(x_C)
        if self.gain_HD is not None:
            length_H1 = torch.linalg.vector_norm(qk_HD, dim=-1, keepdim=True)
            qk_HD = (qk_HD / torch.hypot(length_H1, self.epsilon)).mul_(self.gain_HD)
        if turn is not None:
            qk_HD = torch.addcmul(qk_HD * turn[0], qk_HD.roll(module.head_dim // 2, 1), turn[1])
        slot, n = self._slot(position), min(position + 1, self.slots.size)
        self.keys_KSD.select(1, slot).copy_(qk_HD[self.n_queries :])
        self.values_KSD.select(1, slot).copy_(v_KD)
        q_KGD = qk_HD[: self.n_queries].view(len(self.keys_KSD), -1, module.head_dim)
        keys, values = self.keys_KSD.narrow(1, 0, n), self.values_KSD.narrow(1, 0, n)
        # not scaled_dot_product_attention: it hands even this little to all threads, and waits for the slowest
        p_KGS = torch.bmm(q_KGD * module.scale, keys.transpose(1, 2)).softmax(dim=-1)
        return torch.bmm(p_KGS, values).flatten()

    def _project(self, x_C: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [H + K, D], normed if they are as whole vectors, and values [K, D]."""
        module, widths = self.module, self.module.widths
        if module.fused:
            y = product(module.query_key_value, x_C)
        else:
            y = torch.cat([product(part, x_C) for part in (module.query, module.key, module.value)])
        qk, v = y.split((widths[0] + widths[1], widths[2]))
        if self.has_norms and module.norm_whole_vector:
            qk = torch.cat([norm(part) for norm, part in zip(self.norms, qk.split(widths[:2]), strict=True)])
        return qk.view(-1, module.head_dim), v.view(-1, module.head_dim)

    def _slot(self, position: int) -> int:
        window, sinks = self.slots.window, self.slots.sinks
        return position if not window or position < sinks else sinks + (position - sinks) % window


def product(matrix: nn.Module, x: Tensor) -> Tensor:
    """W x + b, [N] of [K]."""
    if type(matrix) is not nn.Linear:
        return matrix(x[None])[0]
    return torch.mv(matrix.weight, x) if matrix.bias is None else torch.addmv(matrix.bias, matrix.weight, x)


def norm_of(norm: nn.Module) -> Vectors:
    """The norm of one vector."""
    if type(norm) is not RMSNorm:
        return functools.partial(of_vectors, norm)

    def rms_norm(x: Tensor) -> Tensor:
        y = x * (torch.dot(x, x).item() / norm.size + norm.eps) ** -0.5
        return y if norm.weight is None else y.mul_(norm.weight)

    return rms_norm


def mlp_of(mlp: nn.Module) -> Vectors | None:
    """The MLP up to its matrix `down`; None where it is of another kind."""
    if type(mlp) is GatedMLP:
        return lambda x: mlp.activation(product(mlp.gate, x)).mul_(product(mlp.up, x))
    if type(mlp) is PlainMLP:
        return lambda x: mlp.activation(product(mlp.up, x))
    return None
