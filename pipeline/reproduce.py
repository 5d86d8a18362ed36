"""One stage through DVC: `dvc repro --single-item STAGE`, and what its words say about it.

DVC decides whether a stage has to run; the words in which it tells are all there is to tell an
unchanged stage from one taken from the run cache. A test holds them against the installed DVC.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pipeline import environment
from pipeline.links import dvc
from pipeline.programs import STOPPED, programs

Outcome = Literal["Unchanged", "Cached", "Completed", "Failed", "Busy", "Stopped", "NotRun"]

UNCHANGED = "didn't change, skipping"
CACHED = "is cached - skipping run, checking out outputs"
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
        outcome: `Unchanged`, `Cached` (outputs from DVC's run cache), `Completed` (it ran), `Failed`,
            `Busy` (another DVC process works on its files), `Stopped` by a signal, or `NotRun` because what
            it waits for is not done.
        exit_code: of the stage itself where DVC tells it: 2 is bad params or input.
    """

    outcome: Outcome
    exit_code: int = 0

    @property
    def done(self) -> bool:
        """Whether the outputs of the stage are there and up to date."""
        return self.outcome in ("Unchanged", "Cached", "Completed")


def reproduce(
    stage: str, directory: Path, say: Callable[[str], None], variables: Mapping[str, str] | None = None
) -> Reproduced:
    """Runs one stage through DVC if it has to run; its lines go to `say`."""
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        if line.strip() and not line.strip().startswith(REPEATED):
            say(line)

    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    exit_code = programs.run(command, directory, environment.for_programs(variables), on_line)
    return judge("\n".join(lines), exit_code, stopping=programs.stopped_by is not None)


def judge(text: str, exit_code: int, stopping: bool = False) -> Reproduced:
    """The outcome of a stage from DVC's words and exit code."""
    if exit_code == 0:
        if UNCHANGED in text:
            return Reproduced("Unchanged")
        return Reproduced("Cached" if CACHED in text else "Completed")
    found = EXIT_CODE.findall(text)
    stage_code = int(found[-1]) if found else 1
    if stopping or stage_code == STOPPED or exit_code == STOPPED:
        return Reproduced("Stopped", STOPPED)
    if any(words in text for words in BUSY):
        return Reproduced("Busy", 1)
    return Reproduced("Failed", stage_code if stage_code > 0 else 1)


def stale_stages(directory: Path) -> set[str] | None:
    """The stages that DVC would not skip now, or None where it cannot tell.

    Asking once for the whole graph costs as much as asking for one stage.
    """
    answer = dvc(directory, "status", "--json")
    try:
        return set(json.loads(answer.stdout)) if answer.returncode == 0 else None
    except json.JSONDecodeError:
        return None
