"""Forward and backward pass of one micro-batch, started kernel by kernel or as one CUDA graph.

A step of a small model is thousands of kernels of some microseconds, and Python starts them no faster than the
GPU ends them. A graph is recorded once and started whole: the processor is out of the way, so micro-batches can be
small and memory with them. What a graph reads and writes has fixed places: inputs are copied into them, gradients
stay allocated between steps, and the factor of the loss is a number on the device.

Where a step is one micro-batch of one rank, its graph writes the gradients, in its own memory, over those of the step
before: nobody writes zeros, reads them and adds to them. Else graphs add to what is there.

Rows of packed documents have another number of documents each time. A graph is recorded for two to four times the
number in its first batch, the rest being empty documents behind the last token, and anew should a batch have more.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from stages.train.batches import MicroBatch, to_device
from stages.train.objective import autocast

WARM_UP = 2  # passes before a recording, in which kernels are compiled and chosen


class MicroStep(Protocol):
    """Adds the gradient of factor * loss to the parameters; returns the nats of cross-entropy, [].

    Attributes:
        replaces: it does not add: the gradient becomes the parameters', whatever they had, and nobody need clear them.
    """

    replaces: bool

    def __call__(self, batch: MicroBatch, factor: float | Tensor) -> Tensor: ...


class EagerMicroStep:
    replaces = False

    def __init__(self, objective: nn.Module, device: str, precision: str):
        self.objective, self.device, self.precision = objective, device, precision

    def __call__(self, batch: MicroBatch, factor: float | Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            loss, nats = self.objective(*to_device(batch, self.device))
        (loss * factor).backward()
        return nats.detach()


class _Recording:
    """A graph with the tensors that it reads and the one that it writes. `makes`: the gradients too."""

    def __init__(self, eager: EagerMicroStep, batch: MicroBatch, documents: int, makes: bool):
        self.batch = to_device(batch, eager.device)._replace(n_documents=documents)
        self.factor = torch.zeros((), device=eager.device)
        buffers = list(eager.objective.buffers())
        kept = [buffer.clone() for buffer in buffers]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # with a factor of 0: gradients get their places and no value
            for _ in range(WARM_UP):
                eager(self.batch, self.factor)
        torch.cuda.current_stream().wait_stream(stream)
        if makes:
            clear_gradients(eager.objective)
        torch.cuda.empty_cache()  # what these passes held would stand beside the memory of the graph
        self.graph = torch.cuda.CUDAGraph()
        # thread_local: the threads that load data and write checkpoints may ask for memory meanwhile
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
            self.nats = eager(self.batch, self.factor)
        for buffer, value in zip(buffers, kept, strict=True):  # what passes without meaning have counted
            buffer.copy_(value)

    def replay(self, batch: MicroBatch, factor: float | Tensor) -> Tensor:
        for place, value in zip(self.batch[:-1], batch[:-1], strict=True):
            place.copy_(value.to(place.device, non_blocking=True))  # of half the width until it is there
        self.factor.copy_(factor) if isinstance(factor, Tensor) else self.factor.fill_(factor)
        self.graph.replay()
        return self.nats


class GraphedMicroStep:
    """Micro-batches of `rows` rows by graphs, and smaller ones, at the end of a step, kernel by kernel.

    Args:
        replaces: see MicroStep; for steps of one micro-batch.
    """

    def __init__(self, objective: nn.Module, device: str, precision: str, rows: int, replaces: bool = False):
        self.eager, self.rows, self.replaces = EagerMicroStep(objective, device, precision), rows, replaces
        self.recording: _Recording | None = None

    def __call__(self, batch: MicroBatch, factor: float | Tensor) -> Tensor:
        if len(batch.inputs) != self.rows:
            assert not self.replaces, "a step of one micro-batch has one size"
            return self.eager(batch, factor)
        if self.recording is None or batch.n_documents > self.recording.batch.n_documents:
            self.recording = None  # its memory goes before another is recorded
            if self.replaces:
                clear_gradients(self.eager.objective)
            documents = 2 << (batch.n_documents - 1).bit_length()
            self.recording = _Recording(self.eager, batch, documents, self.replaces)
        return self.recording.replay(batch, factor)


def clear_gradients(objective: nn.Module) -> None:
    for parameter in objective.parameters():
        parameter.grad = None
