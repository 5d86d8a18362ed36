"""The processes of one training: which rank this is, on which device, and sums over all of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import torch
from torch import distributed

from stages.errors import BadInput
from stages.execution import Execution


@dataclasses.dataclass(frozen=True)
class Ranks:
    """One process among `world`. With one process nothing is communicated."""

    rank: int
    world: int
    device: str

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over all ranks, in float64."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor)
        return tensor.tolist()

    def barrier(self) -> None:
        if self.world > 1:
            distributed.barrier()


def join_ranks(execution: Execution) -> Ranks:
    """Joins the process group that torchrun described in the environment, if it did, and sets threads."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(execution.threads or max(1, cores // local_world))
    device = execution.torch_device()
    if device == "cuda":
        if local_world > torch.cuda.device_count():
            raise BadInput(
                f"execution.n_processes is {local_world}, but this machine has {torch.cuda.device_count()} GPUs"
            )
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    if world > 1:
        distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Ranks(rank, world, device)


def leave_ranks() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()
