"""One training as an object: model, optimizers, data and state, put together in one visible order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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
from stages.train.initial import load_initial_weights
from stages.train.objective import OBJECTIVES, autocast, compile_parts
from stages.train.optimizers import Optimizers
from stages.train.own import own_objective
from stages.train.own_parts import try_own_parts
from stages.train.params import TrainParams
from stages.train.ranks import Ranks
from stages.train.state import Checkpoints, Component, TrainState

WEIGHTS_BESIDE = "raw"  # the component of checkpoints that holds the weights behind the average
# Slots in a forward pass under `micro_batch: auto`. On two CPU cores 1,024 was as fast as any.
MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}


@dataclasses.dataclass
class TrainingRun:
    """What the loop and the hooks share.

    Attributes:
        model: the bare decoder; `objective` wraps it for compile and for DDP.
        config: config.json of its checkpoints.
        micro_batch: rows per forward pass.
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
    components: dict[str, Component]

    @functools.cached_property
    def experts(self) -> list[Experts]:
        """The layers whose router counts the choices of a step."""
        return [module for module in self.model.modules() if isinstance(module, Experts)]

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

    @property
    def execution(self) -> Execution:
        return self.job.execution


def build_run(job: Job, model_config: ModelConfig, params: TrainParams, ranks: Ranks, folder: Path) -> TrainingRun:
    """Data, model, optimizers; then what a checkpoint in `folder` restores; then compile and DDP."""
    data = job.root / "data" / "pack"
    train_rows, validation_rows = TokenRows(data / "train"), TokenRows(data / "validation")
    config = {
        "model": plain(model_config),
        "vocab_size": train_rows.vocab_size,
        "context_length": train_rows.context_length,
        "tokenizer_sha256": train_rows.index["tokenizer_sha256"],
    }
    rows_per_step = params.batch_tokens // train_rows.context_length
    identity = {"run": run_key(job), "seed": params.seed, "rows_per_step": rows_per_step}
    checkpoints = Checkpoints(folder, identity, job.execution.keep_checkpoints)
    newest = checkpoints.newest()
    model = new_model(model_config, params, train_rows, job, ranks, resumes=newest is not None)
    if ranks.first:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        say(f"train: {summary(model_config, parameters)}")
    optimizers = Optimizers(model, params)
    state = TrainState()
    components: dict[str, Component] = {}
    if params.ema_decay:
        components[WEIGHTS_BESIDE] = WeightAverage(model, params.ema_decay)
    if newest is not None:
        state = checkpoints.load(newest, model, optimizers, components)
        if ranks.first:
            say(f"train: resuming at step {state.step} of {params.max_steps}")
    bare: nn.Module
    if params.objective in OBJECTIVES:
        bare = OBJECTIVES[params.objective](model, params.z_loss)
    else:
        bare = own_objective(params.objective, model, params)
    objective: nn.Module = bare
    if wants_compile(job.execution, ranks):
        compile_parts(bare)
    if ranks.world > 1:
        on_gpu = ranks.device.startswith("cuda")
        objective = DistributedDataParallel(
            objective, device_ids=[ranks.device] if on_gpu else None, broadcast_buffers=False
        )
    micro_batch = micro_batch_rows(job.execution, ranks, rows_per_step, train_rows.context_length)
    return TrainingRun(
        job, params, ranks, folder, train_rows, validation_rows, model, objective, optimizers, checkpoints, config,
        state, rows_per_step, micro_batch, components,
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
        load_initial_weights(model, job, rows.index["tokenizer_sha256"])
    elif not resumes:
        model.initialise(torch.Generator().manual_seed(params.seed))
    model.to(ranks.device)
    model.attention_backend = job.execution.attention_backend
    row = torch.zeros(1, rows.context_length, dtype=torch.int64, device=ranks.device)
    with autocast(ranks.device, params.precision):
        try:
            context = model.context(row, row)
        except ValueError as error:
            raise BadInput(f"params.yaml: execution.{error}") from None
        try_own_parts(model, row, context)
    return model


def run_key(job: Job) -> str:
    """Names the run in MLflow and in checkpoints, equally for equal work: params and data, and no path."""
    indices = [(job.root / "data" / "pack" / name / "index.json").read_text() for name in ("train", "validation")]
    sections = {name: plain(section) for name, section in sorted(job.sections.items())}
    fingerprint = job.root / "data" / "code" / f"{job.stage}.json"
    code = json.loads(fingerprint.read_text())["digest"] if fingerprint.exists() else ""
    return hashlib.sha256(json.dumps([sections, indices, code], sort_keys=True).encode()).hexdigest()[:16]


def wants_compile(execution: Execution, ranks: Ranks) -> bool:
    """Whether to compile. `auto` does so on GPUs: on CPUs eager steps with small micro-batches are as fast."""
    return ranks.device.startswith("cuda") if execution.compile == "auto" else execution.compile


def micro_batch_rows(execution: Execution, ranks: Ranks, rows_per_step: int, context_length: int) -> int:
    """Rows per forward pass: as asked, else the divisor of a rank's rows that comes nearest to a good size."""
    if execution.micro_batch != "auto":
        return execution.micro_batch
    rows = max(1, rows_per_step // ranks.world)
    most = max(1, MICRO_BATCH_TOKENS[torch.device(ranks.device).type] // context_length)
    return max(divisor for divisor in range(1, min(rows, most) + 1) if rows % divisor == 0)
