"""The command `millrace resume`: goes on with a run after its code or its params have changed.

A run's scratch folder is named by params, data and code, so after a fix in the code the same command starts another
run in another folder. `resume` gives that folder the checkpoint of the old one, after showing what has changed:

    21ee1a44.. (step 1,200, before the fix)  ->  9b690447.. (the present code), which goes on at step 1,200

The old folder stays as it is: its checkpoints are linked, not moved.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from stages.errors import BadInput


@click.command()
@click.argument("run")
@click.option("--accept", is_flag=True, help="Go on across the changes that are shown.")
def resume(run: str, accept: bool) -> None:
    """Goes on with a run of `millrace checkpoints` although code or params have changed since.

    A run that was interrupted goes on by itself when its command is given again. This is for one whose code was mended
    meanwhile, or whose rate must be another from here on: it shows the functions and params that differ, and with
    --accept brings the data up to date and trains on from the newest checkpoint, in the same MLflow run if no param
    changed. What decides the function or the order of the data cannot change. state.json keeps the lineage.

    \b
      millrace resume 21ee              what has changed since?
      millrace resume 21ee --accept     go on
      millrace run                      then evaluate and export, as always
    """
    from pipeline.graph import read_graph
    from pipeline.runs import run_named, train_job
    from pipeline.scheduling.run import run_flow
    from stages.root import find_root

    root = find_root()
    job = train_job(root)
    folder = run_named(job, run)
    if show_changes(job, folder) and not accept:
        raise BadInput("nothing was done; add --accept to go on across these changes")
    upstream = read_graph(root).upstream["train"]
    if code := run_flow(root, targets=sorted(upstream)):
        sys.exit(code)
    adopt(root, folder)
    sys.exit(run_flow(root, targets=["train"], only=True))


def show_changes(job: Any, folder: Path) -> bool:
    """Prints what differs between a run and the present params, data and code; whether anything does.

    Raises:
        BadInput: something differs across which no run can go on.
    """
    from pipeline.runs import read
    from stages.checkpoint import read_json
    from stages.train.origin import RUN_FILE, changed_code, changes, origin_of, table
    from stages.train.resume import refuse

    source = newest(folder)
    now = {**origin_of(job), "code": present_code(job)}
    then = read_json(source, RUN_FILE)
    found, code = changes(then, now), changed_code(then, now)
    click.echo(f"run {folder.name} is at step {read(source / 'state.json')['step']:,}")
    for line in table(found, code):
        click.echo(line)
    refuse(found, read(source / "state.json")["step"], job.sections["train"])
    return bool(found or code)


def present_code(job: Any) -> dict[str, Any]:
    """The hashes of the functions that train can reach, as the stage `code` would write them now."""
    from stages.code.parts import own_modules
    from stages.code.stage import fingerprint
    from stages.fingerprint.imports import Project
    from stages.params import ParamsFile

    project = Project(job.root)
    own = own_modules(ParamsFile(job.root / "params.yaml"), project, job.sections["model"])
    return dict(fingerprint(project, "train", own)["modules"])


def newest(folder: Path) -> Path:
    """The newest whole checkpoint of a run."""
    from stages.checkpoint import checkpoints_in, problem_of

    for path in reversed(checkpoints_in(folder).values()):
        if problem_of(path) is None:
            return path
    raise BadInput(f"{folder}: no whole checkpoint; `millrace checkpoints verify` says what is damaged")


def adopt(root: Path, old: Path) -> None:
    """Gives the scratch folder of the present work the newest checkpoint of another run, and its best one.

    Raises:
        BadInput: somebody trains in the old one, or the present work has checkpoints of its own.
    """
    from stages.checkpoint import checkpoints_in
    from stages.entry import prepare_job
    from stages.locks import exclusive
    from stages.train.resume import begin_from
    from stages.train.stage import run

    job = prepare_job("train", run, root)
    with job.scratch(keep_published=True) as folder:
        if folder == old:
            return  # nothing has changed: the run goes on by itself
        if steps := checkpoints_in(folder):
            raise BadInput(
                f"the present params and code have a run of their own, at step {max(steps):,}; `millrace run train` "
                f"goes on with it, or remove {folder} to go on with {old.name}"
            )
        with exclusive(old) as free:
            if not free:
                raise BadInput(f"{old.name} is being trained; stop that first")
            begin_from(newest(old), folder, job, keep_best=True)
