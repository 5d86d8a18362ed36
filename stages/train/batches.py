"""Which rows each rank reads in each step, fetched one step ahead by a thread into pinned memory.

The rows of step s are positions s*R .. (s+1)*R of the order, R = batch_tokens / context_length. Rank
r of W takes every W-th of them, in micro-batches of at most M rows. Example with R = 8, W = 2, M = 3:
rank 1 reads positions 1, 3, 5 and then 7. So the global batch is the same for every W and M.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stages.errors import BadInput
from stages.order import data_order
from stages.tokens import TokenRows
from stages.wording import counted


class MicroBatch(NamedTuple):
    """Rows as the objective takes them, int64 [B, T] each on its device, and int32 on the way there: half the bytes
    to write and to copy.

    Attributes:
        n_documents: of all rows; counted here, since to ask a GPU would be to wait for it.
    """

    inputs: Tensor
    labels: Tensor
    segments: Tensor
    positions: Tensor
    n_documents: int


@dataclasses.dataclass(frozen=True)
class StepBatches:
    """The micro-batches of one rank in one step.

    Attributes:
        n_labels: of the global batch, all ranks together.
    """

    micro_batches: list[MicroBatch]
    n_labels: int


class Batches:
    """The batches of one rank from step `start` on. `next()` gives one step and fetches the following.

    Raises:
        BadInput: fewer rows in a step than ranks.
    """

    def __init__(
        self, rows: TokenRows, seed: int, rows_per_step: int, rank: int, world: int, micro_batch: int, start: int,
        device: str = "cpu",
    ):  # fmt: skip
        if rows_per_step < world:
            raise BadInput(
                f"train.batch_tokens gives {counted(rows_per_step, 'row')} a step, fewer than execution.n_processes "
                f"{world}; set train.batch_tokens to at least {world * rows.context_length}"
            )
        if rows.n_rows == 0:
            raise BadInput(f"{rows.folder}: no training row; the corpus is too small")
        self.rows, self.seed, self.rows_per_step = rows, seed, rows_per_step
        self.rank, self.world, self.micro_batch = rank, world, micro_batch
        self.step, self.pinned = start, device != "cpu"
        self._thread = ThreadPoolExecutor(1, "batches")
        self._ahead: Future[StepBatches] = self._thread.submit(self.at, start)

    def at(self, step: int) -> StepBatches:
        """The batches of any step."""
        ids = data_order(self.rows.n_rows, self.seed, step * self.rows_per_step, self.rows_per_step)
        mine = ids[self.rank :: self.world]
        pieces = [array.split(self.micro_batch) for array in tensors_of(self.rows, mine, self.pinned)]
        firsts = np.arange(0, len(mine), self.micro_batch)
        documents = np.add.reduceat(self.rows.n_documents(mine), firsts).tolist()
        micro_batches = [MicroBatch(*some) for some in zip(*pieces, documents, strict=True)]
        return StepBatches(micro_batches, self.rows.n_labels(ids))

    def next(self) -> StepBatches:
        batches = self._ahead.result()
        self.step += 1
        self._ahead = self._thread.submit(self.at, self.step)
        return batches

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def tensors_of(rows: TokenRows, row_ids: np.ndarray, pinned: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arrays of a batch as tensors, in memory that a GPU copies from by itself if `pinned`."""
    memory: list[Tensor] = []

    def empty(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        memory.append(torch.empty(shape, dtype=torch.int32, pin_memory=pinned))
        return memory[-1].numpy()

    rows.batch(row_ids, np.int32, empty)
    inputs, labels, segments, positions = memory
    return inputs, labels, segments, positions


def to_device(batch: MicroBatch, device: str) -> MicroBatch:
    # First there, then wider: asked for both at once, torch widens here, in memory that a GPU has to be waited for.
    there = (tensor.to(device, non_blocking=True).to(torch.int64) for tensor in batch[:4])
    inputs, labels, segments, positions = there
    return MicroBatch(inputs, labels, segments, positions, batch.n_documents)
