"""The section `train`: what is optimised, how, and for how long."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from stages.params import Section

NOT_THERE = "no checkpoint there; `millrace checkpoints` lists those of this disk"
OBJECTIVES = ("causal",)
OWN = re.compile(r"stages\.train\.[A-Za-z_]\w*\.[A-Za-z_]\w*")


class TrainParams(Section):
    objective: str = "causal"
    seed: int = Field(default=0, ge=0, lt=2**63)
    max_steps: int = Field(default=250, ge=1)
    batch_tokens: int = Field(default=4096, ge=1)
    optimizer: Literal["muon", "adamw", "lion", "adamw_8bit", "adamw_fp8", "lion_fp8"] = "muon"
    lr: float = Field(default=0.02, gt=0)
    muon_lr: float = Field(default=0.02, gt=0)
    muon_momentum: float = Field(default=0.85, ge=0, lt=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    adam_eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    lion_lr: float = Field(default=0.002, gt=0)
    lion_beta1: float = Field(default=0.9, ge=0, lt=1)
    lion_beta2: float = Field(default=0.99, ge=0, lt=1)
    lion_weight_decay: float = Field(default=1.0, ge=0)
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    warmup_steps: int = Field(default=20, ge=0)
    decay_ratio: float = Field(default=0.2, gt=0, le=1)
    min_lr_ratio: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    z_loss: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, ge=0)
    precision: Literal["fp32", "bf16", "fp16", "fp8"] = "fp32"
    fp8_scaling: Literal["tensorwise", "rowwise"] = "tensorwise"
    fp8_min_width: int = Field(default=1024, ge=16)
    eval_interval: int = Field(default=100, ge=1)
    validation_tokens: int = Field(default=32768, ge=1)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    patience: int = Field(default=0, ge=0)
    min_delta: float = Field(default=0.0, ge=0)
    probe_interval: int = Field(default=0, ge=0)
    hooks: list[str] = []
    max_skipped_steps: int = Field(default=5, ge=1)
    resume_from: str = ""
    resume_sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$")

    @field_validator("objective")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in OBJECTIVES and not OWN.fullmatch(name):
            known = ", ".join(OBJECTIVES)
            raise ValueError(f"{name!r} is unknown; there are {known}. One of yours is named stages.train.FILE.CLASS")
        return name

    @field_validator("hooks")
    @classmethod
    def _are_named_by_module(cls, names: list[str]) -> list[str]:
        for name in names:
            if not OWN.fullmatch(name):
                raise ValueError(f"{name!r} names no class of yours; name it as stages.train.FILE.CLASS")
        return names

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> TrainParams:
        if self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} must be less than max_steps {self.max_steps}; lower it, for example "
                f"to {self.max_steps // 10}, or train longer"
            )
        return self

    @model_validator(mode="after")
    def _names_a_checkpoint(self) -> TrainParams:
        if self.resume_sha256 and not self.resume_from:
            raise ValueError("resume_sha256 belongs to resume_from; name the checkpoint there, or set it to ''")
        if self.resume_from.startswith("runs:") and run_and_step(self.resume_from) is None:
            raise ValueError(f"resume_from {self.resume_from} must be runs:/RUN/STEP, such as runs:/3f0c19e2/1200")
        return self


def run_and_step(resume_from: str) -> tuple[str, int] | None:
    """MLflow's id of a run and a step, if `resume_from` is not a folder."""
    found = re.fullmatch(r"runs:/(\w+)/(\d+)", resume_from)
    return (found[1], int(found[2])) if found else None
