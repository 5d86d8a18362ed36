"""train.patience ends a run that no longer improves, as a finished one, and an interruption changes nothing."""

import json
import math
import re

from stages.train.state import TrainState
from tests.stages.interruptions import interrupt_behind
from tests.stages.test_train import EXECUTION, TRAIN, job_in, run_in

# A rate of almost nothing: no validation improves by 0.5 nats.
STUCK = TRAIN.model_copy(update={"lr": 1e-9, "muon_lr": 1e-9, "patience": 2, "min_delta": 0.5, "max_steps": 40})


def test_it_ends_after_so_many_validations_without_an_improvement_and_publishes_best_and_last(packed):
    out = run_in(packed, STUCK)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == 2 * STUCK.eval_interval
    assert json.loads((out / "last/state.json").read_text())["step"] == metrics["steps"]
    assert json.loads((out / "best/state.json").read_text())["step"] == metrics["best_step"]
    last = (out / "training.log").read_text().splitlines()[-1]
    assert re.fullmatch(r"step 8 EARLY STOP: 2 validations without an improvement of more than 0\.5 over \d\.\d+", last)


def test_a_run_that_improves_goes_on_to_the_end(packed):
    improving = TRAIN.model_copy(update={"lr": 0.01, "patience": 2, "max_steps": 24})
    assert json.loads((run_in(packed, improving) / "metrics.json").read_text())["steps"] == 24


def test_interrupted_anywhere_it_ends_at_the_same_step_with_the_same_bytes(packed, tmp_path_factory, monkeypatch):
    names = ("last/manifest.json", "best/manifest.json", "loss.csv", "metrics.json")
    expected = {name: (run_in(packed, STUCK) / name).read_bytes() for name in names}
    job = job_in(packed, STUCK, EXECUTION.model_copy(update={"scratch": str(tmp_path_factory.mktemp("scratch"))}))
    interrupt_behind(monkeypatch, job, STUCK, 0, 5, 8)  # the last of them is the end
    resumed = run_in(packed, STUCK, job.execution)
    assert {name: (resumed / name).read_bytes() for name in names} == expected


def test_what_is_an_improvement():
    state, counts = TrainState(), []
    for loss in (5.0, 4.7, 4.65, math.nan, 4.55, math.inf):
        state.count_patience(loss, 0.1)
        counts.append(state.validations_without_improvement)
    assert counts == [0, 0, 1, 2, 0, 1]
