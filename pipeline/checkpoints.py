"""The commands `millrace checkpoints ...`: what training has saved on this disk."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from stages.errors import BadInput

FAILED = 1

as_json = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table, whole and for programs.")


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def checkpoints(context: click.Context, as_json: bool) -> None:
    """Lists the checkpoints on this disk: of runs in scratch, and published ones.

    A run is named by its folder in scratch, or the beginning of that name. Training goes on from the newest whole
    checkpoint of its own run by itself; to begin with another one, name it in params.yaml.

    \b
      millrace checkpoints                   every checkpoint, and the params in which it differs from params.yaml
      millrace checkpoints show 21ee 100     how to begin with it: lines for params.yaml, and what would change
      millrace checkpoints verify            reads every byte and compares checksums
      millrace checkpoints prune             removes all but the newest and the best of each run
      millrace resume 21ee                   goes on with a run after its code or params have changed
    """
    if context.invoked_subcommand is None:
        from pipeline.runs import saved_checkpoints, train_job

        root = _root()
        found = saved_checkpoints(train_job(root))
        if as_json:
            click.echo(json.dumps([plain(one) for one in found], indent=2))
        elif found:
            print_table(
                ("RUN", "STEP", "", "TOKENS", "VALIDATION", "SIZE", "WHOLE", "DIFFERS FROM params.yaml"),
                [line_of(one) for one in found],
            )
        else:
            click.echo("no checkpoint: nothing was trained here, or its scratch folder has been removed")


@checkpoints.command()
@click.argument("run")
@click.argument("step", required=False, type=int)
def show(run: str, step: int | None) -> None:
    """Prints how to begin a training with a checkpoint, and what it would change.

    The newest one, if no STEP is given. What decides the function or the order of the data (the architecture, the
    tokenizer, the rows, batch, seed, objective, optimizer) must be as it was; the rest may differ.
    """
    from pipeline.runs import present, read, run_named, train_job
    from stages.checkpoint import MANIFEST, checkpoints_in
    from stages.files import file_sha256
    from stages.train.origin import RUN_FILE, changed_code, changes, table

    root = _root()
    job = train_job(root)
    steps = checkpoints_in(run_named(job, run))
    step = max(steps) if step is None else step
    if step not in steps:
        raise BadInput(f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}")
    path = steps[step]
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    click.echo("set in params.yaml:")
    click.echo(f"  train.resume_from: {shown}\n  train.resume_sha256: {file_sha256(path / MANIFEST)}")
    then, now = read(path / RUN_FILE), present(job)
    for line in table(changes(then, now), changed_code(then, now)):
        click.echo(line)


@checkpoints.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@as_json
def verify(runs: tuple[str, ...], as_json: bool) -> None:
    """Reads checkpoints to the end and compares them with their checksums. The exit code is 1 where one differs."""
    from pipeline.runs import run_named, saved_checkpoints, train_job
    from stages.checkpoint import problem_of

    job = train_job(_root())
    named = {run_named(job, run).name for run in runs}
    found = [one for one in saved_checkpoints(job) if not named or one.run in named]
    problems = {one.path: problem_of(one.path) for one in found}
    if as_json:
        lines = [{"run": one.run, "step": one.step, "problem": problems[one.path]} for one in found]
        click.echo(json.dumps(lines, indent=2))
    else:
        print_table(("RUN", "STEP", ""), [(one.run, f"{one.step:,}", problems[one.path] or "whole") for one in found])
    if any(problems.values()):
        sys.exit(FAILED)


@checkpoints.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(runs: tuple[str, ...], yes: bool) -> None:
    """Removes all checkpoints in scratch but the newest and the best of each run, and halves that a kill left.

    So every run can still go on and end as it would have. Runs that are being trained are left alone. Published
    checkpoints are DVC's: `dvc gc` removes old ones.
    """
    from pipeline.runs import needless, remove, run_named, runs_in, train_job

    job = train_job(_root())
    folders = list(needless([run_named(job, run) for run in runs] if runs else runs_in(job)))
    if not folders:
        click.echo("nothing to remove: every run has its newest and its best checkpoint alone")
        return
    total = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    for folder in folders:
        click.echo(f"{folder.parent.name}  {folder.name}")
    if not yes:
        click.confirm(f"remove these {len(folders)} ({size(total)})?", abort=True)
    left = remove(folders)
    click.echo(f"removed {len(folders) - len(left)}")
    for run in sorted({folder.parent.name for folder in left}):
        click.echo(f"{run} is being trained: its checkpoints stay")


def line_of(one: Any) -> tuple[str, ...]:
    differs = [f"{name} {value}" for name, value in one.differs.items() if name != "code"]
    return (
        one.run,
        f"{one.step:,}",
        one.role,
        f"{one.tokens:,}" if one.tokens is not None else "?",
        f"{one.validation_loss:.4f}" if one.validation_loss is not None else "-",
        size(one.bytes),
        "yes" if one.whole else "no",
        ", ".join([*differs, *(["code"] if "code" in one.differs else [])]) or "-",
    )


def plain(one: Any) -> dict[str, Any]:
    return {**dataclasses.asdict(one), "path": str(one.path)}


def size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} GB"


def print_table(heading: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    lines = [heading, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    for line in lines:
        click.echo("  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _root() -> Path:
    from stages.root import find_root

    return find_root()
