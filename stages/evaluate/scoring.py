"""How text is charged: the precision of the passes, and whether they are compiled.

Metrics are computed in fp32 unless `evaluate.precision` is bf16, in which a GPU reads several times faster and the
loss moves in its fourth digit: 2.02069 and 2.02081 nats with 124M parameters. The precision is a param, not a matter
of the device, since two runs are compared by these figures.

Compiling takes as long as a GPU needs for millions of tokens, so `execution.compile: auto` compiles for more only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from stages.execution import Execution
from stages.perplexity import nats_of, token_losses
from stages.tokens import Batch

if TYPE_CHECKING:
    from torch import Tensor

    from model.decoder import Decoder

COMPILED_FROM = 8_000_000  # slots; 124M parameters on an H200 read as many in 16 seconds as they are


class Scorer:
    """Called with a batch: nats of every label, float32 [B, T]; 0 where a slot is padding.

    Blocks are compiled for these passes alone: whoever looks into the model in between finds it as it is.
    """

    def __init__(self, model: Decoder, device: str, precision: str = "fp32", compiled: bool = False):
        self.model, self.device, self.precision = model, device, precision
        self._nats: Callable[[Decoder, Tensor, Tensor], Tensor] = nats_of
        self._forwards: list[Callable[..., Tensor]] = []
        if compiled:
            import torch

            self._nats = torch.compile(nats_of, dynamic=False)
            self._forwards = [torch.compile(block.forward, dynamic=False) for block in model.blocks]

    def __call__(self, batch: Batch) -> np.ndarray:
        import torch

        kind = torch.device(self.device).type
        with ExitStack() as restored, torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bf16"):
            for block, forward in zip(self.model.blocks, self._forwards, strict=False):
                block.forward = forward
                restored.callback(delattr, block, "forward")
            return token_losses(self.model, batch, self.device, self._nats)


def worth_compiling(execution: Execution, device: str, n_slots: int) -> bool:
    """Whether so many slots are read by compiled blocks."""
    if execution.compile == "auto":
        return device == "cuda" and n_slots >= COMPILED_FROM
    return execution.compile
