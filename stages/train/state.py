"""Everything a training needs to go on, in one object that checkpoints hold whole.

A variable that outlives a step and is not in `TrainState` is a bug: the resumed run would differ.
The data position is the step, and nothing is drawn at random after the weights are, so no random
state is kept.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from stages.checkpoint import (
    checkpoints_in,
    folder_of,
    is_complete,
    partial_of,
    problem_of,
    read_json,
    save_checkpoint,
)
from stages.files import sync
from stages.progress import say
from stages.train.journal import TABLES
from stages.train.optimizers import Optimizers
from stages.train.origin import run_key
from stages.train.parts import Stored, save_parts, stored, write_part
from stages.train.ranks import Ranks
from stages.train.saving import Saver, Tensors
from stages.train.sharding import in_parts, load_weights, weights

LOSS_SMOOTHING = 0.98
RECENT_LOSSES = 33
LOGS = (*TABLES, "training.log")
ONE = Ranks(0, 1, "cpu")


@dataclasses.dataclass
class TrainState:
    """Where training stands after `step` optimizer steps.

    Attributes:
        tokens: labels trained on so far.
        validation_loss_raw: with averaged weights, the loss of those behind them.
        patience_reference: the validation loss that improved last.
        validations_without_improvement: since then, by more than `train.min_delta`.
        smoothed, smoothed_weight: running sums of the exponentially smoothed loss.
        recent_losses: of the last steps that were not skipped, for the detector of spikes.
        consecutive_skipped: steps skipped for a loss or gradient that is not finite, in a row.
    """

    step: int = 0
    tokens: int = 0
    best_step: int = 0
    best_validation_loss: float | None = None
    validation_loss: float | None = None
    validation_loss_raw: float | None = None
    skipped_steps: int = 0
    consecutive_skipped: int = 0
    patience_reference: float | None = None
    validations_without_improvement: int = 0
    smoothed: float = 0.0
    smoothed_weight: float = 0.0
    recent_losses: list[float] = dataclasses.field(default_factory=list)

    def advance(self, loss: float, n_labels: int, finite: bool) -> None:
        """Moves over one step. The smoothed loss is a mean with weights that fall by 0.98 a step."""
        self.step += 1
        self.tokens += n_labels
        if not finite:
            self.skipped_steps += 1
            self.consecutive_skipped += 1
            return
        self.consecutive_skipped = 0
        self.smoothed = LOSS_SMOOTHING * self.smoothed + (1 - LOSS_SMOOTHING) * loss
        self.smoothed_weight = LOSS_SMOOTHING * self.smoothed_weight + (1 - LOSS_SMOOTHING)
        self.recent_losses = [*self.recent_losses, loss][-RECENT_LOSSES:]

    def count_patience(self, validation_loss: float, min_delta: float) -> None:
        """Counts a validation for early stopping; a loss that is not finite improves nothing.

        Example with min_delta 0.1: of 5.0, 4.7, 4.65, 4.55 the first, the second and the fourth improve.
        """
        reference = self.patience_reference
        if math.isfinite(validation_loss) and (reference is None or validation_loss < reference - min_delta):
            self.patience_reference, self.validations_without_improvement = validation_loss, 0
        else:
            self.validations_without_improvement += 1

    @property
    def loss_smooth(self) -> float | None:
        return self.smoothed / self.smoothed_weight if self.smoothed_weight else None


class Component(Protocol):
    """A part of the run, beside model and optimizers, whose state is tensors: averaged weights, a scaler.

    It stands in `TrainingRun.components` by name; a checkpoint holds its tensors as NAME.safetensors.
    """

    def tensors(self) -> dict[str, Tensor]: ...

    def load(self, tensors: Mapping[str, Stored]) -> None: ...


class Checkpoints:
    """The checkpoints of one run in its scratch folder: the `keep` newest, and the one of the best step.

    Attributes:
        identity: what stands in every state.json: the key of the run, and the runs that it comes from.
        origin: what stands in every run.json (origin.py).
    """

    def __init__(self, folder: Path, identity: dict[str, Any], origin: dict[str, Any], keep: int = 1):
        self.folder, self.identity, self.origin, self.keep = folder, identity, origin, keep

    @property
    def branched(self) -> bool:
        """Whether this is a run of its own that began with a checkpoint of another."""
        return bool(self.identity["lineage"]) and self.identity["run"] == run_key(self.origin)

    def path(self, step: int) -> Path:
        return folder_of(self.folder, step)

    def save(
        self, saver: Saver, state: TrainState, model: nn.Module, optimizers: Optimizers, config: dict[str, Any],
        extra: Mapping[str, Component], rank: int = 0, world: int = 1,
    ) -> None:  # fmt: skip
        """Begins to save the present step; then what is neither new nor best goes.

        Args:
            rank, world: of a model in parts, all of which save; else only the first rank does.
        """
        described = {**self.identity, **dataclasses.asdict(state)}
        folder = self.path(described["step"])
        tensors = {"model": weights(model), "optimizer": optimizers.tensors()}
        tensors |= {name: component.tensors() for name, component in extra.items()}
        if rank:
            mine = {file: found for file, named in tensors.items() if (found := in_parts(named))}
            saver.save(mine, lambda copies: write_part(folder, copies, rank, world))
            return
        tables = {name: (self.folder / name).read_bytes() for name in TABLES if (self.folder / name).exists()}

        def write(copies: Tensors) -> None:
            for name in LOGS:  # a checkpoint is never newer than the lines of its steps
                if (self.folder / name).exists():
                    sync(self.folder / name)
            saved = True
            try:
                if world > 1:
                    saved = save_parts(folder, copies, config, described, self.origin, tables, world, saver.closing)
                else:
                    files = dict(copies)
                    weights_, states = files.pop("model"), files.pop("optimizer")
                    save_checkpoint(folder, weights_, states, config, described, files, self.origin, tables)
            except OSError:
                shutil.rmtree(partial_of(folder), ignore_errors=True)
                raise
            if saved:
                self.remove_old(keeping={described["step"], described["best_step"]})

        saver.save(tensors, write)

    def remove_halves(self) -> None:
        """Removes what a kill left unfinished, before anybody writes."""
        for path in self.folder.glob("step-*.partial"):
            shutil.rmtree(path)

    def remove_old(self, keeping: Set[int]) -> None:
        """Removes all checkpoints but those of `keeping` and the newest whole ones, `keep` of them."""
        whole = [step for step in self.steps() if is_complete(self.path(step))]
        for step in set(self.steps()) - keeping - set(whole[-self.keep :]):
            shutil.rmtree(self.path(step))

    def steps(self) -> list[int]:
        return list(checkpoints_in(self.folder))

    def newest(self, ranks: Ranks = ONE) -> Path | None:
        """The newest whole checkpoint; damaged ones are named and passed over. Ranks share the files to be read."""
        for step in reversed(self.steps()):
            problem = problem_of(self.path(step), ranks.rank, ranks.world)
            if not ranks.sum([float(problem is not None)])[0]:
                return self.path(step)
            if problem:
                say(f"checkpoint of step {step} is not whole ({problem}); going on from an earlier one")
        return None

    def load(
        self, folder: Path, model: nn.Module, optimizers: Optimizers, extra: Mapping[str, Component]
    ) -> TrainState:
        """Restores a checkpoint and goes on as its run. A component that it does not hold stays as it was built."""
        load_weights(model, stored(folder, "model"))
        optimizers.load(stored(folder, "optimizer"))
        for name, component in extra.items():
            if tensors := stored(folder, name):
                component.load(tensors)
        described = read_json(folder, "state.json")
        self.identity |= {key: described[key] for key in ("run", "lineage")}
        fields = {field.name for field in dataclasses.fields(TrainState)}
        return TrainState(**{key: value for key, value in described.items() if key in fields})
