"""What cannot be trained as params ask, told from params alone: by the stage `code` before any work, and by train.

Only what holds on every machine stands here. Whether a GPU is there, and what it can, train finds out; `device: auto`
is never judged, since data may be made on one machine and the training done on another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from model.config import ModelConfig
from stages.execution import Execution
from stages.train.params import TrainParams
from stages.wording import counted

IN_PARTS = ("adamw", "lion", "muon")  # optimizers of parameters that lie in parts


class Infeasible(NamedTuple):
    """The keys to blame, and the problem with its mend."""

    keys: list[str]
    problem: str


def has_own_parts(config: ModelConfig) -> bool:
    """Whether some part of the model is a class of one's own, which may drop numbers or wait for the device."""
    return bool(own_parts_of(config))


def own_parts_of(config: ModelConfig) -> list[str]:
    return [name for name in (config.norm, config.mlp, *config.kinds) if "." in name]


def infeasible(
    model: ModelConfig, train: TrainParams, execution: Execution, rows_per_step: int
) -> Iterator[Infeasible]:
    """Everything that cannot be, the most telling first."""
    if train.precision == "fp8" and model.hidden_size < train.fp8_min_width and "mla" not in model.kinds:
        yield Infeasible(
            ["train", "precision"],
            f"fp8, but no linear layer is at least train.fp8_min_width {train.fp8_min_width} wide in a model of "
            f"model.hidden_size {model.hidden_size}, where 8 bits begin to pay; set it to bf16, or lower fp8_min_width",
        )
    if execution.device == "cpu":
        yield from _on_cpu(train, execution)
    if execution.cuda_graphs is True and (reason := no_graph_of(model, train)):
        yield Infeasible(["execution", "cuda_graphs"], f"true, but {reason}; set it to auto")
    if (kind := execution.activation_checkpointing).startswith("every_"):
        every = int(kind.removeprefix("every_"))
        if every > model.n_layers:
            problem = (
                f"{kind}, but the model has {counted(model.n_layers, 'layer')}, of which it would be the first alone"
            )
            keys = ["execution", "activation_checkpointing"]
            yield Infeasible(keys, f"{problem}; set it to every_{model.n_layers} or less, full, selective or none")
    if execution.sharding == "full" and execution.n_processes > 1:
        problem = not_in_parts(model, train, execution, rows_per_step, execution.n_processes)
        if problem:
            yield Infeasible(["execution", "sharding"], f"full, but {problem}, or execution.sharding to none")


def _on_cpu(train: TrainParams, execution: Execution) -> Iterator[Infeasible]:
    if train.precision == "fp8":
        yield Infeasible(["train", "precision"], "fp8 needs a GPU, but execution.device is cpu; set it to bf16")
    if execution.cuda_graphs is True:
        yield Infeasible(["execution", "cuda_graphs"], "true, but execution.device is cpu; set it to auto")
    if execution.fused_kernels is True:
        yield Infeasible(["execution", "fused_kernels"], "true, but execution.device is cpu; set it to auto")
    if execution.attention_backend not in ("auto", "sdpa"):
        name = execution.attention_backend
        yield Infeasible(
            ["execution", "attention_backend"], f"{name} runs on GPUs only, but execution.device is cpu; set it to auto"
        )


def no_graph_of(model: ModelConfig, train: TrainParams) -> str:
    """Why a micro-batch of this model cannot be one CUDA graph anywhere, or the empty text."""
    if "." in train.objective:
        return "an objective of your own may wait for the device"
    if model.dropout:
        return "what model.dropout drops is drawn anew in each step"
    if model.n_experts:
        return "experts have not been tried in graphs"
    return "parts of your own may wait for the device" if has_own_parts(model) else ""


def not_in_parts(model: ModelConfig, train: TrainParams, execution: Execution, rows_per_step: int, world: int) -> str:
    """Why parameters cannot lie in parts (FSDP2), with the first mend, or the empty text."""
    if rows_per_step % world:  # some rank would gather blocks once less than the others
        problem = (
            f"train.batch_tokens gives {counted(rows_per_step, 'row')} a step, which {world} ranks cannot share evenly"
        )
        return problem + f"; set train.batch_tokens to a multiple of {world} rows"
    if train.optimizer not in IN_PARTS:
        problem = (
            f"{train.optimizer} scales blocks of 256 numbers, which parts would cut; set train.optimizer to one of "
        )
        return problem + ", ".join(IN_PARTS)
    if execution.sample_prompts:
        return "caches of a model in parts cannot be made; set execution.sample_prompts to []"
    if train.probe_interval:
        return "no rank holds a whole layer to probe; set train.probe_interval to 0"
    if model.n_experts:
        return "experts have not been tried with it; set model.n_experts to 0"
    if own := own_parts_of(model):
        return f"{own[0]} is a part of your own, of which nobody knows where it reads its parameters"
    return ""
