"""How many rows go through the model at once. The global batch is `train.batch_tokens` in any case.

`execution.micro_batch: auto` takes a divisor of the rows of a step: on CPUs the largest up to 1,024 tokens; on GPUs
the largest up to 65,536 that fits, which is tried, from the largest down, on the first rows of the data, with as much
memory set aside as the optimizer will take. Under `execution.sharding: full` the largest is taken untried.
"""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import nn

from stages.errors import Failed
from stages.execution import Execution
from stages.progress import say
from stages.tokens import TokenRows
from stages.train.batches import MicroBatch, tensors_of
from stages.train.micro_step import EagerMicroStep
from stages.train.optimizers import STATE_BYTES, Optimizers
from stages.train.params import TrainParams
from stages.train.ranks import Ranks
from stages.train.sharding import is_sharded
from stages.wording import counted

# More did not help: two CPU cores were as fast with 1,024 tokens as with any; an H200 gains 3% from 32K to 65K.
MOST_TOKENS = {"cpu": 1024, "cuda": 65536}
SPARE = 0.03  # of a GPU's memory, for what the trial does not see


def micro_batch_rows(
    objective: nn.Module, optimizers: Optimizers, params: TrainParams, execution: Execution, ranks: Ranks,
    rows: TokenRows,
) -> int:  # fmt: skip
    """Rows per forward pass: as asked, else the most that is useful and fits.

    Raises:
        Failed: not even one row fits.
    """
    if execution.micro_batch != "auto":
        most = max(1, params.batch_tokens // rows.context_length // ranks.world)
        if execution.micro_batch > most and ranks.first:
            say(f"train: a step has {counted(most, 'row')} a process; execution.micro_batch {execution.micro_batch} is "
                f"taken as {most}")  # fmt: skip
        return min(execution.micro_batch, most)
    candidates = useful_rows(params.batch_tokens // rows.context_length // ranks.world, rows.context_length, ranks)
    if not ranks.device.startswith("cuda") or is_sharded(execution, ranks):  # which cannot stop within a pass
        return candidates[0]
    for candidate in candidates:
        if not ranks.any(not fits(candidate, objective, optimizers, params, ranks, rows)):
            if ranks.first and candidate != candidates[0]:
                say(f"train: {candidates[0]} rows at once do not fit; micro-batches of {candidate}")
            return candidate
    raise Failed(
        f"{ranks.device} is out of memory with one row of {rows.context_length} tokens; set "
        "execution.activation_checkpointing to full, shorten pack.context_length, or take a smaller model"
    )


def useful_rows(rows: int, context_length: int, ranks: Ranks) -> list[int]:
    """Divisors of a rank's rows that are worth a trial, the largest first."""
    most = max(1, MOST_TOKENS[torch.device(ranks.device).type] // context_length)
    return [n for n in range(min(max(1, rows), most), 0, -1) if max(1, rows) % n == 0]


def fits(
    n_rows: int, objective: nn.Module, optimizers: Optimizers, params: TrainParams, ranks: Ranks, rows: TokenRows
) -> bool:
    """Whether a forward and backward pass of so many rows goes through. It leaves nothing behind."""
    n_parameters = sum(parameter.numel() for parameter in objective.parameters())
    later = STATE_BYTES[params.optimizer] * n_parameters - optimizers.state_bytes()
    spare = int(SPARE * torch.cuda.get_device_properties(ranks.device).total_memory)
    buffers = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    first = np.arange(n_rows) % rows.n_rows
    batch = MicroBatch(*tensors_of(rows, first, pinned=True), int(rows.n_documents(first).sum()))
    fitted = False
    with contextlib.suppress(torch.OutOfMemoryError):
        aside = torch.empty(max(0, later) + spare, dtype=torch.uint8, device=ranks.device)
        EagerMicroStep(objective, ranks.device, params.precision)(batch, 0.0)
        del aside
        fitted = True
    for parameter in objective.parameters():
        parameter.grad = None
    for buffer, value in buffers:
        buffer.copy_(value)
    torch.cuda.empty_cache()
    return fitted
