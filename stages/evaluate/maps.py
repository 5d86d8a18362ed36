"""What every head pays to every token of a few short texts, for people to look at.

The texts are the samples: a prompt with what the model wrote behind it, behind one end-of-text, cut to
`MAP_TOKENS`. Probabilities are kept as whole numbers 0..255, of which 255 is 1, so that a page can hold them.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.watching import Block, watch

if TYPE_CHECKING:
    from model.decoder import Decoder

MAP_TOKENS = 64
CELLS = 1 << 21  # of all texts: 2.8 MB of the page


def attention_maps(model: Decoder, texts: Sequence[Sequence[int]], device: str) -> list[dict[str, Any]]:
    """For each text, end-of-text first: {tokens, layers, heads}, heads by layer, each of T x T bytes in base64.

    Fewer texts, then fewer layers, where models have so many heads that the page would grow too large.
    """
    import torch

    found: list[dict[str, Any]] = []
    cells = CELLS
    for text in texts:
        tokens = list(text)[:MAP_TOKENS]
        kept: dict[int, np.ndarray] = {}

        def look(block: Block, n: int = len(tokens), kept: dict[int, np.ndarray] = kept) -> None:
            picture = kept.setdefault(block.layer, np.zeros((block.p.shape[1], n, n), np.uint8))
            here = block.queries.cpu().numpy()[:, None], block.keys.cpu().numpy()[None, :]
            picture[:, here[0], here[1]] = (block.p[0] * 255).round().cpu().numpy().astype(np.uint8)

        inputs = torch.tensor([tokens], device=device)
        positions = torch.arange(len(tokens), device=device)[None]
        with torch.inference_mode():
            layers = watch(model, inputs, torch.zeros_like(inputs), positions, look)
        per_layer = model.config.n_heads * len(tokens) ** 2
        layers = layers[: max(1, cells // per_layer)] if cells >= per_layer or not found else []
        if not layers:
            break
        cells -= per_layer * len(layers)
        heads = [[base64.b64encode(head.tobytes()).decode() for head in kept[layer]] for layer in layers]
        found.append({"tokens": tokens, "layers": layers, "heads": heads})
    return found
