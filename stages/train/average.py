"""The moving average of the weights (EMA), which is what a run with `train.ema_decay` publishes.

After every step   average <- d * average + (1 - d) * weights,   d = min(ema_decay, (1 + step) / (10 + step))

The second term of the minimum forgets the first weights soon, as in TensorFlow: with ema_decay 0.999 and 250
steps the average reaches over the last 26 steps or so at the end, not back to noise. A skipped step leaves it.

The average is one copy of the parameters beside the model. To validate, sample or save, the two change places:

    with average.in_model():        # inside, the model has the averaged weights
        validate(model)

So `model.safetensors` of a checkpoint is the average, which evaluate and export take as they take any
model, and `raw.safetensors` beside it holds the weights that training goes on from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from stages.train.parts import Stored
from stages.train.sharding import local, part


def decay_at(step: int, decay: float) -> float:
    """d of the optimizer step `step`, counted from 0."""
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """The average of the parameters of a model. Buffers are not averaged: the model's own are the newest.

    Attributes:
        beside: by name, the average; while `in_model`, the weights that are trained.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = dict(model.named_parameters())
        self.beside: dict[str, Tensor] = {}

    def begin(self) -> None:
        """The average begins as the weights that the model has, unless a checkpoint held one."""
        if not self.beside:
            self.beside = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int, finite: Tensor) -> None:
        """Moves over a step; by nothing where `finite` is false, which the device knows and nobody waits for."""
        weight = (1 - decay_at(step, self.decay)) * finite.float()
        averages = [local(tensor) for tensor in self.beside.values()]
        weights = [local(parameter.detach()) for parameter in self.parameters.values()]
        torch._foreach_lerp_(averages, weights, [weight.to(average.dtype) for average in averages])

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """Within this block the model has the averages."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """The model's weights and those beside it change places, bit for bit, a tensor at a time."""
        for name, parameter in self.parameters.items():
            mine, its = local(self.beside[name]), local(parameter.detach())
            kept = its.clone()
            its.copy_(mine)
            mine.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, which is written `in_model`: the weights that are trained."""
        return dict(self.beside)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Stored]) -> None:
        """Restores what `tensors` gave, after the model got its weights from the same checkpoint: the averages."""
        self.begin()
        for name, tensor in tensors.items():
            local(self.beside[name]).copy_(part(tensor, self.beside[name]))
        self.exchange()
