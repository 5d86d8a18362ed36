"""One process of a training: builds the run, trains, and leaves what the stage publishes in its folder.

With one process the stage calls `work` itself. With more, torchrun starts this module once per rank
with the path of a JSON file that holds the job.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from model.config import ModelConfig
from stages.entry import Job, file_problem, plain
from stages.errors import BadInput, Failed, Stopped
from stages.execution import Execution
from stages.files import write_json
from stages.locks import shared
from stages.signals import die_with_parent, signals
from stages.train.params import TrainParams

OUTCOMES = "outcome-*.json"
RANKS = "ranks.lock"  # held by every process that torchrun has started, until it ends
STOPPED = 130
TORCH_WORDS = "lost-rank-{rank}.log"
LOST = (
    "another process of this training ended; its reason stands above, or it was killed from outside (by the kernel, "
    "where memory was short); the same command goes on from the newest checkpoint"
)

if TYPE_CHECKING:
    from stages.tracking import Run
    from stages.train.journal import Journal
    from stages.train.run import TrainingRun
    from stages.train.step import Hook
    from stages.train.timing import Timing


class LostRank(Failed):
    """Another rank did not answer: it ended, and its own words, if it had any, are the reason."""


def work(job: Job, model: ModelConfig, train: TrainParams, folder: Path, launched: bool = False) -> None:
    """Trains to the end in `folder`, which then holds checkpoints, logs, metrics.json and timing.json."""
    try:
        _work(job, model, train, folder, launched)
    except RuntimeError as error:
        if not of_a_lost_rank(error):
            raise
        words = folder / TORCH_WORDS.format(rank=os.environ.get("RANK", "0"))
        words.write_text(f"{error}\n", encoding="utf-8")
        raise LostRank(f"{LOST}. What torch said is in {words}") from None


def _work(job: Job, model: ModelConfig, train: TrainParams, folder: Path, launched: bool) -> None:
    from stages.memory import keep_freed
    from stages.tracking import Run, open_run
    from stages.train.journal import PROBES, Journal
    from stages.train.loop import train as loop
    from stages.train.memory import out_of_memory_explained
    from stages.train.ranks import join_ranks, leave_ranks
    from stages.train.resume import send_history
    from stages.train.run import build_run
    from stages.train.timing import Timing

    ranks = join_ranks(job.execution, launched)
    if ranks.device == "cpu":
        keep_freed()
    try:
        run = build_run(job, model, train, ranks, folder)
        timing = Timing()
        sections = {"model": plain(model), "train": plain(train)}
        with contextlib.ExitStack() as stack:
            tracked = Run({})
            if ranks.first:
                tracked = stack.enter_context(open_run(job, run.checkpoints.identity["run"], sections))
                if run.checkpoints.branched:
                    send_history(folder / "loss.csv", run.state.step, job.execution.log_interval, tracked)
            hooks = make_hooks(train, Journal(folder / "training.log"), tracked, timing)
            with out_of_memory_explained(run):
                loop(run, hooks)
            if ranks.first:
                metrics = final_metrics(run)
                tracked.results({name: float(value) for name, value in metrics.items() if value is not None})
                if timing.steps or not (folder / "timing.json").exists():
                    write_json(folder / "timing.json", timing.report(run))
                write_json(folder / "metrics.json", metrics)
                tracked.artifact(folder / "loss.csv")
                tracked.artifact(folder / "training.log")
                if train.probe_interval:
                    tracked.artifact(folder / PROBES)
                for path in (folder / "monitor").glob("*.jsonl"):
                    tracked.artifact(path, "monitor")
    finally:
        leave_ranks()


def make_hooks(train: TrainParams, journal: Journal, tracked: Run, timing: Timing) -> list[Hook]:
    """What happens beside the loop, in this order; the same on all ranks, which wait together where one needs it."""
    from stages.train.curves import Curves
    from stages.train.hooks import Checkpoint, Validation
    from stages.train.log import Log
    from stages.train.own import own_hooks
    from stages.train.probes import Probes
    from stages.train.profile import Profile
    from stages.train.samples import Samples
    from stages.train.spikes import Spikes

    return [
        Profile(tracked),
        Validation(),
        *own_hooks(train.hooks),
        Log(journal, tracked, timing),
        *([Probes(tracked)] if train.probe_interval else []),
        Spikes(journal),
        Samples(journal),
        Curves(tracked, timing),
        Checkpoint(),
    ]


def final_metrics(run: TrainingRun) -> dict[str, float | int | None]:
    state = run.state
    return {
        "steps": state.step,
        "tokens": state.tokens,
        "train_loss": state.loss_smooth,
        "validation_loss": state.validation_loss,
        "best_validation_loss": state.best_validation_loss,
        "best_step": state.best_step,
        "skipped_steps": state.skipped_steps,
        **({} if run.average is None else {"validation_loss_raw": state.validation_loss_raw}),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
    }


def describe(job: Job, folder: Path) -> str:
    """The job as JSON, for the processes that torchrun starts."""
    sections = {name: plain(section) for name, section in job.sections.items()}
    described = {
        "root": str(job.root),
        "inputs": job.inputs,
        "execution": plain(job.execution),
        "sections": sections,
        "folder": str(folder),
    }
    return json.dumps(described)


def main(path: Path) -> int:
    described = json.loads(path.read_text(encoding="utf-8"))
    model = ModelConfig(**described["sections"]["model"])
    train = TrainParams(**described["sections"]["train"])
    execution = Execution(**described["execution"])
    sections = {"model": model, "train": train}
    job = Job("train", Path(described["root"]), execution, tuple(described["inputs"]), sections)
    signals.install()
    die_with_parent()
    folder = Path(described["folder"])
    try:
        with shared(folder / RANKS):
            work(job, model, train, folder, launched="RANK" in os.environ)
    except (BadInput, Failed) as error:
        tell_outcome(folder, error)
        return 1
    except Stopped:
        return STOPPED
    except OSError as error:
        if error.errno != errno.ENOSPC and error.filename is None:
            raise  # says too little without its traceback
        tell_outcome(folder, Failed(file_problem(error, job.execution.scratch)))
        return 1
    finally:
        signals.deferred = True  # torchrun's to a rank that ends by itself would be a traceback
    return 0


def of_a_lost_rank(error: RuntimeError) -> bool:
    from torch import distributed

    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)


def tell_outcome(folder: Path, reason: BadInput | Failed) -> None:
    """Leaves why this rank ended to the process that launched it; on a full disk at least in words."""
    outcome = {"message": str(reason), "bad_input": isinstance(reason, BadInput), "lost": isinstance(reason, LostRank)}
    try:
        write_json(folder / OUTCOMES.replace("*", os.environ.get("RANK", "0")), outcome)
    except OSError:
        print(f"millrace: train: {reason}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
