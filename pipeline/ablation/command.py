"""The command `millrace ablate`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.errors import BadInput
from stages.wording import counted

if TYPE_CHECKING:
    from pipeline.ablation.grid import Planned, Variant

FAILED, STOPPED = 1, 130
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@click.command()
@click.argument("grid", nargs=-1, required=True, metavar="KEY=VALUE,VALUE...")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Runs of each variant.")
@click.option("--jobs", "-j", type=click.IntRange(1), help="Experiments at a time. [default: one per GPU; 1 on CPUs]")
@click.option("--baseline", multiple=True, metavar="KEY=VALUE", help="What to compare with, where not as params.yaml.")
@click.option("--name", help="Of the ablation, for its folder. [default: from the keys]")
@click.option("--target", "targets", multiple=True, metavar="STAGE", help="Run up to this. [default: evaluate]")
@click.option(
    "--report", "copy_to", type=click.Path(path_type=Path, file_okay=False), help="Put the report here as well."
)
@click.option("--dry-run", is_flag=True, help="Print the experiments and what exists of them; run nothing.")
def ablate(
    grid: tuple[str, ...],
    seeds: int,
    jobs: int | None,
    baseline: tuple[str, ...],
    name: str | None,
    targets: tuple[str, ...],
    copy_to: Path | None,
    dry_run: bool,
) -> None:
    """Trains every combination of values with several seeds, and says which differences are noise.

    Each run is a DVC experiment (`dvc exp show` has them), stages that runs share run once, and the same command goes
    on after an interruption. The baseline is params.yaml as it is; it runs once more with other seeds, as a control.
    The report lies in .dvc/tmp/millrace/ablations/NAME: report.html, report.md and report.json (docs/experiments.md).

    A comma separates values, but within brackets or quotes; the layers of a pattern are joined by +.

    \b
      millrace ablate model.post_norm=true,false model.qk_norm=true,false --seeds 3
      millrace ablate model.layer_pattern=full,swa*2+mla*1 --jobs 2
      millrace ablate dedup.enabled=true,false --seeds 5 --dry-run
    """
    from pipeline.ablation.grid import parse, planned, value_in, variants
    from pipeline.experiment import nested
    from pipeline.graph import plain_params, read_graph
    from pipeline.params_view import refuse_wrong
    from stages.root import find_root

    root = find_root()
    params, varied = plain_params(root), parse(grid)
    every = variants(varied, params, baseline)
    graph = read_graph(root)
    chosen = list(targets) or (["evaluate"] if "evaluate" in graph.stages else [])
    if not any(graph.stages[stage].metrics for stage in graph.select(chosen)):
        raise BadInput(f"--target {', '.join(chosen)}: nothing is measured up to there; `evaluate` has the losses")
    for variant in every:
        refuse_wrong(root, nested(variant.settings), variant.label)
    commit, state = state_of(root, params)
    if name is not None and not NAME.fullmatch(name):
        raise BadInput(f"--name {name!r}: the name of a folder; letters, digits, '.', '_' and '-', no dot in front")
    plan = planned(every, seeds, int(value_in(params, "train.seed")), state)
    folder = root / ".dvc" / "tmp" / "millrace" / "ablations" / (name or name_from(varied))
    if dry_run:
        show_plan(root, plan, commit, chosen)
        return
    carry_out(root, folder, Work(plan, every, commit, chosen, f"Ablation of {', '.join(varied)}"), jobs, copy_to)


@dataclasses.dataclass(frozen=True)
class Work:
    """What an ablation is to bring about: the experiments of all variants on a commit, each up to `targets`."""

    plan: Sequence[Planned]
    variants: Sequence[Variant]
    commit: str
    targets: Sequence[str]
    title: str


def carry_out(root: Path, folder: Path, work: Work, jobs: int | None, copy_to: Path | None) -> None:
    """Runs what is not done and writes the report; exits with FAILED or STOPPED where that is how it ended."""
    from pipeline.ablation.grid import Variant
    from pipeline.ablation.report import write
    from pipeline.ablation.results import collect
    from pipeline.ablation.runner import Runner
    from pipeline.graph import plain_params
    from pipeline.smoke import alone_in

    cards = gpus(plain_params(root))
    with alone_in(folder):
        runner = Runner(root, folder, work.commit, work.targets, jobs or len(cards) or 1, not cards, click.echo)
        problems = runner.run(work.plan)
        runs = collect(root, work.plan, work.commit)
        if runner.stopped:
            click.echo(
                f"millrace: stopped with {len(runs)} of {len(work.plan)} done; the same command goes on", err=True
            )
            sys.exit(STOPPED)
        control = Variant(work.variants[0].settings, control=True)
        page = write(folder, work.title, runs, [*work.variants, control], problems, root)
    if copy_to:
        copy_to.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("report.*"):
            (copy_to / path.name).write_bytes(path.read_bytes())
    for markdown, _ in page.parts:
        if markdown.startswith("**"):
            click.echo(markdown.strip("*"))
    click.echo(f"report: {(copy_to or folder) / 'report.html'}")
    if problems:
        sys.exit(FAILED)


def state_of(root: Path, params: dict) -> tuple[str, str]:
    """The commit, and a name for it with the changes that are not in it, of files that stages read.

    Raises:
        BadInput: no commit, or files that DVC's copies would leave out.
    """
    from pipeline.graph import read_graph
    from pipeline.revisions import git

    if not (commit := git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")):
        raise BadInput("experiments stand on a commit of git, and there is none yet: `git add --all; git commit`")
    untracked = (git(root, "ls-files", "--others", "--exclude-standard") or "").splitlines()
    inputs = str((params.get("download") or {}).get("inputs") or "inputs")
    left_out = [path for path in untracked if path.startswith(("model/", "stages/", f"{inputs}/"))]
    if left_out:
        raise BadInput(f"{left_out[0]}: not known to git, so DVC's copies would lack it; `git add` it")
    stages = read_graph(root).stages.values()
    made = {path for stage in stages for path in stage.outs}
    read = sorted({path for stage in stages for path in stage.deps if not Path(path).is_absolute()} - made)
    changes = git(root, "diff", "HEAD", "--", "dvc.yaml", "params.yaml", *read) or ""
    return commit, f"{commit} {hashlib.sha256(changes.encode()).hexdigest() if changes else ''}"


def name_from(varied: dict) -> str:
    described = json.dumps(varied, sort_keys=True, default=str)
    keys = "-".join(key.split(".")[-1].replace("_", "-") for key in varied)[:50]
    return f"{keys}-{hashlib.sha256(described.encode()).hexdigest()[:5]}"


def gpus(params: dict) -> list[str]:
    """The GPUs that the stages would use."""
    from stages.devices import visible_devices

    return [] if (params.get("execution") or {}).get("device") == "cpu" else visible_devices()


def show_plan(root: Path, plan: Sequence, commit: str, targets: Sequence[str]) -> None:
    from pipeline.revisions import experiments_on

    done = experiments_on(root, commit)
    for one in plan:
        state = "done" if one.name in done else "to run"
        click.echo(f"{state:7} {one.name:60} seed {one.seed}  {one.variant.label}")
    waiting = sum(one.name not in done for one in plan)
    click.echo(f"{counted(len(plan), 'experiment')}, {waiting} to run, each to {', '.join(targets) or 'the end'}")
