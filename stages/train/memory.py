"""A GPU whose memory is full: one line that says which param to lower and to what, and a picture of the memory.

    cuda:0 is out of memory: Tried to allocate 6.13 GiB ..; set execution.micro_batch to 16 (it is 32 rows; the
    global batch stays); what held the memory: .../monitor/memory.pickle

The picture is torch's own snapshot of the allocator, which its viewer (pytorch.org/memory_viz, or
`python -m torch.cuda._memory_viz trace_plot`) opens; with `execution.profile` it says who allocated what.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from stages.errors import Failed
from stages.train.run import TrainingRun
from stages.train.timing import is_gpu

MOST_EVENTS = 100_000


@contextlib.contextmanager
def out_of_memory_explained(run: TrainingRun) -> Iterator[None]:
    """Turns torch's error within this block into one line.

    Raises:
        Failed: the memory was full.
    """
    traced = is_gpu(run.ranks.device) and run.execution.profile > 0
    if traced:
        torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS)
    try:
        yield
    except RuntimeError as error:
        if (full := out_of_memory_in(error)) is None:
            raise
        raise Failed(f"{run.ranks.device} is out of memory: {reason(full)}; {advice(run)}{snapshot(run)}") from None
    finally:
        if traced:
            torch.cuda.memory._record_memory_history(enabled=None)


def out_of_memory_in(error: BaseException) -> torch.OutOfMemoryError | None:
    """The error itself, or the one that it came from: a CUDA graph that could not be recorded raises another."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, torch.OutOfMemoryError):
        found = found.__cause__ or found.__context__
    return found


def reason(error: BaseException) -> str:
    """How much was asked for and how much there is: the second and third sentence of torch's message."""
    sentences = str(error).splitlines()[0].split(". ")
    return ". ".join(sentences[1:3]) or sentences[0]


def advice(run: TrainingRun) -> str:
    rows = run.micro_batch
    if rows > 1:
        return f"set execution.micro_batch to {rows // 2} (it is {rows} rows; the global batch stays)"
    if run.execution.activation_checkpointing != "full":
        now = run.execution.activation_checkpointing
        return f"execution.micro_batch is 1 row already: set execution.activation_checkpointing to full (it is {now})"
    return "one row alone is too much: shorten pack.context_length, take a smaller model or a larger GPU"


def snapshot(run: TrainingRun) -> str:
    if not is_gpu(run.ranks.device):
        return ""
    path = run.folder / "monitor" / "memory.pickle"
    path.parent.mkdir(exist_ok=True)
    torch.cuda.memory._dump_snapshot(str(path))
    return f"; what held the memory: {path}"
