"""Forward and backward pass of one micro-batch, started kernel by kernel or as one CUDA graph.

A step of a small model is thousands of kernels of some microseconds, and Python starts them no faster than the
GPU ends them. A graph is recorded once and started whole: the processor is out of the way, so micro-batches can be
small and memory with them. What a graph reads and writes has fixed places: inputs are copied into them, gradients
stay allocated between steps, and the factor of the loss is a number on the device.

Where one rank computes alone, the graph of the first micro-batch of a step writes its gradient over what stands there,
and another, of all others, adds to it: nobody writes zeros, reads them and adds to them. Both work in the same memory.
Gradients of several ranks lie in buckets (exchange.py), to which all add.

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
        replaces: the gradient of the first micro-batch of a step becomes the parameters', whatever they had, so that
            nobody need clear them between steps.
    """

    replaces: bool

    def __call__(self, batch: MicroBatch, factor: float | Tensor, first: bool) -> Tensor: ...


class EagerMicroStep:
    replaces = False

    def __init__(self, objective: nn.Module, device: str, precision: str):
        self.objective, self.device, self.precision = objective, device, precision

    def __call__(self, batch: MicroBatch, factor: float | Tensor, first: bool = True) -> Tensor:
        with autocast(self.device, self.precision):
            loss, nats = self.objective(*to_device(batch, self.device))
        (loss * factor).backward()
        return nats.detach()


class _Recording:
    """A graph with the tensors that it reads and the one that it writes.

    Args:
        makes: the graph makes the gradients, in its own memory; else it adds to those that are there.
        beside: a graph of equal shapes that is never replayed at the same time, whose memory serves this one too.
            It has compiled and chosen what this one needs.
    """

    def __init__(
        self, eager: EagerMicroStep, batch: MicroBatch, documents: int, makes: bool, beside: _Recording | None = None
    ):
        self.batch = to_device(batch, eager.device)._replace(n_documents=documents)
        self.factor = torch.zeros((), device=eager.device)
        buffers = list(eager.objective.buffers())
        kept = [buffer.clone() for buffer in buffers]
        if beside is None:
            _warm_up(eager, self.batch, self.factor)
        if makes:
            clear_gradients(eager.objective)
        torch.cuda.empty_cache()  # what these passes held would stand beside the memory of the graph
        self.graph = torch.cuda.CUDAGraph()
        pool = beside.graph.pool() if beside else None
        # thread_local: the threads that load data and write checkpoints may ask for memory meanwhile
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.nats = eager(self.batch, self.factor)
        for buffer, value in zip(buffers, kept, strict=True):  # what passes without meaning have counted
            buffer.copy_(value)

    def replay(self, batch: MicroBatch, factor: float | Tensor) -> Tensor:
        for place, value in zip(self.batch[:-1], batch[:-1], strict=True):
            place.copy_(value.to(place.device, non_blocking=True))  # of half the width until it is there
        self.factor.copy_(factor) if isinstance(factor, Tensor) else self.factor.fill_(factor)
        self.graph.replay()
        return self.nats


def _warm_up(eager: EagerMicroStep, batch: MicroBatch, factor: Tensor) -> None:
    """Passes with a factor of 0: gradients get their places and no value."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            eager(batch, factor)
    torch.cuda.current_stream().wait_stream(stream)


class GraphedMicroStep:
    """Micro-batches of `rows` rows by graphs, and smaller ones, at the end of a step, kernel by kernel.

    Args:
        replaces: see MicroStep; not where gradients have places of somebody else's.
    """

    def __init__(self, objective: nn.Module, device: str, precision: str, rows: int, replaces: bool):
        self.eager, self.rows, self.replaces = EagerMicroStep(objective, device, precision), rows, replaces
        self.documents = 0
        self.making: _Recording | None = None
        self.adding: _Recording | None = None

    def __call__(self, batch: MicroBatch, factor: float | Tensor, first: bool) -> Tensor:
        makes = first and self.replaces
        if len(batch.inputs) != self.rows:
            if makes:
                clear_gradients(self.eager.objective)
                self.making = self.adding = None  # their gradients are gone
            return self.eager(batch, factor)
        recording = self.making if makes else self.adding
        if recording is None or batch.n_documents > recording.batch.n_documents:
            recording = None  # its memory goes before another is recorded
            recording = self._record(batch, makes)
        return recording.replay(batch, factor)

    def _record(self, batch: MicroBatch, makes: bool) -> _Recording:
        self.documents = max(self.documents, 2 << (batch.n_documents - 1).bit_length())
        self.adding = None  # it adds where the other has made gradients
        if self.making is not None and (makes or self.making.batch.n_documents != self.documents):
            self.making = None
        if makes:
            clear_gradients(self.eager.objective)
            self.making = _Recording(self.eager, batch, self.documents, makes=True)
            return self.making
        self.adding = _Recording(self.eager, batch, self.documents, makes=False, beside=self.making)
        return self.adding


def clear_gradients(objective: nn.Module) -> None:
    for parameter in objective.parameters():
        parameter.grad = None
