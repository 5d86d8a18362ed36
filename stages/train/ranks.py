"""The processes of one training: which rank this is, on which device, and sums over all of them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import torch
from torch import distributed

from stages.errors import BadInput
from stages.execution import Execution, n_cores
from stages.wording import counted

_left: list[object] = []


@dataclasses.dataclass(frozen=True)
class Ranks:
    """One process among `world`. With one process nothing is communicated.

    Attributes:
        processors: the same group by way of the processors; None where the group itself goes that way.
        one_host: whether all of them are on this machine.
    """

    rank: int
    world: int
    device: str
    processors: distributed.ProcessGroup | None = None
    one_host: bool = True

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

    def sum_(self, tensor: torch.Tensor) -> None:
        """The same for a tensor on the device, in place."""
        if self.world > 1:
            distributed.all_reduce(tensor)

    def any(self, flag: bool) -> bool:
        """Whether it is true on some rank. The processors tell each other; no device is waited for."""
        if self.world == 1:
            return flag
        told = torch.tensor(int(flag))
        distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self.processors)
        return bool(told)

    def barrier(self) -> None:
        if self.world > 1:
            distributed.barrier(device_ids=None if self.device == "cpu" else [torch.device(self.device).index])


def join_ranks(execution: Execution, launched: bool) -> Ranks:
    """Sets threads and device and, if torchrun launched this process, joins the group it describes, once.

    Without `launched` the environment is not read: a cluster's shell may have a WORLD_SIZE of its own.
    """
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if missing := [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if launched and name not in os.environ]:
        raise BadInput(
            f"execution.launcher is environment, but {', '.join(missing)} is not set; start this by torchrun, or set "
            "execution.launcher to stage"
        )
    world, rank, local_rank, local_world = (int(os.environ[name]) for name in names) if launched else (1, 0, 0, 1)
    torch.set_num_threads(execution.threads or max(1, n_cores() // local_world))
    device = execution.torch_device()
    if device == "cuda":
        if local_world > torch.cuda.device_count():
            raise BadInput(
                f"execution.n_processes is {local_world}, but this machine has "
                f"{counted(torch.cuda.device_count(), 'GPU')}"
            )
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    if world == 1:
        return Ranks(rank, world, device)
    on_gpu = device.startswith("cuda")
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_gpu else "gloo")
    processors = distributed.new_group(backend="gloo") if on_gpu else None
    return Ranks(rank, world, device, processors, one_host=local_world == world)


def leave_ranks() -> None:
    """Leaves the group, and keeps it until the process ends: where DDP was its last owner, it freed it while it held
    Python's lock, and waited for a thread of the group that waited for that lock."""
    if distributed.is_initialized():
        _left.append(distributed.group.WORLD)
        distributed.destroy_process_group()
