"""The section `execution`: where and how fast the work is done, never what comes out.

No stage depends on it in dvc.yaml. Data stages give the same bytes under any value; training gives
the same samples in the same order, and on CPUs the same bits at equal threads and process count.
"""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field

from stages.errors import BadInput
from stages.params import Section


class Execution(Section):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    n_processes: int = Field(default=1, ge=1)
    launcher: Literal["stage", "environment"] = "stage"
    threads: int = Field(default=0, ge=0)
    workers: int = Field(default=0, ge=0)
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    attention_backend: Literal["auto", "sdpa", "flex", "varlen", "fa4"] = "auto"
    scratch: str = ""
    scratch_gb: float = Field(default=50, ge=0)
    checkpoint_interval: int = Field(default=100, ge=1)
    keep_checkpoints: int = Field(default=1, ge=1)
    log_interval: int = Field(default=10, ge=1)
    tracking: bool = True
    tracking_uri: str = ""

    def torch_device(self) -> str:
        """`cpu` or `cuda`.

        Raises:
            BadInput: cuda is asked for and torch sees none.
        """
        import torch

        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda" and not torch.cuda.is_available():
            raise BadInput(
                "execution.device is cuda, but torch sees no GPU; set it to auto or cpu, or run `millrace doctor`"
            )
        return self.device

    def n_workers(self) -> int:
        """Worker processes of a data stage: `workers`, or one per core that this process may use."""
        return self.workers or n_cores()


def n_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
