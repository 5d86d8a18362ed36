"""A decoder composed from params: embedding, blocks of attention and MLP, norm, head.

Where the norms stand is an ablation of its own:

    pre_norm (default)      x + f(norm(x))            Llama, Qwen
    post_norm alone         x + norm(f(x))            OLMo 2
    both                    x + norm(f(norm(x)))      Gemma 2

Shapes: B rows, T positions, C hidden, V vocabulary. Architecture only: devices, precision, loss,
sharding and files are the business of those who use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.backends import Case, choose, make_mask
from model.cache import LayerCache
from model.config import ModelConfig, padded_vocabulary
from model.context import EVERYTHING, Context, Mask, Places, Reach
from model.experts import Experts
from model.parts import attention_of, mlp_of, norm_of
from model.rotary import rotation

LOGIT_STD = 0.4  # of the first logits, at most, under a head of its own
TIED_LOGIT = 4.0  # the first logit of a token for itself, at most, where embedding and head are one


class Block(nn.Module):
    """Attention, then MLP, each a branch beside the residual stream."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()

        def norm(wanted: bool) -> nn.Module:
            return norm_of(config, config.hidden_size) if wanted else nn.Identity()

        self.attention_norm, self.attention_post_norm = norm(config.pre_norm), norm(config.post_norm)
        self.attention = attention_of(config, config.kinds[layer])
        self.mlp_norm, self.mlp_post_norm = norm(config.pre_norm), norm(config.post_norm)
        self.mlp = mlp_of(config, layer)
        self.has_experts = isinstance(self.mlp, Experts)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTC: Tensor, context: Context, cache: LayerCache | None = None) -> tuple[Tensor, Tensor | None]:
        """x behind both branches, and the losses of experts while they train."""
        normed = self.attention_norm(x_BTC)
        branch = self.attention(normed, context) if cache is None else self.attention(normed, context, cache)
        x_BTC = x_BTC + self.dropout(self.attention_post_norm(branch))
        normed = self.mlp_norm(x_BTC)
        branch, loss = self.mlp(normed, context) if self.has_experts else (self.mlp(normed), None)
        return x_BTC + self.dropout(self.mlp_post_norm(branch)), loss


class Decoder(nn.Module):
    """Logits for the next token at every position.

    Args:
        config: the architecture.
        vocab_size: ids below it are real; embedding rows are padded up to a multiple of 128 and the
            logits of the padding are never computed into the output.
        context_length: the longest input; only learned positions need to know it.

    Attributes:
        attention_backend: `auto` or a name of model.backends; changes no result beyond rounding.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, context_length: int = 0):
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.attention_backend = "auto"
        rows = padded_vocabulary(vocab_size)
        self.embedding = nn.Embedding(rows, config.hidden_size)
        self.position_embedding: nn.Embedding | None = None
        if config.positions == "learned":
            if context_length < 1:
                raise ValueError("positions: learned needs a context length")
            self.position_embedding = nn.Embedding(context_length, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = norm_of(config, config.hidden_size)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, rows, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draws all matrices, normal with `init_std`, and sets biases to zero; gains keep their ones.

        The outputs of both branches follow `residual_init`. zero: every block starts as the identity,
        which trains faster than small random outputs (as in modded-nanogpt), and the first loss is
        ln V. scaled: smaller by sqrt(2 n_layers) (GPT-2). A norm behind the branch would blow the
        gradient of a zero up by 1/sqrt(eps), so `auto` is zero without post_norm and normal with it.

        A tied embedding is drawn smaller in wide models: where blocks are the identity, a token's logit
        for itself is about std * hidden_size, and at 0.02 * 768 = 15 the model would be sure of it. A
        head of its own is drawn so that logits spread by 0.4 at most.
        """
        outputs = ("attention.output.weight", "mlp.down.weight", "mlp.down", "mlp.shared.down.weight")
        chosen = self.config.residual_init
        if chosen == "auto":
            chosen = "normal" if self.config.post_norm else "zero"
        output_std = (
            self.config.init_std * {"zero": 0.0, "scaled": (2 * self.config.n_layers) ** -0.5, "normal": 1.0}[chosen]
        )
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif parameter.ndim > 1:
                    std = output_std if name.endswith(outputs) else self.config.init_std
                    if parameter is self.embedding.weight and self.head is None:
                        std = min(std, TIED_LOGIT / self.config.hidden_size)
                    elif self.head is not None and parameter is self.head.weight:
                        std = min(std, LOGIT_STD / self.config.hidden_size**0.5)
                    parameter.normal_(0.0, 1.0, generator=generator).mul_(std)

    def context(
        self, inputs_BT: Tensor, segments_BT: Tensor | None = None, positions_BT: Tensor | None = None,
        n_documents: int | None = None, cached: bool = False,
    ) -> Context:  # fmt: skip
        """What all blocks share. Segments (0, 1, 2.. within a row, -1 for padding) keep packed documents
        apart; positions count from 0 in each. Who knows `n_documents` (model/context.py) spares a GPU the waiting.
        With a cache, layers make their own masks."""
        packed = segments_BT is not None
        if positions_BT is None:
            positions_BT = torch.arange(inputs_BT.shape[1], device=inputs_BT.device).expand_as(inputs_BT)
        places = Places(positions_BT, segments_BT)
        widths: set[int] = set()
        if self.config.positions == "rope":
            widths = {
                self.config.qk_rope_head_dim if kind == "mla" else self.config.width_of_head
                for kind in self.config.kinds
            }
        rotations = {width: rotation(positions_BT, self.config, width) for width in sorted(widths)}
        masks = {} if cached else self._masks(places, packed, n_documents)
        return Context(places, rotations, masks)

    def _masks(self, places: Places, packed: bool, n_documents: int | None) -> dict[str, Mask]:
        """One mask per kind of attention, each for the fastest backend that can do it."""
        kinds = dict.fromkeys(kind if kind in ("swa", "mla") else "full" for kind in self.config.kinds)
        masks = {}
        for kind in kinds:
            case = self._case(kind, places.positions.shape[1], packed)
            backend = choose(case, self.attention_backend)
            masks[kind] = make_mask(backend, places, case.reach, case.causal, n_documents)
        return masks

    def _case(self, kind: str, length: int, packed: bool) -> Case:
        config, latent = self.config, kind == "mla"
        device = self.embedding.weight.device.type
        autocast = torch.is_autocast_enabled(device)
        # A window that holds the whole row is none.
        windowed = kind == "swa" and config.window < length
        return Case(
            device=device,
            dtype=torch.get_autocast_dtype(device) if autocast else self.embedding.weight.dtype,
            n_heads=config.n_heads,
            n_kv_heads=config.n_heads if latent else config.n_kv_heads,
            key_width=config.qk_nope_head_dim + config.qk_rope_head_dim if latent else config.width_of_head,
            value_width=config.v_head_dim if latent else config.width_of_head,
            length=length,
            reach=Reach(config.window, config.sink_tokens) if windowed else EVERYTHING,
            packed=packed,
            causal=True,
            generation=torch.cuda.get_device_capability()[0] if device == "cuda" else 0,
        )

    def hidden(self, inputs_BT: Tensor, context: Context, caches: Sequence[LayerCache] | None = None) -> Tensor:
        """The normed hidden states before the head, [B, T, C]."""
        x_BTC = self.embed(inputs_BT, context.places.positions)
        for layer, block in enumerate(self.blocks):
            x_BTC, loss = block(x_BTC, context) if caches is None else block(x_BTC, context, caches[layer])
            if loss is not None:
                context.losses.append(loss)
        return self.final_norm(x_BTC)

    def embed(self, inputs_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Embeddings with what positions add to them, [B, T, C]. Under autocast the residual stream is of its dtype:
        in fp32 every block would move twice the bytes (4% of the training step at 124M on an H200)."""
        x_BTC = self.embedding(inputs_BT)
        device = x_BTC.device.type
        if torch.is_autocast_enabled(device):
            x_BTC = x_BTC.to(torch.get_autocast_dtype(device))
        if self.position_embedding is not None:
            x_BTC = x_BTC + self.position_embedding(positions_BT).to(x_BTC.dtype)
        elif self.config.positions == "sinusoidal":
            x_BTC = x_BTC + sinusoids(positions_BT, self.config.hidden_size).to(x_BTC.dtype)
        return self.dropout(x_BTC)

    def logits(self, hidden_BTC: Tensor) -> Tensor:
        """[B, T, V], soft-capped if the config says so: cap * tanh(logits / cap) (Gemma 2)."""
        logits_BTV = self.head_product(hidden_BTC)[..., : self.vocab_size]
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits_BTV / cap) if cap else logits_BTV

    def head_product(self, hidden_BTC: Tensor) -> Tensor:
        """A number for every row of the head, padded ones too."""
        weight = self.embedding.weight if self.head is None else self.head.weight
        return hidden_BTC @ weight.t()

    def forward(
        self, inputs_BT: Tensor, segments_BT: Tensor | None = None, positions_BT: Tensor | None = None
    ) -> Tensor:
        """Logits [B, T, V] of rows of packed documents, or of one document each."""
        return self.logits(self.hidden(inputs_BT, self.context(inputs_BT, segments_BT, positions_BT)))

    @property
    def has_caches(self) -> bool:
        """Whether every layer can remember; an attention of one's own may not."""
        return all(hasattr(block.attention, "new_cache") for block in self.blocks)

    def new_caches(self, batch: int, capacity: int) -> list[LayerCache]:
        """One empty cache per layer, for `capacity` tokens of `batch` sequences."""
        like = self.embedding.weight.detach()
        return [block.attention.new_cache(batch, capacity, like) for block in self.blocks]  # type: ignore[operator, union-attr]

    def extend(
        self, inputs_BT: Tensor, positions_BT: Tensor, caches: Sequence[LayerCache], segments_BT: Tensor | None = None
    ) -> Tensor:
        """Logits [B, T, V] of new tokens behind those that `caches` remember. Segment -1 marks padding."""
        context = self.context(inputs_BT, segments_BT, positions_BT, cached=True)
        return self.logits(self.hidden(inputs_BT, context, caches))


def sinusoids(positions_BT: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of positions at width/2 frequencies from 1 down to 1/10,000 (Vaswani et al., 2017)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=positions_BT.device) * (-math.log(10000.0) / max(half - 1, 1)))
    angle_BTF = positions_BT[..., None].float() * frequency
    return torch.cat((angle_BTF.sin(), angle_BTF.cos()), dim=-1)
