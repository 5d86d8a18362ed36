"""FSDP2: every rank holds a part of each parameter, gradient and optimizer state; `execution.sharding: full`.

A parameter of R rows lies on W ranks in parts of ceil(R / W) rows; example: 5 rows on 2 ranks are rows 0, 1, 2 and
rows 3, 4. A block is gathered whole for its forward pass, let go, gathered again for its backward pass, after which
each rank keeps its rows of the mean gradient. With AdamW in fp32 a parameter takes 16 bytes under DDP, and here 16 / W
beside one or two whole blocks (ZeRO stage 3, Rajbhandari et al., 2020).

    held      weights, gradients and states fp32, in parts
    gathered  blocks in bf16 under `train.precision: bf16` and `fp8`, else fp32; embedding, last norm and head always
              fp32, once a micro-batch; 8 bits of a weight are made in each pass and let go with it (float8.py)
    reduced   gradients, in fp32, behind the last micro-batch of a step

Parts are DTensors to torch. Optimizers see plain tensors, the rows of this rank (`local`); a checkpoint is written in
parts too and read by any number of ranks (`part`, parts.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard

from model.decoder import Decoder
from stages.errors import BadInput
from stages.execution import Execution
from stages.train.feasible import not_in_parts
from stages.train.params import TrainParams
from stages.train.parts import Stored
from stages.train.ranks import Ranks

GATHERED = {
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,
}  # the dtype in which blocks are gathered, by train.precision; else fp32


def is_sharded(execution: Execution, ranks: Ranks) -> bool:
    """Whether parameters lie in parts. One rank holds all of everything anyway."""
    return execution.sharding == "full" and ranks.world > 1


def refuse(model: Decoder, params: TrainParams, execution: Execution, rows_per_step: int, world: int) -> None:
    """Raises BadInput with the first thing that does not go together with parts."""
    if problem := not_in_parts(model.config, params, execution, rows_per_step, world):
        raise BadInput(f"params.yaml: execution.sharding is full, but {problem}, or execution.sharding to none")


def shard(model: Decoder, precision: str, ranks: Ranks) -> None:
    """Leaves this rank its part of every parameter, on its device; block by block, so that a model that no device
    could hold may come from the processor's memory."""
    mesh = init_device_mesh(torch.device(ranks.device).type, (ranks.world,))
    in_blocks = MixedPrecisionPolicy()
    if precision in GATHERED:
        in_blocks = MixedPrecisionPolicy(param_dtype=GATHERED[precision], reduce_dtype=torch.float32)
    for block in model.blocks:
        fully_shard(block, mesh=mesh, mp_policy=in_blocks)
    # What is gathered for `hidden` stays so until the backward pass: logits and losses read the head behind it.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    model.register_forward_pre_hook(lambda model, _: model.reshard(), prepend=True)  # FSDP's own hooks gather
    model.hidden = functools.partial(_gathered_anew, model, model.hidden)  # type: ignore[method-assign]


def _gathered_anew(model: Any, hidden: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """A validation leaves embedding, norm and head gathered, which averaged weights may have changed since."""
    model.reshard()
    return hidden(*args, **kwargs)


def local(tensor: Tensor) -> Tensor:
    """The rows that this rank holds, not copied; of a tensor that does not lie in parts, itself."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def part(saved: Stored, like: Tensor) -> Tensor:
    """Of a tensor in a checkpoint the rows that this rank holds of `like`; no others are read."""
    if not isinstance(like, DTensor) or not saved.ndim:
        return saved.whole()
    rows = rows_of_a_rank(like)
    first = rows * like.device_mesh.get_local_rank()
    return saved[first : first + rows]


def as_part(rows: Tensor, like: Tensor) -> Tensor:
    """The inverse of `local`, for a tensor of the same size as `like`, such as its optimizer state."""
    if not isinstance(like, DTensor):
        return rows
    return DTensor.from_local(
        rows, like.device_mesh, [Shard(0)], run_check=False, shape=like.shape, stride=like.stride()
    )


def in_parts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of which this rank holds rows. What does not lie in parts is the same on all ranks."""
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor) and len(local(tensor))}


def rows_of_a_rank(tensor: DTensor) -> int:
    """Of all ranks but the last ones, which may hold fewer."""
    return -(-tensor.shape[0] // tensor.device_mesh.size())


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, its parameters in parts: a validation leaves those outside the blocks gathered."""
    if isinstance(model, FSDPModule):
        model.reshard()
    return model.state_dict()


def load_weights(model: nn.Module, tensors: Mapping[str, Stored]) -> None:
    """Restores what `weights` gave."""
    if not isinstance(model, FSDPModule):
        model.load_state_dict({name: tensor.whole() for name, tensor in tensors.items()})
        return
    targets = weights(model)
    assert targets.keys() == tensors.keys(), "a checkpoint of this architecture has its tensors"
    with torch.no_grad():
        for name, target in targets.items():
            local(target).copy_(part(tensors[name], target))


def clip_grad_norm_(parameters: Sequence[Tensor], largest: float, ranks: Ranks, sharded: bool) -> Tensor:
    """Shortens the gradient to a length; returns the one that it had. Of parts, the length is that of all together."""
    if not sharded:
        return torch.nn.utils.clip_grad_norm_(parameters, largest)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    square = torch.nn.utils.get_total_norm(gradients).square()
    ranks.sum_(square)
    norm = square.sqrt()
    torch._foreach_mul_(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))
    return norm
