"""The section `execution`: where and how fast the work is done, never what comes out.

No stage depends on it in dvc.yaml. Data stages give the same bytes under any value; training gives
the same samples in the same order, and on CPUs the same bits at equal threads and process count.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from stages.errors import BadInput
from stages.params import Section


class Execution(Section):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    n_processes: int = Field(default=1, ge=1)
    launcher: Literal["stage", "environment"] = "stage"
    threads: int = Field(default=0, ge=0)
    workers: int = Field(default=0, ge=0)
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    sharding: Literal["none", "full"] = "none"
    compile: bool | Literal["auto"] = "auto"
    cuda_graphs: bool | Literal["auto"] = "auto"
    fused_kernels: bool | Literal["auto"] = "auto"
    activation_checkpointing: str = "none"
    loss_chunk_tokens: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    attention_backend: Literal["auto", "sdpa", "flex", "varlen", "fa2", "fa4"] = "auto"
    init_from: str = ""
    scratch: str = ""
    scratch_gb: float = Field(default=50, ge=0)
    checkpoint_interval: int = Field(default=100, ge=1)
    keep_checkpoints: int = Field(default=1, ge=1)
    log_interval: int = Field(default=10, ge=1)
    spike_threshold: float = Field(default=6.0, ge=0)
    sample_prompts: list[str] = []
    sample_tokens: int = Field(default=64, ge=1)
    profile: int = Field(default=0, ge=0)
    tracking: bool = True
    tracking_uri: str = ""

    @field_validator("activation_checkpointing")
    @classmethod
    def _known(cls, kind: str) -> str:
        if not re.fullmatch(r"none|full|selective|every_[1-9][0-9]*", kind):
            raise ValueError(f"{kind!r} is unknown; there are none, full, selective and every_N, such as every_2")
        return kind

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

    def init_folder(self, root: Path) -> Path:
        """The folder `init_from` of first weights. A relative path begins in the main repository, also where the
        workspace `root` is a temporary copy of it."""
        return Path(os.environ.get("DVC_ROOT") or root) / Path(self.init_from).expanduser()

    def n_workers(self) -> int:
        """Worker processes of a data stage: `workers`, or one per core that this process may use."""
        return self.workers or n_cores()


def n_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
