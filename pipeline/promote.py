"""The command `millrace promote`: registers what is missing, and lets a model compete for `champion`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stages.errors import BadInput

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from stages.entry import Job
    from stages.export.registry import Outcome
    from stages.tracking import Run

FAILED = 1
SECONDS = 3600.0  # somebody asked for it and waits; a large model takes its time to upload
TIMEOUT, UPLOAD_SECONDS = "MLFLOW_HTTP_REQUEST_TIMEOUT", 600  # of one file


@click.command()
@click.argument("version", required=False, type=int)
@click.option("--latest", is_flag=True, help="The newest version in the registry, wherever it was made.")
@click.option("--force-reason", default="", metavar="WHY", help="Make it champion against the rule; WHY becomes a tag.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: name, version, new, champion, reason.")
def promote(version: int | None, latest: bool, force_reason: str, as_json: bool) -> None:
    """Registers data/export if it is missing, and makes a model champion if it is better by more than chance.

    Better means lower bits per byte on the same test text, with the whole 95% interval of the paired difference
    over the documents below that of the champion (docs/tracking.md). What is not champion is `challenger`. The tag
    `promotion` of a version says what was decided, and why.

    The stage `export` does all this by itself. This command is for what it could not do: MLflow was down, DVC took
    the stage from its cache, or the model is of an experiment. It first sends what earlier stages could not.

    \b
      millrace promote                       the export in data/
      millrace promote 7                     version 7, for instance of an experiment
      millrace promote --latest --json
      millrace promote 7 --force-reason "same loss, half the size"
    """
    from stages.execution import Execution
    from stages.export.params import ExportParams
    from stages.params import ParamsFile
    from stages.root import find_root
    from stages.tracking import Unavailable

    if version is not None and latest:
        raise BadInput("give a VERSION or --latest, not both")
    root = find_root()
    params = ParamsFile(root / "params.yaml")
    job = job_of(root, params.section("execution", Execution))
    name = params.section("export", ExportParams).registered_model
    try:
        with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
            connect(job)
            if version is None and not latest:
                outcome = promote_export(job, name, force_reason)
            else:
                outcome = promote_version(job, name, version, force_reason)
    except Unavailable as reason:
        click.echo(f"millrace: MLflow: {reason}", err=True)
        sys.exit(FAILED)
    click.echo(json.dumps(vars(outcome)) if as_json else str(outcome))


def job_of(root: Path, execution: Any) -> Job:
    from stages.entry import Job

    if not execution.tracking:
        raise BadInput("execution.tracking is false; MILLRACE_EXECUTION__TRACKING=true switches it on for this command")
    return Job("export", root, execution)


def connect(job: Job) -> None:
    """Finds a server that is down before anything is done, and then gives it time for large files.

    Raises:
        Unavailable: it does not answer.
    """
    from stages.mlflow_store import EXPERIMENT
    from stages.tracking import Unavailable, address_of, hush

    chosen = TIMEOUT in os.environ
    hush()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    address = address_of(job)
    if address.artifacts is None:
        try:
            MlflowClient(address.uri).get_experiment_by_name(EXPERIMENT)
        except MlflowException as error:
            raise Unavailable(f"{address.uri} cannot be used: {str(error).splitlines()[0][:200]}") from None
    if not chosen:
        os.environ[TIMEOUT] = str(UPLOAD_SECONDS)


def promote_export(job: Job, name: str, force_reason: str) -> Outcome:
    """Registers the export in data/, unless it is, with a run made of what data/ has.

    Raises:
        BadInput: there is no export, or no figures, or they are of different models.
    """
    from stages.export.registry import apply_rule, candidate_of, locked, register
    from stages.tracking import open_run

    check(job)
    folder, key = job.out, run_key(job)
    with open_run(job, key, {}) as tracked:
        fill(job, tracked)

        def work(client: MlflowClient, run_id: str) -> Outcome:
            candidate = candidate_of(job, name, key, folder, tracked.tags)
            outcome = register(client, run_id, candidate)
            if not force_reason:
                return outcome
            with locked(candidate.lock):
                return apply_rule(client, client.get_model_version(name, outcome.version), force_reason)

        return tracked.call(work, SECONDS)


def check(job: Job) -> None:
    """Finds what is missing, and an export that is not the one that dvc.lock names."""
    for path in ("export/manifest.json", "export/hf/model.safetensors", "evaluate/metrics.json"):
        if not (job.root / "data" / path).is_file():
            raise BadInput(f"data/{path}: not there; `dvc pull export evaluate` or `dvc repro export` brings it")
    from ruamel.yaml import YAML

    from stages.export.snapshot import file_md5

    lock = job.root / "dvc.lock"
    entry = YAML(typ="safe").load(lock.read_text(encoding="utf-8"))["stages"].get("export") if lock.is_file() else None
    known = {out["path"]: out["md5"] for out in entry["outs"]} if entry else {}
    for path in ("data/export/manifest.json", "data/evaluate/metrics.json"):
        wanted = known.get(path) or _dependency(entry, path)
        if wanted and file_md5(job.root / path) != wanted:
            raise BadInput(f"{path}: not the file that dvc.lock names; run `dvc checkout` or `dvc repro export`")
    check_files(job.out)


def check_files(folder: Path) -> None:
    """Finds a file of the export that is not the one its manifest describes: a version goes by the manifest's hash."""
    from stages.files import file_sha256

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    listed = {one["file"]: one["sha256"] for one in manifest["files"]}
    there = {path.relative_to(folder).as_posix() for path in folder.glob("*/**/*") if path.is_file()}
    for name in sorted(listed.keys() | there):
        if name in listed and name in there and file_sha256(folder / name) == listed[name]:
            continue
        found = "is not there" if name not in there else "is not the file" if name in listed else "is no file"
        tail = "" if name not in there else " of its manifest.json"
        raise BadInput(f"data/export/{name}: {found}{tail}; run `dvc checkout` or `dvc repro export`")


def _dependency(entry: dict[str, Any] | None, path: str) -> str:
    return next((dep.get("md5", "") for dep in (entry or {}).get("deps", ()) if dep["path"] == path), "")


def run_key(job: Job) -> str:
    """The key of the training's run; where only the export was pulled, one made of its manifest."""
    from stages.files import file_sha256

    state = job.root / "data" / "train" / "best" / "state.json"
    if state.is_file():
        return str(json.loads(state.read_text(encoding="utf-8"))["run"])
    return f"export-{file_sha256(job.out / 'manifest.json')[:16]}"


def fill(job: Job, tracked: Run) -> None:
    """Gives the run the figures, curves and pages that data/ has, which it lacks where DVC took a stage from its
    cache; nothing stands there twice."""
    for stage in ("train", "evaluate"):
        metrics = job.root / "data" / stage / "metrics.json"
        if metrics.is_file():
            values = json.loads(metrics.read_text(encoding="utf-8"))
            tracked.results({key: value for key, value in values.items() if isinstance(value, int | float)})
    losses = job.root / "data" / "train" / "loss.csv"
    if losses.is_file():
        from stages.train.resume import send_history

        send_history(losses, sys.maxsize, job.execution.log_interval, tracked)
        tracked.artifact(losses)
    for page in ("report.html", "plots"):
        if (job.root / "data" / "evaluate" / page).exists():
            tracked.artifact(job.root / "data" / "evaluate" / page, "evaluate")


def promote_version(job: Job, name: str, version: int | None, force_reason: str) -> Outcome:
    """Applies the rule to a version in the registry, the newest if none is named."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from stages.export.registry import apply_rule, lock_of, locked
    from stages.tracking import Unavailable, address_of, unsent_folder
    from stages.unsent import send_all

    address = address_of(job)
    client = MlflowClient(address.uri)
    try:
        send_all(unsent_folder(job), address)
        found = client.search_model_versions(f"name = '{name}'")
        numbers = {int(one.version): one for one in found}
        if not numbers:
            raise BadInput(f"{name}: no version at {address.uri}; `millrace promote` registers the export in data/")
        chosen = max(numbers) if version is None else version
        if chosen not in numbers:
            raise BadInput(f"{name}: no version {chosen}; there are {min(numbers)} to {max(numbers)}")
        with locked(lock_of(job)):
            return apply_rule(client, numbers[chosen], force_reason)
    except MlflowException as error:
        raise Unavailable(str(error).splitlines()[0][:200]) from None
