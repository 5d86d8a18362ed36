"""Runs the experiments of an ablation, some at a time, each by `dvc exp run --temp` in a process of its own.

DVC copies the repository (links, no data), runs the stages there and keeps the experiment under its name, which
follows from values, seed and commit. So the same command goes on after any end: an experiment that git has a ref of
is done, one that was killed goes on in its scratch, and stages that two of them share run once: those that make the
data of several experiments are run by the first of them, for which the others wait, and then lie in the run cache;
a training that two reach at the same time is locked by its scratch, and the second publishes the first one's files.

To make its copy DVC changes params.yaml and stashes what is not committed, for a second; a kill in that second
leaves both so (tried). Therefore it is started in a git worktree beside, the desk, which has the files of the
workspace as they are, and is thrown away.

DVC's own queue (`dvc queue start -j 2`) worked when tried, but its workers are daemons: they outlive Ctrl-C, take
whatever else is queued, and cannot be given a share of the cores. On GPUs each stage holds the lock of one
(stages/devices.py); on CPUs each experiment gets its share of the cores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from pipeline import environment
from pipeline.ablation.grid import SEED, Planned
from pipeline.dvc_program import dvc_command
from pipeline.graph import plain_params, read_graph
from pipeline.programs import programs
from pipeline.reproduce import CACHED, UNCHANGED
from pipeline.revisions import experiments_on
from stages.execution import n_cores

RUNNING = re.compile(r"^Running stage '([^']+)'")
NAMED = re.compile(r"^Stage '([^']+)'")
STEP = re.compile(r"^step (\d+)")
RETRIES = 3  # where another DVC process holds a lock of a file
BUSY = "is busy, it is being blocked by"
SECONDS_BETWEEN_STEPS = 10.0
SECONDS_TO_BEGIN = 600  # within which DVC has filled a temporary copy, and works in it


@dataclasses.dataclass
class Told:
    """What the lines of one experiment have told: which stages ran, for how long, and which were taken.

    Attributes:
        ran: seconds by stage.
        taken: stages whose outputs came from the run cache.
        unchanged: stages that had nothing to do.
    """

    ran: dict[str, float] = dataclasses.field(default_factory=dict)
    taken: list[str] = dataclasses.field(default_factory=list)
    unchanged: list[str] = dataclasses.field(default_factory=list)
    at_work: str = ""
    since: float = 0.0

    def hear(self, line: str, now: float) -> str:
        """Takes in one line; returns what is worth telling of it."""
        if found := RUNNING.match(line):
            self.end(now)
            self.at_work, self.since = found[1], now
            return f"{found[1]} runs"
        if (found := NAMED.match(line)) and (UNCHANGED in line or CACHED in line):
            self.end(now)
            (self.taken if CACHED in line else self.unchanged).append(found[1])
            return f"{found[1]} from the run cache" if CACHED in line else ""
        if found := STEP.match(line):
            return f"{self.at_work}: step {found[1]}"
        return ""

    def end(self, now: float) -> None:
        if self.at_work:
            self.ran[self.at_work] = self.ran.get(self.at_work, 0.0) + now - self.since
            self.at_work = ""

    def save(self, path: Path) -> None:
        content = {"ran": self.ran, "taken": self.taken, "unchanged": self.unchanged}
        beside = path.with_name(f"{path.name}.partial")
        beside.write_text(json.dumps(content), encoding="utf-8")
        beside.replace(path)

    @classmethod
    def before(cls, path: Path) -> Told:
        """What an attempt that was cut short has left."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()


@dataclasses.dataclass
class Runner:
    """The experiments of one ablation on one commit.

    Attributes:
        root: the workspace, whose scratch and MLflow store the stages use.
        folder: of the ablation; logs and what was told lie in runs/, the desk in desk/.
        targets: stages to bring about, with what they wait for; all if empty.
        jobs: experiments at a time.
        share: whether each gets a part of the cores; on GPUs the data stages take what they find.
    """

    root: Path
    folder: Path
    commit: str
    targets: Sequence[str]
    jobs: int
    share: bool
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = 0
        self._shown: dict[str, float] = {}
        self._graph = read_graph(self.root)
        self._ready: dict[str, threading.Event] = {}

    def run(self, planned: Sequence[Planned]) -> dict[str, str]:
        """Runs what is not done; returns why experiments failed, by name."""
        (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        done = experiments_on(self.root, self.commit)
        waiting = [one for one in planned if one.name not in done]
        self._ready = {self._data_of(one): threading.Event() for one in waiting}
        self._leaders = {group: next(o.name for o in waiting if self._data_of(o) == group) for group in self._ready}
        self._total, self._ended = len(planned), len(planned) - len(waiting)
        if self._ended:
            self.say(f"{self._ended} of {self._total} experiments are done already")
        problems: dict[str, str] = {}
        with programs.stop_on_signals():
            if waiting:
                with desk(self.root, self.folder / "desk") as self._desk, ThreadPoolExecutor(self.jobs) as threads:
                    names = (one.name for one in waiting)
                    problems = dict(zip(names, threads.map(self._run_one, waiting), strict=True))
            self.stopped = programs.stopped_by is not None
        return {name: problem for name, problem in problems.items() if problem}

    def _run_one(self, one: Planned) -> str:
        """Runs one experiment; returns the problem, or nothing."""
        ready = self._ready[self._data_of(one)]
        if self._leaders[self._data_of(one)] != one.name:
            ready.wait()
        try:
            return self._run_now(one)
        finally:
            ready.set()

    def _data_of(self, one: Planned) -> str:
        """Names the data that an experiment trains on: the settings of the stages before the seed is read."""
        sections = {section for stage in self._before_seed() for section in self._graph.stages[stage].params}
        chosen = {name: value for name, value in one.variant.settings.items() if name.split(".")[0] in sections}
        return json.dumps(chosen, sort_keys=True, default=str)

    def _before_seed(self) -> set[str]:
        seeded = [name for name, stage in self._graph.stages.items() if SEED.split(".")[0] in stage.params]
        return set(self._graph.select(seeded)) - {*seeded, *(n for s in seeded for n in self._graph.downstream(s))}

    def _run_now(self, one: Planned) -> str:
        if programs.stopped_by:
            return "not begun"
        command = dvc_command(self._desk, "exp", "run", "--temp", "--name", one.name)
        command += [part for override in one.overrides for part in ("--set-param", override)] + list(self.targets)
        for attempt in range(1 + RETRIES):
            code, last = self._attempt(one, command)
            if BUSY not in last or code == 0:
                break
            time.sleep(1 + attempt)
        with self._lock:
            self._ended += code == 0
        if code == 0:
            self._tell(one, "done", always=True)
            return ""
        problem = "stopped" if programs.stopped_by else last
        self._tell(one, f"failed: {problem}; its log: {self._path(one, 'log')}", always=True)
        return problem

    def _attempt(self, one: Planned, command: list[str]) -> tuple[int, str]:
        told, lines = Told.before(self._path(one, "json")), [""]
        with self._path(one, "log").open("a", encoding="utf-8") as log:

            def on_line(line: str) -> None:
                log.write(f"{line}\n")
                log.flush()
                if line.startswith(("ERROR", "millrace: ")) or BUSY in line:
                    lines.append(line.removeprefix("ERROR: "))
                if (found := RUNNING.match(line) or NAMED.match(line)) and found[1] not in self._before_seed():
                    self._ready[self._data_of(one)].set()
                if news := told.hear(line, time.monotonic()):
                    told.save(self._path(one, "json"))  # as it goes: a kill must not lose it
                    self._tell(one, news)

            code = programs.run(command, self._desk, environment.for_programs(self._variables()), on_line)
        told.end(time.monotonic())
        told.save(self._path(one, "json"))
        ours = [line for line in lines if line.startswith("millrace: ")]
        return code, (ours or lines)[-1] or f"exit code {code}"

    def _variables(self) -> dict[str, str]:
        """Scratch, tracking and first weights are those of the workspace, and each experiment has its part of the
        cores, where it is not said otherwise."""
        execution = plain_params(self.root).get("execution") or {}
        scratch = self.root / ".dvc" / "tmp" / "millrace"
        found = {"MILLRACE_ABLATION": self.folder.name}
        if not execution.get("scratch"):
            found["MILLRACE_EXECUTION__SCRATCH"] = str(scratch)
        if not execution.get("tracking_uri"):
            found["MLFLOW_TRACKING_URI"] = f"sqlite:///{scratch / 'mlflow.db'}"
        if weights := execution.get("init_from"):
            found["MILLRACE_EXECUTION__INIT_FROM"] = str(self.root / Path(weights).expanduser())
        if self.share and self.jobs > 1:
            cores = str(max(1, n_cores() // self.jobs))
            found |= dict.fromkeys(("MILLRACE_EXECUTION__THREADS", "MILLRACE_EXECUTION__WORKERS"), cores)
            found["OMP_NUM_THREADS"] = cores
        return {name: os.environ.get(name) or value for name, value in found.items()}

    def _path(self, one: Planned, suffix: str) -> Path:
        return self.folder / "runs" / f"{one.name}.{suffix}"

    def _tell(self, one: Planned, news: str, always: bool = False) -> None:
        now = time.monotonic()
        with self._lock:
            if not always and ": step " in news and now - self._shown.get(one.name, 0.0) < SECONDS_BETWEEN_STEPS:
                return
            self._shown[one.name] = now
            self.say(f"[{self._ended}/{self._total}] {one.name}: {news}")


@contextlib.contextmanager
def desk(root: Path, folder: Path) -> Iterator[Path]:
    """A worktree with the files of the workspace, on the same cache, in which DVC may do as it likes."""
    from pipeline.experiment import fill, remove

    remove(root, folder)
    try:
        fill(root, folder, {})
        shutil.copy2(root / "params.yaml", folder / "params.yaml")  # byte for byte, as the stage `code` has read it
        with contextlib.suppress(OSError):  # what was read in files of Python (stages/fingerprint/memo.py)
            memo = Path(".dvc/tmp/millrace/code/modules.json")
            (folder / memo).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / memo, folder / memo)
        yield folder
    finally:
        remove(root, folder)


def dead_copies(root: Path) -> list[Path]:
    """The temporary copies of experiments that were killed: those in which no process works, and none has just begun
    to."""
    begun = time.time() - SECONDS_TO_BEGIN
    alive = {place for process in psutil.process_iter() if (place := _working_folder(process))}
    return [
        folder
        for folder in temporary_copies(root)
        if folder.stat().st_mtime < begun and not any(place.is_relative_to(folder) for place in alive)
    ]


def temporary_copies(root: Path) -> list[Path]:
    """The copies in which `dvc exp run --temp` and queued experiments work."""
    base = root / ".dvc" / "tmp" / "exps"
    return [path for place in (base, base / "standalone") if place.is_dir() for path in place.glob("tmp*")]


def _working_folder(process: psutil.Process) -> Path | None:
    with contextlib.suppress(psutil.Error, OSError):
        return Path(process.cwd())
    return None
