"""How much worse the model predicts without each head: its output is set to zero, and the rest runs on.

    ablation of a head = mean loss without it - mean loss, in nats a token

Michel et al., 2019 (Are sixteen heads really better than one?) do the same. Near zero: the other heads make up
for it, or it does nothing. Below zero: the text is predicted better without it. Zeros are an input that later
layers were not trained on, so this bounds what a head is worth from above rather than below.

What comes before a layer is the same for all of its heads and is computed once: with L layers and H heads the
work is about L * H / 2 forward passes over few tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stages.evaluate.attention import first_slots
from stages.perplexity import TOKENS_PER_HEAD, to_tensors
from stages.tokens import IGNORED_LABEL, TokenRows

if TYPE_CHECKING:
    from torch import Tensor

    from model.context import Context
    from model.decoder import Decoder

KINDS = ("full", "swa", "mla")  # an attention of one's own need not have heads


def head_ablations(model: Decoder, rows: TokenRows, max_tokens: int, device: str) -> dict[tuple[int, int], float]:
    """By layer and head: the rise of the mean loss on the first rows of the split, at most `max_tokens` slots."""
    import torch

    slots = min(rows.context_length, max_tokens)
    batch = first_slots(rows.batch(np.arange(min(rows.n_rows, max(1, max_tokens // slots)))), slots)
    inputs, labels, segments, positions = to_tensors(batch, device)
    found = {}
    with torch.inference_mode():
        context = model.context(inputs, segments, positions)
        x_BTC = model.embed(inputs, context.places.positions)
        whole = _loss(model, x_BTC, 0, context, labels)
        for layer, block in enumerate(model.blocks):
            if model.config.kinds[layer] in KINDS:
                for head in range(model.config.n_heads):
                    with _Silenced(block, head, model.config.n_heads):
                        changed, _ = block(x_BTC, context)
                    found[layer, head] = round(_loss(model, changed, layer + 1, context, labels) - whole, 6)
            x_BTC, _ = block(x_BTC, context)
    return found


class _Silenced:
    """Within this block the head's part of what enters the attention's output matrix is zero."""

    def __init__(self, block: Any, head: int, n_heads: int):
        self.output, self.head, self.n_heads = block.attention.output, head, n_heads

    def __enter__(self) -> None:
        def silence(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
            y = inputs[0].clone()
            y.unflatten(-1, (self.n_heads, -1))[..., self.head, :] = 0
            return (y,)

        self.hook = self.output.register_forward_pre_hook(silence)

    def __exit__(self, *error: object) -> None:
        self.hook.remove()


def _loss(model: Decoder, x_BTC: Tensor, layer: int, context: Context, labels: Tensor) -> float:
    """The mean loss behind the layers from this one on."""
    from torch.nn import functional as F

    for block in model.blocks[layer:]:
        x_BTC, _ = block(x_BTC, context)
    hidden = model.final_norm(x_BTC).flatten(0, 1)
    total = 0.0
    for part, wanted in zip(hidden.split(TOKENS_PER_HEAD), labels.flatten().split(TOKENS_PER_HEAD), strict=True):
        logits = model.logits(part).float()
        total += float(F.cross_entropy(logits, wanted, ignore_index=IGNORED_LABEL, reduction="sum"))
    return total / max(1, int((labels != IGNORED_LABEL).sum()))
