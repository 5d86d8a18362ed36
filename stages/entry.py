"""What every stage does around its own work, so that its `__main__.py` is three lines.

A stage is a function. Its signature says what it reads: the parameter `clean: CleanParams` is the
section `clean` of params.yaml, and dvc.yaml must list exactly those sections.

    def run(job: Job, clean: CleanParams, split: SplitParams) -> None: ...

`main(run)` validates the sections, calls `run`, and publishes what it left in `job.staging`: every
file is synced and renamed into data/STAGE, manifests and metrics last. So an output is whole or it
is absent, and of the params that DVC will read (stages/edited.py). What must survive a kill goes to
`job.scratch()`, a locked folder named by a digest of params, inputs and code: the same digest goes on,
another starts fresh.

Exit codes: 0 done, 1 failed, 2 bad params or input, 130 stopped by a signal and resumable.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from ruamel.yaml import YAML

from stages.dvc_cache import way_back
from stages.edited import refuse_edited
from stages.errors import BadInput, Failed, Stopped
from stages.execution import Execution
from stages.files import content_hash, sync
from stages.locks import exclusive, locked
from stages.params import ParamsFile, Section
from stages.signals import die_with_parent, signals
from stages.store import trim

MANIFESTS_LAST = ("index.json", "manifest.json", "metrics.json")
PUBLISHED = "published"  # marks a scratch folder whose work is an output


@dataclasses.dataclass
class Job:
    """One run of one stage in one workspace.

    Attributes:
        stage: its name, as in dvc.yaml.
        root: the workspace: the folder that holds params.yaml and data.
        execution: where and how fast; never what.
        inputs: paths, relative to root, whose content names the scratch folder.
        sections: the sections of params that the stage reads, by name.
        params: the file as it was when they were read; None where there is none.
    """

    stage: str
    root: Path
    execution: Execution = dataclasses.field(default_factory=Execution)
    inputs: tuple[str, ...] = ()
    sections: dict[str, Any] = dataclasses.field(default_factory=dict)
    params: ParamsFile | None = None
    worked_in: list[Path] = dataclasses.field(default_factory=list, init=False)

    @property
    def staging(self) -> Path:
        """Where the stage writes what `publish` will rename into data/STAGE."""
        return self.root / "data" / f"{self.stage}.partial"

    @property
    def out(self) -> Path:
        return self.root / "data" / self.stage

    def prepare(self) -> None:
        """An empty staging folder; what a killed run left there is thrown away."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)

    def publish(self) -> None:
        """Renames everything in staging into data/STAGE, synced.

        Old manifests go first and new ones come last: none ever stands beside files it does not describe.

        Raises:
            Failed: params.yaml does not say any more what this was made with.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.staging.rglob("*")):
            if path.is_file():
                sync(path)
        if self.params:
            whole_file = "params.yaml" in self.inputs
            sections = None if whole_file else self.sections
            refuse_edited(self.params.path, self.params.values, sections, kept=bool(self.worked_in))
        for name in MANIFESTS_LAST:
            (self.out / name).unlink(missing_ok=True)
        for path in sorted(self.staging.iterdir(), key=lambda p: (p.name in MANIFESTS_LAST, p.name)):
            target = self.out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            path.replace(target)
        self.staging.rmdir()
        sync(self.out)
        for folder in self.worked_in:
            with contextlib.suppress(FileNotFoundError):
                (folder / PUBLISHED).touch()

    @property
    def store(self) -> Path:
        """Where finished tasks stay (stages/tasks.py)."""
        return self.scratch_base / "tasks"

    def key(self, *parts: object) -> str:
        """Names a task's result: a hash of the stage's code and of whatever else decides its bytes.

        Args:
            parts: what JSON can say, and sections of params.
        """
        code = self.root / "data" / "code" / f"{self.stage}.json"
        described = [content_hash(code) if code.is_file() else "", *(_described(part) for part in parts)]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]

    @contextlib.contextmanager
    def store_in_use(self) -> Iterator[None]:
        """Within this block no other process removes results from the store; after it, if nobody else is in one,
        what was used longest ago goes until the rest fits into `execution.scratch_gb`."""
        self.store.mkdir(parents=True, exist_ok=True)
        with self.store.with_name("tasks.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                trim(self.store, self.execution.scratch_gb * 1e9)

    @property
    def scratch_base(self) -> Path:
        """Where the unfinished work of this stage lies, one folder a digest."""
        return Path(self.execution.scratch or scratch_root(self.root)) / self.stage

    def digest(self) -> str:
        """Names the work: params, content of inputs, and the fingerprint of the code."""
        described = {
            "stage": self.stage,
            "params": {name: plain(section) for name, section in sorted(self.sections.items())},
            "inputs": {path: content_hash(self.root / path) for path in sorted(self.inputs)},
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

    @contextlib.contextmanager
    def scratch(self, keep_published: bool = False) -> Iterator[Path]:
        """The scratch folder of this digest, locked against every other process that works in it.

        Published folders of other digests are removed, unless another process works in them, or with `keep_published`.
        Others stay, so that a param that is changed back goes on where it stopped.
        """
        base = self.scratch_base
        base.mkdir(parents=True, exist_ok=True)
        folder = base / self.digest()
        with locked(base / f"{folder.name}.lock"):
            for marker in () if keep_published else base.glob(f"*/{PUBLISHED}"):
                if marker.parent != folder:
                    with exclusive(marker.parent) as free:
                        if free:
                            shutil.rmtree(marker.parent, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            self.worked_in.append(folder)
            yield folder


def main(run: Callable[..., None], publishes: bool = True) -> None:
    """Runs a stage as a program and exits with its code.

    Args:
        publishes: False for a process that works for another one, which holds the locks and publishes.
    """
    stage = run.__module__.split(".")[1]
    job: Job | None = None
    try:
        signals.install()
        if os.environ.get("DVC_STAGE"):
            die_with_parent()
        # Threads of torch that wait for each other spin for milliseconds by default, which on cores that
        # other programs use as well made training three times slower. Read when torch is loaded.
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
        job = prepare_job(stage, run, Path.cwd())
        refuse_other_code(job)
        if not publishes:
            run(job, **job.sections)
            return
        with locked(job.root / "data" / f".{stage}.lock"), job.store_in_use():
            job.prepare()
            run(job, **job.sections)
            with signals.wait():
                job.publish()
    except BadInput as error:
        sys.exit(_complain(stage, str(error), 2))
    except Failed as error:
        sys.exit(_complain(stage, f"{error}{way_back(Path.cwd(), stage)}", 1))
    except Stopped as stopped:
        sys.exit(_complain(stage, f"stopped by {stopped}; the same command goes on from here", 130))
    except OSError as error:
        if error.errno != errno.ENOSPC and error.filename is None:
            raise  # says too little without its traceback
        scratch = job.execution.scratch if job else ""
        sys.exit(_complain(stage, file_problem(error, scratch) + way_back(Path.cwd(), stage), 1))


def file_problem(error: OSError, scratch: str) -> str:
    """One line for what the system refused: a full disk with its mend, else the path and the reason."""
    if error.errno == errno.ENOSPC:
        free = f"{free_gb(Path.cwd()):.1f} GB free here"
        if scratch:
            free += f", {free_gb(Path(scratch)):.1f} in {scratch}"
        return (
            f"the disk is full ({free}) while writing {error.filename or 'an output'}; free some "
            "space (`dvc gc --all-commits --all-experiments` drops what no commit and no experiment needs), or point "
            "execution.scratch at another disk"
        )
    path = os.fsdecode(error.filename)
    if scratch and Path(path).is_relative_to(scratch):
        return f"execution.scratch: {path}: {error.strerror}; name a folder that can be written"
    return f"{path}: {error.strerror}"


def free_gb(folder: Path) -> float:
    """Of the disk that holds a folder, which may not be there yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def prepare_job(stage: str, run: Callable[..., None], root: Path) -> Job:
    """Reads params.yaml and dvc.yaml for the stage whose function is `run`."""
    params = ParamsFile(root / "params.yaml")
    schemas = section_schemas(run)
    sections = {name: params.section(name, schema) for name, schema in schemas.items()}
    graph = YAML(typ="safe").load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    if sorted(graph[stage].get("params", [])) != sorted(schemas):
        raise BadInput(f"dvc.yaml: stages.{stage}.params must be {sorted(schemas)}, the sections that its code reads")
    inputs = []
    for dependency in graph[stage].get("deps", []):
        if "${" in dependency:
            section, key = dependency.strip("${}").split(".")
            dependency = str(params.values[section][key])
        if not (root / dependency).exists():
            raise BadInput(
                f"{dependency}: not there; `dvc repro {stage}` makes what stages make, the rest is yours to put there"
            )
        inputs.append(dependency)
    execution = params.section("execution", Execution)
    return Job(stage, root, execution, tuple(inputs), sections, params)


def refuse_other_code(job: Job) -> None:
    """Raises BadInput if code of this stage was edited after `code` took its fingerprint, which names the result."""
    from stages.fingerprint.current import changed_modules

    if changed := changed_modules(job.root, job.stage):
        more = f" and {len(changed) - 1} more" if changed[1:] else ""
        raise BadInput(
            f"{changed[0]}{more}: edited since the stage code has looked; run `dvc repro --force --single-item code`, "
            "then the same command"
        )


def section_schemas(run: Callable[..., None]) -> dict[str, type]:
    """The sections a stage reads, from the annotations of its function."""
    annotations = inspect.get_annotations(run, eval_str=True)
    return {name: schema for name, schema in annotations.items() if name not in ("job", "return")}


def _described(part: object) -> Any:
    return plain(part) if isinstance(part, Section) else part


def plain(section: Any) -> Any:
    """A section as JSON values."""
    return TypeAdapter(type(section)).dump_python(section, mode="json")


def scratch_root(root: Path) -> Path:
    """Inside the main repository, also when DVC runs the stage in a temporary copy of it."""
    return Path(os.environ.get("DVC_ROOT") or root) / ".dvc" / "tmp" / "millrace"


def _complain(stage: str, message: str, code: int) -> int:
    print(f"millrace: {stage}: {message}", file=sys.stderr, flush=True)
    return code
