"""One token for each of many sequences, in few kernels: for a GPU, where a small model waits for launches.

A decoder of twelve layers and 768 channels used to take 391 kernels a step on an H200, 1.05 ms, while its weights
can be read in 0.06 ms. Here a step is four functions of tensors alone, which torch.compile makes a few kernels of,
with attention in the midst of each layer:

    first     embeddings, rotations from a table, the slots to write to and what is not to be seen
    before    norm, one product for queries, keys and values, their norms, rotation, writing into the cache
    attend    one kernel; what is not to be seen is added to the scores
    after     output onto the residual, norm, one product for gate and up, activation, down onto the residual
    last      norm, head

None sees how many slots are read, so each is compiled once for a number of rows and serves all layers and lengths.
Gate and up lie one behind the other in memory, as before but side by side.

Guesses are rows as well: tokens of one sequence, which write to different slots of one row of the caches and see up to
their own places.

Experts, latent attention, packed matrices and attention of one's own, subclasses of the built-in one too, take the
decoder's own path. Norms and MLPs of one's own are called as they are.

Shapes: B rows, C hidden, H query heads, K key heads, G query heads per key head, D width of a head, S slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import Attention
from model.cache import KeyValueCache, LayerCache, Slots
from model.context import Context, Places
from model.decoder import Block, Decoder
from model.mlp import GatedMLP
from model.rotary import rotation
from serving.vectors import of_vectors
from serving.wide import WideLinear, wide_product

ALIGNED = 16  # slots: attention would copy a mask whose rows begin anywhere
MOST_COMPILED = 64  # numbers of rows times kinds of layers; beyond torch's 8 it would go on uncompiled


class Rows:
    """Steps of the first rows of the caches.

    Args:
        compiled: `false`, `true`, or `tuned`: inductor also searches for the best kernels, for longer.
    """

    def __init__(self, model: Decoder, capacity: int, compiled: str):
        self.model, self.is_compiled = model, compiled != "false"
        self.first: Any = first
        self.before: Any = before
        self.after: Any = after
        self.last: Any = last
        if self.is_compiled:
            torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, MOST_COMPILED)
            options: dict[str, Any] = {"coordinate_descent_tuning": compiled == "tuned"}
            self.first, self.before, self.after, self.last = (
                torch.compile(f, dynamic=False, options=options) for f in (first, before, after, last)
            )
        self.tables: tuple[Tensor, Tensor] | None = None
        device = model.embedding.weight.device
        if model.config.positions == "rope":
            places = torch.arange(capacity, device=device)[None]
            cosine, sine = rotation(places, model.config, model.config.width_of_head)
            self.tables = cosine[0, 0], sine[0, 0]
        self.joined = [joined(block.mlp) for block in model.blocks]  # type: ignore[arg-type]

    def give_up_compiling(self) -> None:
        """Goes on with the functions as they are. Tables and joined matrices stay, by address."""
        self.is_compiled = False
        self.first, self.before, self.after, self.last = first, before, after, last

    @staticmethod
    def serves(model: Decoder) -> bool:
        return not model.config.n_experts and all(
            type(block.attention) is Attention and type(block.attention.output) in (nn.Linear, WideLinear)
            for block in model.blocks
        )

    def step(
        self, inputs_B1: Tensor, positions_B1: Tensor, caches: Sequence[LayerCache], length: int, shared: bool = False
    ) -> Tensor:
        """Reads a token into each row of the caches, as far as `length` slots are in use. Logits behind each, [B, V].
        Where the row is shared, all into the first."""
        kinds = tuple(dict.fromkeys(cache.slots for cache in caches))
        x_BC, rows_B, turn, seen_by = self.first(self.model, self.tables, kinds, inputs_B1, positions_B1, shared)
        for block, cache, gate_up in zip(self.model.blocks, caches, self.joined, strict=True):
            assert type(cache) is KeyValueCache and isinstance(block, Block)
            slots_B, bias_BS = seen_by[kinds.index(cache.slots)]
            q_BHD = self.before(block, x_BC, turn, rows_B, slots_B, cache.keys, cache.values)
            n_slots = cache.slots.size if cache.slots.window else length
            y_BC = attend(q_BHD, cache, bias_BS[:, None, None, :n_slots], block.attention.scale)  # type: ignore[arg-type]
            x_BC = self.after(block, gate_up, x_BC, y_BC)
        return self.last(self.model, x_BC)


def joined(mlp: nn.Module) -> Tensor | None:
    """The matrices gate and up as one, whose halves they become; None where the MLP is of another kind."""
    if type(mlp) is not GatedMLP or mlp.gate.bias is not None:
        return None
    both = torch.cat((mlp.gate.weight, mlp.up.weight))
    for matrix, half in zip((mlp.gate, mlp.up), both.chunk(2), strict=True):
        matrix.weight = nn.Parameter(half, requires_grad=False)
    return both


def first(
    model: Decoder, tables: tuple[Tensor, Tensor] | None, kinds: Sequence[Slots], inputs_B1: Tensor,
    positions_B1: Tensor, shared: bool,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None, list[tuple[Tensor, Tensor]]]:  # fmt: skip
    """Embeddings [B, C], the rows of the caches, rotations, and for each kind of cache what `seen` says."""
    positions_B = positions_B1[:, 0]
    x_BC = model.embed(inputs_B1, positions_B1)[:, 0]
    kind = x_BC.dtype
    if type(model.blocks[0].attention.output) is WideLinear:  # type: ignore[union-attr]
        x_BC = x_BC.float()
    rows_B = torch.zeros_like(positions_B) if shared else torch.arange(len(x_BC), device=x_BC.device)
    turn = None
    if tables is not None:
        turn = tables[0][positions_B][:, None, None], tables[1][positions_B][:, None, None]
    return x_BC, rows_B, turn, [seen(slots, positions_B, kind) for slots in kinds]


def last(model: Decoder, x_BC: Tensor) -> Tensor:
    """Logits [B, V]."""
    return model.logits(of_vectors(model.final_norm, x_BC)[:, None])[:, 0]


def seen(slots: Slots, positions_B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The slot of each token, and what is added to scores [B, S]: 0 for what it sees, else minus infinity."""
    width = -(-slots.size // ALIGNED) * ALIGNED
    hidden_BS = torch.arange(width, device=positions_B.device) > positions_B[:, None]  # a ring is filled from the left
    bias_BS = torch.zeros_like(hidden_BS, dtype=dtype).masked_fill(hidden_BS, float("-inf"))
    return slots.slot(positions_B), bias_BS


def before(block: Block, x_BC: Tensor, turn: tuple[Tensor, Tensor] | None, rows_B: Tensor, slots_B: Tensor,
           keys_BKSD: Tensor, values_BKSD: Tensor) -> Tensor:  # fmt: skip
    """Queries [B, H, D]; keys and values are in the cache."""
    attention: Attention = block.attention  # type: ignore[assignment]
    rotations = {} if turn is None else {attention.head_dim: turn}
    context = Context(Places(slots_B[:, None]), rotations, {})
    q, k, v = attention.project(of_vectors(block.attention_norm, x_BC)[:, None], context)
    for kept, new in ((keys_BKSD, k), (values_BKSD, v)):
        kept[rows_B, :, slots_B] = new[:, :, 0].to(kept.dtype)
    return q[:, :, 0].to(keys_BKSD.dtype)


def attend(q_BHD: Tensor, cache: KeyValueCache, bias_B11S: Tensor, scale: float) -> Tensor:
    """[B, H * D]. Heads that share keys become queries of one head: no key is copied."""
    keys, values = (kept[:, :, : bias_B11S.shape[-1]] for kept in (cache.keys, cache.values))
    keys, values = (kept.expand(len(q_BHD), -1, -1, -1) for kept in (keys, values))  # of a shared row
    q_BKGD = q_BHD.unflatten(1, (keys.shape[1], -1))
    bias_BKGS = bias_B11S.expand(*q_BKGD.shape[:3], -1)
    return F.scaled_dot_product_attention(q_BKGD, keys, values, bias_BKGS, scale=scale).flatten(1)


def after(block: Block, gate_up: Tensor | None, x_BC: Tensor, y_BC: Tensor) -> Tensor:
    """The residual stream behind the block."""
    x_BC = x_BC + of_vectors(block.attention_post_norm, block.attention.output(y_BC))  # type: ignore[operator]
    normed, mlp = of_vectors(block.mlp_norm, x_BC), block.mlp
    if gate_up is None:
        return x_BC + of_vectors(block.mlp_post_norm, of_vectors(mlp, normed))
    product = wide_product if type(mlp.down) is WideLinear else F.linear
    gate, up = product(normed, gate_up).chunk(2, dim=-1)
    activation: Callable[[Tensor], Tensor] = mlp.activation  # type: ignore[assignment]
    return x_BC + of_vectors(block.mlp_post_norm, mlp.down(activation(gate) * up))  # type: ignore[operator]
