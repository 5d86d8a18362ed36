"""train.resume_from: a run continues or branches from any checkpoint, and what would not mean the same is refused."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from stages.checkpoint import MANIFEST, checkpoints_in, problem_of
from stages.errors import BadInput
from stages.files import file_sha256
from stages.mlflow_store import RUN_KEY
from stages.train import stage
from stages.train.params import TrainParams
from tests.stages.conftest import markov_documents, write_split
from tests.stages.test_train import EXECUTION, MODEL, TRAIN, job_in, losses, run_in

STEADY = TRAIN.model_copy(update={"schedule": "constant"})  # whose rate does not depend on max_steps
KEEPING = EXECUTION.model_copy(update={"keep_checkpoints": 9, "checkpoint_interval": 4})


def checkpoint(root: Path, train: TrainParams, step: int) -> Path:
    """A checkpoint of the finished run with these params, elsewhere: as from `dvc get`."""
    run_in(root, train, KEEPING)
    with job_in(root, train, KEEPING).scratch(keep_published=True) as folder:
        kept = root / f"kept-{step}"
        shutil.copytree(checkpoints_in(folder)[step], kept)
    return kept


def begun_with(source: Path, train: TrainParams, **changes: object) -> TrainParams:
    named = {"resume_from": str(source), "resume_sha256": file_sha256(source / MANIFEST)}
    return TrainParams(**{**train.model_dump(), **named, **changes})


def state_of(out: Path) -> dict:
    return json.loads((out / "last/state.json").read_text())


def test_a_finished_run_that_gets_more_steps_is_the_run_that_had_them_from_the_beginning(packed: Path):
    probed = STEADY.model_copy(update={"probe_interval": 4})
    source = checkpoint(packed, probed, 12)
    longer = run_in(packed, begun_with(source, probed, max_steps=20), KEEPING)
    state, before = state_of(longer), json.loads((source / "state.json").read_text())
    files = {name: (longer / name).read_bytes() for name in ("loss.csv", "probes.csv", "last/model.safetensors")}
    states = (longer / "last/optimizer.safetensors").read_bytes()
    assert state["run"] == before["run"]  # so it goes on in its MLflow run
    assert [(past["step"], past["changed"]) for past in state["lineage"]] == [(12, {"train.max_steps": [12, 20]})]
    whole = run_in(packed, probed.model_copy(update={"max_steps": 20}), KEEPING)
    assert {name: (whole / name).read_bytes() for name in files} == files
    assert (whole / "last/optimizer.safetensors").read_bytes() == states


def test_a_branch_is_a_run_of_its_own_with_the_curve_of_both(packed: Path, capsys):
    source = checkpoint(packed, STEADY, 8)
    trunk = losses(packed / "data/train")
    branch = run_in(packed, begun_with(source, STEADY, muon_lr=0.001), KEEPING)
    state = state_of(branch)
    assert losses(branch)[:9] == trunk[:9] and losses(branch)[9:] != trunk[9:]
    assert len(losses(branch)) == STEADY.max_steps
    assert state["run"] != state["lineage"][0]["run"]
    assert state["lineage"][0]["manifest_sha256"] == file_sha256(source / MANIFEST)
    assert "train.muon_lr  0.02               0.001" in capsys.readouterr().out
    steps = [line.split()[1] for line in (branch / "training.log").read_text().splitlines()]
    assert len(steps) == len(set(steps))


def test_the_best_of_a_branch_is_the_best_from_its_first_step_on(packed: Path):
    source = checkpoint(packed, STEADY, 8)
    state = json.loads((source / "state.json").read_text())
    assert state["best_step"] == 8
    run_in(packed, begun_with(source, STEADY, lr=1e6, muon_lr=1e6, max_skipped_steps=100), KEEPING)
    assert json.loads((packed / "data/train/metrics.json").read_text())["best_step"] == 8
    assert problem_of(packed / "data/train/best") is None


def test_killed_after_its_first_step_a_branch_needs_its_source_no_more(packed: Path):
    source = checkpoint(packed, STEADY, 8)
    train = begun_with(source, STEADY, muon_lr=0.001)
    expected = (run_in(packed, train, KEEPING) / "last" / MANIFEST).read_bytes()
    with job_in(packed, train, KEEPING).scratch(keep_published=True) as folder:
        shutil.rmtree(folder)
    job = job_in(packed, train, KEEPING)
    job.prepare()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stage, "train_in", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stage.run(job, MODEL, train)
    shutil.rmtree(source)
    assert (run_in(packed, train, KEEPING) / "last" / MANIFEST).read_bytes() == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 1}, "train.seed was 0 and is 1, and it decides the order of the rows"),
        ({"batch_tokens": 64}, "train.batch_tokens was 128 and is 64"),
        ({"optimizer": "adamw"}, "train.optimizer was muon and is adamw"),
        ({"max_steps": 4}, "the checkpoint is of step 8; set train.max_steps, now 4"),
    ],
)
def test_what_changes_the_function_or_the_order_of_the_data_is_refused(packed: Path, changes: dict, reason: str):
    source = checkpoint(packed, STEADY, 8)
    with pytest.raises(BadInput, match=reason):
        run_in(packed, begun_with(source, STEADY, **changes), KEEPING)


def test_other_rows_are_refused(packed: Path):
    source = checkpoint(packed, STEADY, 8)
    (packed / "other").mkdir()
    write_split(packed / "other", "train", markov_documents(301, seed=0))
    shutil.rmtree(packed / "data/pack/train")
    shutil.move(packed / "other/data/pack/train", packed / "data/pack/train")
    with pytest.raises(BadInput, match=r"data\.train was .* these are other rows"):
        run_in(packed, begun_with(source, STEADY), KEEPING)


def test_another_checkpoint_than_the_one_that_is_meant_is_refused(packed: Path):
    source = checkpoint(packed, STEADY, 8)
    train = begun_with(source, STEADY, resume_sha256="0" * 64)
    with pytest.raises(BadInput, match=r"params.yaml: train.resume_sha256: .* has sha256 \w{64}, not '0000"):
        run_in(packed, train, KEEPING)
    with pytest.raises(BadInput, match=r"params.yaml: train.resume_from: .*no checkpoint there"):
        run_in(packed, begun_with(source, STEADY).model_copy(update={"resume_from": "nowhere"}), KEEPING)


def test_a_damaged_checkpoint_is_refused(packed: Path):
    source = checkpoint(packed, STEADY, 8)
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(BadInput, match="differs from its checksum"):
        run_in(packed, begun_with(source, STEADY), KEEPING)


def test_in_mlflow_a_run_goes_on_and_a_branch_has_the_curve_of_both(packed: Path):
    """The checkpoint is named by MLflow's id and the step."""
    tracked = KEEPING.model_copy(
        update={"tracking": True, "tracking_uri": f"sqlite:///{packed}/mlflow.db", "log_interval": 1}
    )
    client = MlflowClient(tracked.tracking_uri)

    def run_of(out: Path) -> Run:
        (experiment,) = (found for found in client.search_experiments() if found.name == "millrace")
        (found,) = client.search_runs([experiment.experiment_id], f"tags.`{RUN_KEY}` = '{state_of(out)['run']}'")
        return found

    def curve(run: Run) -> list[tuple[int, float]]:
        return sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss"))

    first = run_of(run_in(packed, STEADY, tracked))
    with job_in(packed, STEADY, tracked).scratch(keep_published=True) as folder:
        sums = {step: file_sha256(path / MANIFEST) for step, path in checkpoints_in(folder).items()}
    trunk = curve(first)
    assert [step for step, _ in trunk] == [*range(1, 13)]

    def named(step: int) -> dict[str, str]:
        return {"resume_from": f"runs:/{first.info.run_id}/{step}", "resume_sha256": sums[step]}

    longer = run_of(run_in(packed, STEADY.model_copy(update={**named(12), "max_steps": 20}), tracked))
    assert longer.info.run_id == first.info.run_id
    assert [step for step, _ in curve(longer)] == [*range(1, 21)] and curve(longer)[:12] == trunk
    branch = run_of(run_in(packed, STEADY.model_copy(update={**named(8), "muon_lr": 0.001}), tracked))
    assert branch.info.run_id != first.info.run_id
    assert [step for step, _ in curve(branch)] == [*range(1, 13)]
    assert dict(curve(branch)[:8]) == pytest.approx(dict(trunk[:8]), rel=1e-6)
    with pytest.raises(BadInput, match="no checkpoint there"):
        run_in(packed, STEADY.model_copy(update={**named(12), "resume_from": f"runs:/{first.info.run_id}/7"}), tracked)


def test_a_run_that_has_ended_is_taken_from_scratch_and_said_to_be(packed: Path, capsys):
    first = (run_in(packed, TRAIN, EXECUTION) / "last/model.safetensors").read_bytes()
    assert "taken from scratch" not in capsys.readouterr().out
    again = (run_in(packed, TRAIN, EXECUTION) / "last/model.safetensors").read_bytes()
    said = capsys.readouterr().out
    assert "train: a run of the same params, data and code has ended here; taken from scratch, " in said
    assert "step 1 " not in said and again == first
