"""How gradients of several ranks become one: the sum over all of them, once a step.

    one rank                      nothing
    sharding: none   (summed)     every rank holds the whole model; gradients are summed behind the last micro-batch
    sharding: full   (in parts)   FSDP2 sums while it goes backward, behind the last micro-batch too (sharding.py)

Summed gradients lie in buckets, flat pieces of memory in the order in which a backward pass ends with them, of which
each parameter's `.grad` is a view: nothing is copied, a bucket is one call to NCCL or gloo. Where micro-batches go
kernel by kernel, a full bucket is on its way while the backward pass goes on (PyTorch DDP, Li et al., 2020). Where a
micro-batch is a CUDA graph, nobody is told when a gradient is there, and all buckets go behind the last graph: on four
H200 NCCL then worked alone for 3 to 9% of a step of 64K tokens a GPU, waits for the slowest included, and that was
still faster than kernel by kernel (docs/train.md).

Example: parameters a (4 numbers), b (6), c (6), buckets of 48 bytes: [c, b], [a]. Backward gives c, then b: the first
bucket leaves while a is computed. All ranks send buckets in this order, whatever comes first on one of them.
"""

from __future__ import annotations

import functools

from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule

from stages.train.ranks import Ranks

BUCKET_BYTES = 64 * 2**20


class Exchange:
    """What one rank needs: nothing.

    Attributes:
        factor: by which the loss of a rank is multiplied, so that what comes out is the sum over ranks.
        keeps: whether gradients must stay where they are between steps.
    """

    factor = 1.0
    keeps = False

    def begin(self, last: bool) -> None:
        """Before a micro-batch; `last` of its step."""

    def end(self) -> None:
        """Behind the last micro-batch: gradients are those of all ranks."""

    def without_gradient(self, model: nn.Module) -> list[str]:
        """Parameters that no backward pass has reached."""
        return [name for name, parameter in model.named_parameters() if parameter.grad is None]


class InParts(Exchange):
    """FSDP2, which gives means."""

    def __init__(self, model: FSDPModule, ranks: Ranks):
        self.model, self.factor = model, float(ranks.world)

    def begin(self, last: bool) -> None:
        self.model.set_requires_gradient_sync(last)


class Summed(Exchange):
    """Sums whole gradients.

    Args:
        overlaps: buckets leave within the backward pass; not with CUDA graphs, in which no hook is called.
    """

    keeps = True

    def __init__(self, model: nn.Module, overlaps: bool, bucket_bytes: int = BUCKET_BYTES):
        self.overlaps, self.armed = overlaps, False
        self.groups = buckets(model, bucket_bytes)
        self.flat: list[Tensor] = []
        self.places: dict[nn.Parameter, Tensor] = {}
        self.reached: set[Tensor] = set()
        self.missing: list[set[Tensor]] = []
        self.under_way: list[distributed.Work] = []
        for number, group in enumerate(self.groups):
            for parameter in group:
                parameter.register_post_accumulate_grad_hook(functools.partial(self._arrived, number))

    def begin(self, last: bool) -> None:
        if not self.flat:
            self._lay_out()
        for parameter, place in self.places.items():  # a hook of somebody's may have let gradients go
            if parameter.grad is not place:
                place.zero_() if parameter.grad is None else place.copy_(parameter.grad)
                parameter.grad = place
        self.armed = self.overlaps and last
        self.missing = [set(group) for group in self.groups] if self.armed else []

    def end(self) -> None:
        while len(self.under_way) < len(self.flat):
            self._send()
        for work in self.under_way:
            work.wait()  # on a GPU the stream waits, not the processor
        self.under_way.clear()
        self.armed = False

    def without_gradient(self, model: nn.Module) -> list[str]:
        return [name for name, parameter in model.named_parameters() if parameter not in self.reached]

    def _lay_out(self) -> None:
        """Gives every gradient its place; at the first step, since trials of sizes leave none."""
        for group in self.groups:
            flat = group[0].new_zeros(sum(parameter.numel() for parameter in group))
            pieces = flat.split([parameter.numel() for parameter in group])
            for parameter, piece in zip(group, pieces, strict=True):
                self.places[parameter] = piece.view_as(parameter)
            self.flat.append(flat)

    def _arrived(self, number: int, parameter: Tensor) -> None:
        self.reached.add(parameter)
        if self.armed:
            self.missing[number].discard(parameter)
            while len(self.under_way) < len(self.flat) and not self.missing[len(self.under_way)]:
                self._send()

    def _send(self) -> None:
        work = distributed.all_reduce(self.flat[len(self.under_way)], async_op=True)
        assert work is not None, "this process is one of the group"
        self.under_way.append(work)


def begin_alike(model: nn.Module) -> None:
    """All ranks begin with the weights of the first: a part of one's own may have drawn others on each of them."""
    for tensor in (*model.parameters(), *model.buffers()):
        distributed.broadcast(tensor.detach(), src=0)


def buckets(model: nn.Module, bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Parameters in the order in which a backward pass ends with them, as many to a bucket as fit; of one dtype."""
    found: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed([parameter for parameter in model.parameters() if parameter.requires_grad]):
        if not found or parameter.nbytes > room or parameter.dtype != found[-1][0].dtype:
            found.append([])
            room = bucket_bytes
        found[-1].append(parameter)
        room -= parameter.nbytes
    return found
