"""The command `millrace`. It loads what a command needs when it is given, so that `--help` is instant.

Exit codes: 0 done, 1 failed, 2 bad params or input, 130 stopped by a signal and resumable.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from pipeline import environment
from pipeline.ablation.command import ablate
from pipeline.benchmark import benchmark
from pipeline.chat import chat
from pipeline.checkpoints import checkpoints
from pipeline.compare import compare
from pipeline.corpora.command import data
from pipeline.explain import command as explain
from pipeline.gc import gc
from pipeline.generate import generate
from pipeline.import_ import import_
from pipeline.plan import plan
from pipeline.promote import promote
from pipeline.report import report
from pipeline.resume import resume
from pipeline.scheduling.run import run_flow
from pipeline.scheduling.up import up
from pipeline.serve import serve
from stages.errors import BadInput
from stages.root import find_root

FAILED, BAD_INPUT, STOPPED = 1, 2, 130


class Teaching(click.Group):
    """A group whose commands are listed in the order in which one meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=Teaching, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Pre-trains language models: raw text to a registered, exported model.

    dvc.yaml is the graph, params.yaml holds every knob, data/ gets the results. `dvc repro` and `millrace
    run` run the same stages and give the same bytes; the second runs them as a Prefect flow, independent
    stages at the same time.

    \b
    A first day:
      millrace doctor                        is this machine ready?
      millrace run --smoke                   every stage in a minute and a half, in a copy
      millrace run                           the whole pipeline, or what changed of it
      dvc metrics show                       what came out
      millrace data stats                    what the corpus is made of; `data --help` for more
      millrace report --watch                how a training is doing, and where its live curves are
      millrace run -S model.post_norm=true   the same with one param changed, beside the workspace
      dvc exp show                           the runs side by side
      millrace ablate model.post_norm=true   does it matter, or is it noise? several seeds, and a report
      millrace generate "Returns the"        a text of the exported model; `millrace serve` is OpenAI's API
      millrace up                            Prefect, its workers and the MLflow UI on this machine

    Exit codes: 0 done, 1 failed, 2 bad params or input, 130 stopped and resumable.
    """


@cli.command()
@click.argument("targets", nargs=-1, metavar="[STAGE]...")
@click.option("--only", is_flag=True, help="Run just these stages (after `code`), not what they wait for.")
@click.option("--force", is_flag=True, help="Run the chosen stages also where nothing has changed.")
@click.option("--smoke", is_flag=True, help="Every stage with tiny params, in a copy of the working tree.")
@click.option("--recipe", metavar="NAME", help="Params of recipes/NAME.yaml: smoke, laptop, 1xh100, 8xh100 or yours.")
@click.option(
    "-S", "settings", multiple=True, metavar="KEY=VALUE", help="Change a param for this run; can be repeated."
)
def run(
    targets: tuple[str, ...], only: bool, force: bool, smoke: bool, recipe: str | None, settings: tuple[str, ...]
) -> None:
    """Runs the pipeline, or the named stages and what they wait for.

    DVC decides for each stage whether it has to run: Unchanged (inputs, params and code are as they were),
    Cached (outputs taken from an earlier equal run) or Completed (it ran). After an interruption, by Ctrl-C
    or kill -9, the same command goes on where it was.

    \b
      millrace run                     every stage
      millrace run train               train, and whatever it waits for and is not up to date
      millrace run train --only        code, then train alone, on the data as it is
      millrace run -S train.seed=1     in a git worktree beside, kept as a DVC experiment
      millrace run --smoke             does every stage work? (recipes/smoke.yaml)
      millrace run --recipe laptop     params for a machine and a corpus, beside the workspace as -S

    A Prefect server is used if PREFECT_API_URL names one or `millrace up` runs here, else a temporary one. While
    another DVC command works here, this one waits for it (`dvc repro` would refuse).
    """
    from pipeline.plan import stop_where_far_short
    from pipeline.recipes import read_recipe, settings_of

    root = find_root()
    check(root, targets, only)
    smoke = smoke or recipe == "smoke"
    if smoke and settings:
        raise BadInput("the recipe smoke is a check with params of its own (recipes/smoke.yaml); leave out -S")
    if smoke and recipe not in (None, "smoke"):
        raise BadInput(f"--smoke is a recipe itself; leave out --recipe {recipe}")
    if smoke:
        sys.exit(run_smoke(root, list(targets), only))
    if recipe:  # what is said by -S comes last and holds
        settings = (*settings_of(read_recipe(root, recipe)), *settings)
    if not targets:
        stop_where_far_short(root, recipe)
    overrides = experiment_of(root, settings) if settings else None
    sys.exit(run_flow(root, targets=list(targets), only=only, force=force, overrides=overrides))


@cli.command()
@click.argument("names", nargs=-1, metavar="[SECTION]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON object: name, value and origin of each param.")
def params(names: tuple[str, ...], as_json: bool) -> None:
    """Prints every param with its value and where the value comes from.

    The origin is a line of params.yaml, `default` for a key that does not stand there, or the environment
    variable that overrides it (of the section `execution` alone, such as MILLRACE_EXECUTION__DEVICE=cpu). A last line
    says what the model costs: parameters, and bytes of cache a token, beside those of plain multi-head attention.
    """
    from pipeline.params_view import model_summary, resolved

    values = resolved(find_root())
    sections = list(dict.fromkeys(value.name.split(".")[0] for value in values))
    for name in names:
        if name not in sections:
            raise BadInput(f"{name}: no section of params.yaml; there are {', '.join(sections)}")
    values = [value for value in values if not names or value.name.split(".")[0] in names]
    if as_json:
        click.echo(json.dumps({v.name: {"value": v.value, "origin": v.origin} for v in values}, indent=2))
        return
    shown = [(v.name, json.dumps(v.value, ensure_ascii=False), v.origin) for v in values]
    widths = [max(len(row[column]) for row in shown) for column in (0, 1)]
    for name, value, origin in shown:
        click.echo(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}")
    if (not names or "model" in names) and (line := model_summary(find_root())):
        click.echo(line)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON list: check, level, found, mend.")
def doctor(as_json: bool) -> None:
    """Checks Python, packages, torch, compiler, disk, file system, git, DVC and params.

    Each warning and failure comes with its mend. The exit code is 1 where something fails.
    """
    from pipeline.doctor import Finding, examine

    colours = {"ok": "green", "warning": "yellow", "failure": "red"}
    findings: list[Finding] = []
    for finding in examine(find_root()):
        findings.append(finding)
        if not as_json:
            level = click.style(f"{finding.level:8}", fg=colours[finding.level])
            click.echo(f"{level} {finding.check:12} {finding.found}")
            if finding.mend:
                click.echo(f"{'':21} mend: {finding.mend}")
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in findings], indent=2))
    if any(finding.level == "failure" for finding in findings):
        sys.exit(FAILED)


cli.add_command(data)
cli.add_command(checkpoints)
cli.add_command(resume)
cli.add_command(report)
cli.add_command(promote)
cli.add_command(plan)
cli.add_command(up)
cli.add_command(explain)
cli.add_command(ablate)
cli.add_command(compare)
cli.add_command(gc)
cli.add_command(import_)
cli.add_command(benchmark)
cli.add_command(generate)
cli.add_command(chat)
cli.add_command(serve)


@cli.group()
def tokenizer() -> None:
    """Works on tokenizer.json files."""


@tokenizer.command()
@click.argument("tokens", nargs=-1, required=True, metavar="TOKEN...")
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="The file to write.")
@click.option(
    "--from", "source", type=click.Path(path_type=Path), help="Another file than data/tokenizer/tokenizer.json."
)
def migrate(tokens: tuple[str, ...], target: Path, source: Path | None) -> None:
    """Adds special tokens to a tokenizer and keeps every id.

    The new file is used by the params that this prints. Shards and checkpoints that were made with the old file
    name its sha256 and are not taken for the new one's.

    \b
      millrace tokenizer migrate '<|tool|>' '<|user|>' --to inputs/tokenizer.json
    """
    from stages.tokenizer.migrate import migrate as add

    source = source or find_root() / "data/tokenizer/tokenizer.json"
    sha256, added = add(source, target, list(tokens))
    for token, number in added.items():
        click.echo(f"{number:>8}  {token}")
    click.echo(f"set in params.yaml:\n  tokenizer.file: {target}\n  tokenizer.file_sha256: {sha256}")


def check(root: Path, targets: tuple[str, ...], only: bool) -> None:
    """Finds mistakes in targets and params before anything is started."""
    from pipeline.graph import read_graph
    from pipeline.params_view import resolved

    read_graph(root).select(targets, only)
    resolved(root)


def run_smoke(root: Path, targets: list[str], only: bool) -> int:
    from pipeline.graph import read_graph
    from pipeline.smoke import smoke_copy

    with smoke_copy(root) as folder:
        check(folder, tuple(targets), only)
        if code := run_flow(folder, targets=targets, only=only):
            click.echo(f"millrace: smoke failed; its copy stays in {folder}", err=True)
            sys.exit(code)
        passed = read_graph(folder).select(targets, only)
    click.echo(f"millrace: smoke passed: {', '.join(passed)}; the workspace was not touched")
    return 0


def experiment_of(root: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    """The overrides of `-S`, such as `{"train.max_steps": 20}`, found good before anything is started."""
    from pipeline.experiment import dotted, parse
    from pipeline.params_view import refuse_wrong

    overrides = parse(settings)
    refuse_wrong(root, overrides, "-S")  # params.yaml itself has been checked
    return dotted(overrides)


def main() -> None:
    """The entry point: every end has its exit code and, on purpose, one line."""
    environment.prepare()
    try:
        cli.main(standalone_mode=False)
    except BadInput as error:
        sys.exit(_complain(str(error), BAD_INPUT))
    except click.ClickException as error:
        error.show()
        sys.exit(BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_complain("stopped", STOPPED))
    except BrokenPipeError:  # `millrace params | head`
        sys.stderr.close()


def _complain(message: str, code: int) -> int:
    click.echo(f"millrace: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
