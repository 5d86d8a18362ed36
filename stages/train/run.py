"""One training as an object: model, optimizers, data and state, put together in one visible order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.config import ModelConfig
from model.decoder import Decoder
from model.experts import Experts
from model.size import summary
from stages.entry import Job, plain
from stages.errors import BadInput
from stages.execution import Execution
from stages.progress import say
from stages.tokens import TokenRows
from stages.train.average import WeightAverage
from stages.train.exchange import Exchange
from stages.train.fitting import micro_batch_rows
from stages.train.initial import load_initial_weights
from stages.train.micro_step import GraphedMicroStep, MicroStep
from stages.train.objective import autocast
from stages.train.optimizers import Optimizers
from stages.train.origin import origin_of, run_key
from stages.train.own_parts import try_own_parts
from stages.train.params import TrainParams
from stages.train.prepare import exchange, micro_step, prepare, wants_compile
from stages.train.ranks import Ranks
from stages.train.scaler import LossScaler
from stages.train.sharding import is_sharded, refuse
from stages.train.state import Checkpoints, Component, TrainState

WEIGHTS_BESIDE = "raw"  # the component of checkpoints that holds the weights behind the average


@dataclasses.dataclass
class TrainingRun:
    """What the loop and the hooks share.

    Attributes:
        model: the bare decoder, within `objective`.
        config: config.json of its checkpoints.
        micro_batch: rows per forward pass; `micro_step` is that pass and the backward one.
        components: what else has tensors that outlive a step, by the name of its file in checkpoints.
    """

    job: Job
    params: TrainParams
    ranks: Ranks
    folder: Path
    train_rows: TokenRows
    validation_rows: TokenRows
    model: Decoder
    objective: nn.Module
    optimizers: Optimizers
    checkpoints: Checkpoints
    config: dict[str, Any]
    state: TrainState
    rows_per_step: int
    micro_batch: int
    micro_step: MicroStep
    exchange: Exchange
    scaler: LossScaler | None
    components: dict[str, Component]

    @functools.cached_property
    def experts(self) -> list[Experts]:
        """The layers whose router counts the choices of a step."""
        return [module for module in self.model.modules() if isinstance(module, Experts)]

    @property
    def sharded(self) -> bool:
        """Whether this rank holds a part of each parameter alone; then all ranks must call the model together."""
        return is_sharded(self.execution, self.ranks)

    @property
    def average(self) -> WeightAverage | None:
        average = self.components.get(WEIGHTS_BESIDE)
        return average if isinstance(average, WeightAverage) else None

    def published_weights(self) -> contextlib.AbstractContextManager[None]:
        """Within this context the model has the weights that it is judged by and saved with: the average, if any."""
        return contextlib.nullcontext() if self.average is None else self.average.in_model()

    @property
    def stopped_early(self) -> bool:
        """Whether `train.patience` validations in a row were no improvement."""
        return 0 < self.params.patience <= self.state.validations_without_improvement

    @property
    def finished(self) -> bool:
        return self.state.step >= self.params.max_steps or self.stopped_early

    def autocast(self) -> torch.autocast:
        """The precision of the training, for every pass through the model: backends and 8-bit layers know no other."""
        return autocast(self.ranks.device, self.params.precision)

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients stay where they are between steps: a CUDA graph adds to them there, or ranks share them."""
        return self.exchange.keeps or isinstance(self.micro_step, GraphedMicroStep)

    @property
    def execution(self) -> Execution:
        return self.job.execution


def build_run(job: Job, model_config: ModelConfig, params: TrainParams, ranks: Ranks, folder: Path) -> TrainingRun:
    """Data, model, optimizers; then what a checkpoint in `folder` restores."""
    data = job.root / "data" / "pack"
    train_rows, validation_rows = TokenRows(data / "train"), TokenRows(data / "validation")
    config = {
        "model": plain(model_config),
        "vocab_size": train_rows.vocab_size,
        "context_length": train_rows.context_length,
        "tokenizer_sha256": train_rows.index["tokenizer_sha256"],
    }
    rows_per_step = params.batch_tokens // train_rows.context_length
    origin = origin_of(job)
    identity = {"run": run_key(origin), "lineage": [], "seed": params.seed, "rows_per_step": rows_per_step}
    checkpoints = Checkpoints(folder, identity, origin, job.execution.keep_checkpoints)
    newest = checkpoints.newest(ranks)
    model = new_model(model_config, params, train_rows, job, ranks, resumes=newest is not None)
    if ranks.first:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        say(f"train: {summary(model_config, parameters)}")
    if is_sharded(job.execution, ranks):
        refuse(model, params, job.execution, rows_per_step, ranks.world)
    objective = prepare(model, params, job.execution, ranks)
    if is_sharded(job.execution, ranks):
        try_parts(model, train_rows.context_length, params, ranks)
    optimizers = Optimizers(model, params, wants_compile(job.execution, ranks))
    state = TrainState()
    scaler = LossScaler(ranks.device) if params.precision == "fp16" else None
    components: dict[str, Component] = {"scaler": scaler} if scaler else {}
    average = WeightAverage(model, params.ema_decay) if params.ema_decay else None
    if average is not None:
        components[WEIGHTS_BESIDE] = average
    if newest is not None:
        state = checkpoints.load(newest, model, optimizers, components)
        if ranks.first:
            say(f"train: resuming at step {state.step} of {params.max_steps}")
    if average is not None:
        average.begin()
    micro_batch = micro_batch_rows(objective, optimizers, params, job.execution, ranks, train_rows)
    step = micro_step(objective, model, params, job.execution, ranks, micro_batch, rows_per_step)
    return TrainingRun(
        job, params, ranks, folder, train_rows, validation_rows, model, objective, optimizers, checkpoints, config,
        state, rows_per_step, micro_batch, step, exchange(model, step, job.execution, ranks), scaler, components,
    )  # fmt: skip


def new_model(
    config: ModelConfig, params: TrainParams, rows: TokenRows, job: Job, ranks: Ranks, resumes: bool
) -> Decoder:
    """The decoder on the device, with its first weights, drawn or read, unless a checkpoint will bring others.

    Raises:
        BadInput: a class of one's own does not work, the first weights do not fit, or the attention backend cannot
            do what is asked.
    """
    try:
        model = Decoder(config, rows.vocab_size, rows.context_length)
    except ValueError as error:
        raise BadInput(f"params.yaml: model.{error}") from error
    if config.init_sha256 and not resumes:
        load_initial_weights(model, job, rows.index)
    elif not resumes:
        model.initialise(torch.Generator().manual_seed(params.seed))
    model.attention_backend = job.execution.attention_backend
    if not is_sharded(job.execution, ranks):  # else it comes to the device in parts, and may not fit as a whole
        model.to(ranks.device)
        try_parts(model, rows.context_length, params, ranks)
    return model


def try_parts(model: Decoder, context_length: int, params: TrainParams, ranks: Ranks) -> None:
    """Raises BadInput if a class of one's own does not work, or the attention backend cannot do what is asked."""
    row = torch.zeros(1, context_length, dtype=torch.int64, device=ranks.device)
    with autocast(ranks.device, params.precision):
        try:
            context = model.context(row, row)
        except ValueError as error:
            raise BadInput(f"params.yaml: execution.{error}") from None
        try_own_parts(model, row, context)
