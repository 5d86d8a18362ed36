"""Training gives the same bytes whatever happens to it, and the same losses however it is spread."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.config import ModelConfig
from model.decoder import Decoder
from model.size import n_parameters
from stages.checkpoint import load_model, problem_of
from stages.entry import Job
from stages.errors import BadInput, Failed
from stages.execution import Execution
from stages.perplexity import document_losses
from stages.tokens import TokenRows
from stages.train import stage
from stages.train.muon import Muon, orthogonalise
from stages.train.optimizers import Optimizers
from stages.train.params import TrainParams
from stages.train.schedule import lr_multiplier
from stages.train.timing import Timing
from stages.train.worker import describe

REPOSITORY = Path(__file__).parents[2]
MODEL = ModelConfig(n_layers=2, hidden_size=32, n_heads=4, n_kv_heads=2)
TRAIN = TrainParams(max_steps=12, batch_tokens=128, warmup_steps=2, eval_interval=4, validation_tokens=128)
EXECUTION = Execution(tracking=False, compile=False, device="cpu", threads=1, checkpoint_interval=5)


def job_in(root: Path, train: TrainParams = TRAIN, execution: Execution = EXECUTION) -> Job:
    sections = {"model": MODEL, "train": train}
    return Job("train", root, execution, ("data/pack/train", "data/pack/validation"), sections)


def run_in(root: Path, train: TrainParams = TRAIN, execution: Execution = EXECUTION) -> Path:
    job = job_in(root, train, execution)
    job.prepare()
    stage.run(job, MODEL, train)
    job.publish()
    return job.out


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "last" / "model.safetensors")


def losses(out: Path) -> list[float]:
    with (out / "loss.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


def start_process(root: Path, execution: Execution, train: TrainParams) -> tuple[subprocess.Popen, Path]:
    """The same work in a process of its own, and the scratch folder where it can be watched."""
    job = job_in(root, train, execution)
    with job.scratch() as folder:
        (folder / "job.json").write_text(describe(job, folder))
    command = [sys.executable, "-m", "stages.train.worker", str(folder / "job.json")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment), folder


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition(), "the process ended before it came so far"


def test_learns_and_publishes_what_the_contract_names(packed):
    out = run_in(packed, TRAIN.model_copy(update={"max_steps": 60, "lr": 0.01}))
    metrics = json.loads((out / "metrics.json").read_text())
    trace = losses(out)
    assert abs(trace[0] - math.log(61)) < 0.15
    assert metrics["validation_loss"] < trace[0] - 0.5
    assert metrics["steps"] == 60 and metrics["skipped_steps"] == 0
    assert metrics["parameters"] == n_parameters(MODEL, 61)
    assert sorted(path.name for path in out.iterdir()) == [
        "best", "last", "loss.csv", "metrics.json", "monitor", "probes.csv", "timing.json", "training.log",
    ]  # fmt: skip
    for name in ("best", "last"):
        assert problem_of(out / name) is None
    state = json.loads((out / "best" / "state.json").read_text())
    assert state["step"] == metrics["best_step"]


def test_the_validation_loss_is_that_of_the_published_model(packed):
    out = run_in(packed, TRAIN.model_copy(update={"validation_tokens": 1 << 20}))
    rows = TokenRows(packed / "data/pack/validation")
    again = document_losses(load_model(out / "last"), rows, "cpu")
    assert again.mean == pytest.approx(json.loads((out / "metrics.json").read_text())["validation_loss"], abs=1e-6)


def test_equal_inputs_give_equal_bytes(packed, tmp_path_factory):
    first = run_in(packed)
    again = run_in(packed, execution=EXECUTION.model_copy(update={"scratch": str(tmp_path_factory.mktemp("other"))}))
    assert first == again
    second = {path: (again / path).read_bytes() for path in ("last/manifest.json", "best/manifest.json", "loss.csv")}
    other = EXECUTION.model_copy(update={"scratch": str(tmp_path_factory.mktemp("third")), "checkpoint_interval": 3})
    third = run_in(packed, execution=other)
    for path, content in second.items():
        assert (third / path).read_bytes() == content, path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopped_by_a_signal_it_saves_and_the_same_command_ends_with_the_same_bits(packed, tmp_path_factory, number):
    uninterrupted = weights(run_in(packed, execution=EXECUTION))
    scratch = EXECUTION.model_copy(
        update={"scratch": str(tmp_path_factory.mktemp("scratch")), "checkpoint_interval": 1000}
    )
    train = TRAIN
    process, folder = start_process(packed, scratch, train)
    wait_for(lambda: (folder / "loss.csv").exists() and (folder / "loss.csv").stat().st_size > 120, process)
    process.send_signal(number)
    assert process.wait(60) in (130, 0)
    assert max(folder.glob("step-*")).name != "step-00000000"
    resumed = run_in(packed, train, scratch)
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in uninterrupted.items())


def test_the_rate_counts_warm_up_steps_while_nothing_else_is_known():
    timing, step = Timing(), SimpleNamespace(n_labels=100, seconds=2.0, data_wait_seconds=0.0)
    assert timing.tokens_per_s == 0
    timing.add(step)
    assert timing.tokens_per_s == 50
    timing.add(step)
    timing.add(SimpleNamespace(n_labels=100, seconds=1.0, data_wait_seconds=0.0))
    assert timing.tokens_per_s == 100


@pytest.mark.parametrize("moment", ["at step 0", "between checkpoints", "while it saves", "after the last step"])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bits(packed, tmp_path_factory, moment):
    train = TRAIN.model_copy(update={"max_steps": 30})
    reference = run_in(packed, train)
    expected = {name: (reference / name).read_bytes() for name in ("last/manifest.json", "loss.csv", "metrics.json")}
    scratch = EXECUTION.model_copy(update={"scratch": str(tmp_path_factory.mktemp("scratch"))})
    process, folder = start_process(packed, scratch, train)
    reached = {
        "at step 0": lambda: (folder / "step-00000000").exists(),
        "between checkpoints": lambda: (folder / "step-00000010").exists(),
        "while it saves": lambda: (folder / "step-00000015.partial").exists() or (folder / "step-00000020").exists(),
        "after the last step": lambda: (folder / "metrics.json").exists(),
    }
    wait_for(reached[moment], process)
    process.kill()
    process.wait()
    resumed = run_in(packed, train, scratch)
    for name, content in expected.items():
        assert (resumed / name).read_bytes() == content, name


def test_a_damaged_newest_checkpoint_is_passed_over(packed, tmp_path_factory, capsys):
    train = TRAIN.model_copy(update={"max_steps": 11, "eval_interval": 1000})
    expected = weights(run_in(packed, train))
    scratch = EXECUTION.model_copy(update={"scratch": str(tmp_path_factory.mktemp("scratch"))})
    job = job_in(packed, train, scratch)
    with job.scratch() as folder:
        stage.train_in(job, MODEL, train, folder)
        model = folder / "step-00000011" / "model.safetensors"
        model.write_bytes(model.read_bytes()[:-7])
    resumed = run_in(packed, train, scratch)
    assert "step 11 is not whole" in capsys.readouterr().out
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in expected.items())


def test_other_params_start_afresh(packed):
    run_in(packed)
    other = run_in(packed, TRAIN.model_copy(update={"seed": 1}))
    assert losses(other)[0] != pytest.approx(losses(run_in(packed))[0], abs=1e-9)


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_accumulation_changes_rounding_alone(packed, tmp_path_factory, micro_batch):
    whole = losses(run_in(packed))
    scratch = str(tmp_path_factory.mktemp("scratch"))
    parts = losses(
        run_in(packed, execution=EXECUTION.model_copy(update={"micro_batch": micro_batch, "scratch": scratch}))
    )
    np.testing.assert_allclose(parts, whole, atol=1e-4)


def test_several_ranks_train_as_one_does(packed, tmp_path_factory):
    n_processes = 3
    alone = run_in(packed)
    scratch = str(tmp_path_factory.mktemp("scratch"))
    together = run_in(packed, execution=EXECUTION.model_copy(update={"n_processes": n_processes, "scratch": scratch}))
    np.testing.assert_allclose(losses(together), losses(alone), atol=1e-4)
    ours, theirs = (json.loads((out / "metrics.json").read_text()) for out in (alone, together))
    assert ours["tokens"] == theirs["tokens"]
    assert theirs["validation_loss"] == pytest.approx(ours["validation_loss"], abs=1e-4)


def test_more_ranks_than_rows_are_refused(packed):
    from stages.train.batches import Batches

    rows = TokenRows(packed / "data/pack/train")
    with pytest.raises(BadInput, match=r"train\.batch_tokens"):
        Batches(rows, seed=0, rows_per_step=2, rank=0, world=3, micro_batch=1, start=0)


def test_steps_that_are_not_finite_are_skipped_and_then_end_the_run(packed):
    with pytest.raises(Failed, match=r"lower train.lr"):
        run_in(packed, TRAIN.model_copy(update={"lr": 1e38, "muon_lr": 1e38, "max_skipped_steps": 2}))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.5, 9: 0.125}),
        ("cosine", {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.5, 9: 0.5 * (1 + math.cos(math.pi * 7 / 8))}),
        ("wsd", {0: 0.5, 1: 1.0, 2: 1.0, 5: 1.0, 6: 1.0, 8: 0.5, 9: 0.25}),
        ("constant", {0: 0.5, 1: 1.0, 2: 1.0, 6: 1.0, 9: 1.0}),
    ],
)
def test_schedules_follow_their_closed_form(schedule, expected):
    """At 0, 1 = W - 1, 2 = W, the middle 6, and 9 = N - 1."""
    params = TrainParams(max_steps=10, warmup_steps=2, schedule=schedule, decay_ratio=0.4)
    for step, multiplier in expected.items():
        assert lr_multiplier(step, params) == pytest.approx(multiplier), step


def test_the_floor_of_a_schedule_is_min_lr_ratio():
    for schedule in ("linear", "cosine", "wsd"):
        params = TrainParams(max_steps=1000, warmup_steps=0, schedule=schedule, min_lr_ratio=0.1)
        assert lr_multiplier(999, params) == pytest.approx(0.1, abs=0.005)


def test_muon_orthogonalises_and_scales_by_shape():
    torch.manual_seed(0)
    for shape in ((32, 32), (64, 16), (16, 64)):
        singular = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
        assert singular.min() > 0.3 and singular.max() < 1.3, shape
    tall = torch.nn.Parameter(torch.zeros(64, 16))
    tall.grad = torch.randn(64, 16)
    Muon([tall], lr=1.0, momentum=0.9, weight_decay=0.0).step()
    assert torch.linalg.svdvals(tall.detach()).mean() == pytest.approx(2.0, abs=0.4)


def test_muon_equals_torch_s_own():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Parameter(torch.randn(8, 24)), torch.nn.Parameter(torch.empty(8, 24))
    theirs.data.copy_(ours.data)
    mine = Muon([ours], lr=0.02, momentum=0.9, weight_decay=0.1)
    reference = torch.optim.Muon([theirs], lr=0.02, momentum=0.9, weight_decay=0.1, nesterov=True)
    for _ in range(3):
        gradient = torch.randn(8, 24)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours.data, theirs.data, atol=5e-3, rtol=0)  # torch's works in bf16


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer_and_decay_is_for_matrices(kind):
    model = Decoder(MODEL, 61)
    optimizers = Optimizers(model, TRAIN.model_copy(update={"optimizer": kind}))
    for name, parameter in model.named_parameters():
        groups = [
            group
            for o in optimizers.kinds.values()
            for group in o.param_groups
            if any(p is parameter for p in group["params"])
        ]
        assert len(groups) == 1, name
        assert (groups[0]["weight_decay"] > 0) == (parameter.ndim == 2 and name.startswith("blocks.")), name


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_a_step_that_is_not_finite_moves_neither_weights_nor_states(kind):
    model = Decoder(MODEL, 61, 32)
    model.initialise(torch.Generator().manual_seed(0))
    optimizers = Optimizers(model, TrainParams(optimizer=kind))

    def step(gradient: float, finite: bool) -> dict[str, torch.Tensor]:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizers.step(1.0, torch.tensor(finite))
        return {name: tensor.clone() for name, tensor in {**model.state_dict(), **optimizers.tensors()}.items()}

    before = step(0.1, True)
    after = step(math.nan, False)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not torch.equal(step(0.1, True)["embedding.weight"], after["embedding.weight"])


def test_results_that_wait_are_told_step_by_step(packed, tmp_path_factory, monkeypatch):
    """On a GPU the loop waits for results only where a hook needs them; here the CPU does so too."""
    expected = run_in(packed)
    files = {name: (expected / name).read_bytes() for name in ("loss.csv", "last/manifest.json", "metrics.json")}
    waits: list[int] = []

    def must_wait(run, hooks, step, first):
        waiting = step == run.params.max_steps or any(hook.needs(run, step) for hook in hooks)
        waits.append(step) if waiting else None
        return waiting

    monkeypatch.setattr("stages.train.loop.must_wait", must_wait)
    scratch = str(tmp_path_factory.mktemp("scratch"))
    out = run_in(packed, execution=EXECUTION.model_copy(update={"scratch": scratch, "log_interval": 4}))
    assert 0 < len(waits) < TRAIN.max_steps
    assert {name: (out / name).read_bytes() for name in files} == files
