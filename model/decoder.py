"""A decoder of the Llama kind: embedding, blocks of attention and MLP, norm, head.

Where the norms stand is an ablation of its own:

    pre_norm (default)      x + f(norm(x))            Llama, Qwen
    post_norm alone         x + norm(f(x))            OLMo 2
    both                    x + norm(f(norm(x)))      Gemma 2

Shapes: B rows, T positions, C hidden, V vocabulary. Architecture only: devices, precision, loss,
sharding and files are the business of those who use it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import Attention, visible
from model.config import ModelConfig, padded_vocabulary
from model.mlp import MLP
from model.norm import RMSNorm
from model.rotary import rotation


class Block(nn.Module):
    """Attention, then MLP, each a branch beside the residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()

        def norm(wanted: bool) -> nn.Module:
            return RMSNorm(config.hidden_size, config.norm_eps) if wanted else nn.Identity()

        self.attention_norm, self.attention_post_norm = norm(config.pre_norm), norm(config.post_norm)
        self.attention = Attention(config)
        self.mlp_norm, self.mlp_post_norm = norm(config.pre_norm), norm(config.post_norm)
        self.mlp = MLP(config)

    def forward(self, x_BTC: Tensor, cosine: Tensor, sine: Tensor, mask: Tensor | None) -> Tensor:
        branch = self.attention(self.attention_norm(x_BTC), cosine, sine, mask)
        x_BTC = x_BTC + self.attention_post_norm(branch)
        return x_BTC + self.mlp_post_norm(self.mlp(self.mlp_norm(x_BTC)))


class Decoder(nn.Module):
    """Logits for the next token at every position.

    Args:
        config: the architecture.
        vocab_size: ids below it are real; embedding rows are padded up to a multiple of 128 and the
            logits of the padding are never computed into the output.
    """

    def __init__(self, config: ModelConfig, vocab_size: int):
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        rows = padded_vocabulary(vocab_size)
        self.embedding = nn.Embedding(rows, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Linear(config.hidden_size, rows, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Draws all weights: normal with `init_std`, zero for the outputs of both branches.

        With zero outputs every block starts as the identity, which trains faster than small random
        ones (as in modded-nanogpt), and the first loss is about ln V. A norm behind the branch would
        blow the gradient of a zero up by 1/sqrt(eps), so with `post_norm` they are drawn as the rest.
        """
        zero = () if self.config.post_norm else ("attention.output.weight", "mlp.down.weight")
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim < 2:
                    parameter.fill_(1.0)
                elif name.endswith(zero):
                    parameter.zero_()
                else:
                    parameter.normal_(0.0, self.config.init_std, generator=generator)

    def rotation_and_mask(
        self, inputs_BT: Tensor, segments_BT: Tensor | None, positions_BT: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What all blocks share: cosines, sines, and the mask (None for plain causal attention)."""
        if positions_BT is None:
            positions_BT = torch.arange(inputs_BT.shape[1], device=inputs_BT.device)[None]
        cosine, sine = rotation(positions_BT, self.config.width_of_head, self.config.rope_theta)
        return cosine, sine, None if segments_BT is None else visible(segments_BT)

    def hidden(
        self, inputs_BT: Tensor, segments_BT: Tensor | None = None, positions_BT: Tensor | None = None
    ) -> Tensor:
        """The normed hidden states before the head, [B, T, C]."""
        cosine, sine, mask = self.rotation_and_mask(inputs_BT, segments_BT, positions_BT)
        x_BTC = self.embedding(inputs_BT)
        for block in self.blocks:
            x_BTC = block(x_BTC, cosine, sine, mask)
        return self.final_norm(x_BTC)

    def forward(
        self, inputs_BT: Tensor, segments_BT: Tensor | None = None, positions_BT: Tensor | None = None
    ) -> Tensor:
        """Logits [B, T, V]. Segments (0, 1, 2.. within a row) keep packed documents apart; positions
        count from 0 in each."""
        hidden_BTC = self.hidden(inputs_BT, segments_BT, positions_BT)
        head = self.embedding.weight if self.head is None else self.head.weight
        return (hidden_BTC @ head.t())[..., : self.vocab_size]
