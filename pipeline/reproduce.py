"""One stage through DVC: `dvc repro --single-item STAGE`, and what its words say about it.

DVC decides whether a stage has to run; the words in which it tells are all there is to tell an
unchanged stage from one taken from the run cache. A test holds them against the installed DVC.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import environment
from pipeline.dvc_program import dvc, dvc_command
from pipeline.programs import STOPPED, programs

Outcome = Literal["Unchanged", "Cached", "Completed", "Failed", "Busy", "Stopped", "NotRun"]

UNCHANGED = "didn't change, skipping"
CACHED = "is cached - skipping run, checking out outputs"
PULLED, NOT_PULLED = "Pulling data for stage", "Unable to pull data for stage"
BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")
EXIT_CODE = re.compile(r"exited with (-?\d+)")
# What DVC says after every single stage.
REPEATED = (
    "To track the changes with git",
    "git add ",
    "To enable auto staging",
    "dvc config core.autostage",
    "Use `dvc push`",
    "Generating lock file",
    "Updating lock file",
    "Data and pipelines are up to date",
)


@dataclasses.dataclass(frozen=True)
class Reproduced:
    """What became of a stage.

    Attributes:
        outcome: `Unchanged`, `Cached` (outputs from DVC's run cache or remote), `Completed` (it ran), `Failed`,
            `Busy` (another DVC process works on its files), `Stopped` by a signal, or `NotRun` because what
            it waits for is not done.
        exit_code: of the stage itself where DVC tells it: 2 is bad params or input.
        seconds: how long it took, DVC included.
    """

    outcome: Outcome
    exit_code: int = 0
    seconds: float = dataclasses.field(default=0.0, compare=False)

    @property
    def done(self) -> bool:
        """Whether the outputs of the stage are there and up to date."""
        return self.outcome in ("Unchanged", "Cached", "Completed")


@dataclasses.dataclass(frozen=True)
class Workspace:
    """Where stages run, and how.

    Attributes:
        directory: the root of the repository, or of a copy of it.
        variables: what the environment of the stages gets beside our own.
        force: run stages also when nothing has changed, and take nothing from the run cache.
        remote: take outputs from DVC's default remote before a stage runs, and send them there when it has.
    """

    directory: Path
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)
    force: bool = False
    remote: bool = False


def reproduce(stage: str, workspace: Workspace, say: Callable[[str], None]) -> Reproduced:
    """Runs one stage through DVC if it has to run; its lines go to `say`."""
    began = time.monotonic()
    wishes = [*(["--force"] * workspace.force), *(["--pull"] * workspace.remote)]
    exit_code, text = _dvc(["repro", "--single-item", *wishes, stage], workspace, say)
    result = judge(text, exit_code, stopping=programs.stopped_by is not None)
    if workspace.remote and result.outcome in ("Completed", "Cached"):
        exit_code, _ = _dvc(["push", "--run-cache", stage], workspace, say)
        if exit_code and programs.stopped_by is None:
            say(f"`dvc push {stage}` failed; its outputs are in the cache of this machine, and a later run sends them")
    return dataclasses.replace(result, seconds=time.monotonic() - began)


def _dvc(arguments: list[str], workspace: Workspace, say: Callable[[str], None]) -> tuple[int, str]:
    """The exit code of `dvc` and all that it said; what is not the same after every stage goes to `say` at once."""
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line.strip() and not line.strip().startswith(REPEATED):
            say(line)

    command = dvc_command(workspace.directory, *arguments)
    exit_code = programs.run(command, workspace.directory, environment.for_programs(workspace.variables), on_line)
    return exit_code, "\n".join(lines)


def judge(text: str, exit_code: int, stopping: bool = False) -> Reproduced:
    """The outcome of a stage from DVC's words and exit code."""
    if exit_code == 0:
        if UNCHANGED in text:
            return Reproduced("Unchanged")
        taken = CACHED in text or (PULLED in text and NOT_PULLED not in text)
        return Reproduced("Cached" if taken else "Completed")
    found = EXIT_CODE.findall(text)
    stage_code = int(found[-1]) if found else 1
    if stopping or stage_code == STOPPED or exit_code == STOPPED:
        return Reproduced("Stopped", STOPPED)
    if any(words in text for words in BUSY):
        return Reproduced("Busy", 1)
    return Reproduced("Failed", stage_code if stage_code > 0 else 1)


def stale_stages(directory: Path) -> set[str] | None:
    """The stages that DVC would not skip now, or None where it cannot tell.

    Asking once for the whole graph costs as much as asking for one stage. DVC reads every input that has changed, which
    may take long; a signal that stops us ends it.
    """
    answer = programs.ask(dvc_command(directory, "status", "--json"), directory, environment.for_programs())
    try:
        return set(json.loads(answer.stdout)) if answer.returncode == 0 else None
    except json.JSONDecodeError:
        return None


def inputs_came_out_equal(directory: Path, stage: str, made: Iterable[str]) -> bool:
    """Whether dvc.lock has the dependencies `made` as the stages that have just run left them.

    DVC would find the same and skip a stage that was up to date before; so no process is started, and no GPU waited
    for. In doubt, as when another process writes the file just now, the answer is no.
    """
    try:
        stages = YAML(typ="safe").load((directory / "dvc.lock").read_text(encoding="utf-8"))["stages"]
        outs = {out["path"]: out["md5"] for entry in stages.values() for out in entry.get("outs", [])}
        deps = {dep["path"]: dep["md5"] for dep in stages[stage]["deps"]}
        return all(deps[path] == outs[path] for path in made)
    except (OSError, YAMLError, LookupError, TypeError):
        return False


def has_remote(directory: Path) -> bool:
    """Whether DVC has a default remote here."""
    answer = dvc(directory, "config", "core.remote")
    return answer.returncode == 0 and bool(answer.stdout.strip())
