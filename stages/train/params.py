"""The section `train`: what is optimised, how, and for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.params import Section


class TrainParams(Section):
    objective: Literal["causal"] = "causal"
    seed: int = Field(default=0, ge=0)
    max_steps: int = Field(default=250, ge=1)
    batch_tokens: int = Field(default=4096, ge=1)
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = Field(default=0.02, gt=0)
    muon_lr: float = Field(default=0.02, gt=0)
    muon_momentum: float = Field(default=0.85, ge=0, lt=1)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    adam_eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    warmup_steps: int = Field(default=20, ge=0)
    decay_ratio: float = Field(default=0.2, gt=0, le=1)
    min_lr_ratio: float = Field(default=0.0, ge=0, lt=1)
    z_loss: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, ge=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    eval_interval: int = Field(default=100, ge=1)
    validation_tokens: int = Field(default=32768, ge=1)
    patience: int = Field(default=0, ge=0)
    min_delta: float = Field(default=0.0, ge=0)
    max_skipped_steps: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> TrainParams:
        if self.warmup_steps >= self.max_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be less than max_steps {self.max_steps}")
        return self
