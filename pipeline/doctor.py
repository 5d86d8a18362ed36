"""Looks at the machine and says what would go wrong, each finding with its mend, for `millrace doctor`.

A check returns one `Finding`: fine, a warning (it works, but worse), or a failure (it will not work).
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline import dvc_program, links
from stages.errors import BadInput

if TYPE_CHECKING:
    from stages.execution import Execution

LEAST_FREE_GB, ENOUGH_FREE_GB = 2, 10
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "afs", "lustre", "gpfs")
# The name of the language, the variable that names a compiler, the commands to look for, and the ending of sources.
C = ("C", "CC", ("cc", "gcc", "clang"), "c")
C_PLUS_PLUS = ("C++", "CXX", ("c++", "g++", "clang++"), "cpp")
PROBES = {
    "c": "#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n",
    "cpp": "#include <vector>\nint main() { return std::vector<int>().size(); }\n",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found, and how to mend it unless it is fine."""

    check: str
    level: Literal["ok", "warning", "failure"]
    found: str
    mend: str = ""


def examine(root: Path) -> Iterator[Finding]:
    """Runs every check, one after the other."""
    for check in CHECKS:
        yield check(root)


def python(root: Path) -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    wanted = _project(root).get("requires-python", "")
    from packaging.specifiers import SpecifierSet

    if platform.python_version() not in SpecifierSet(wanted):
        return Finding("python", "failure", found, f"install Python {wanted}, remove .venv, run `make setup`")
    return Finding("python", "ok", found)


def packages(root: Path) -> Finding:
    """The installed versions against the ranges of pyproject.toml and the pins of constraints.txt."""
    from packaging.requirements import Requirement

    lines = list(_project(root).get("dependencies", []))
    pins = root / "constraints.txt"
    lines += [line for line in pins.read_text().splitlines() if line.strip()] if pins.exists() else []
    wrong, checked = [], 0
    for line in lines:
        if line.startswith("#"):
            continue
        wanted = Requirement(line.partition(" #")[0])
        checked += 1
        try:
            installed = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(installed, prereleases=True):
            wrong.append(f"{wanted.name} is {installed}, wanted {wanted.specifier}")
    if wrong:
        return Finding("packages", "failure", "; ".join(wrong), "run `make setup`")
    return Finding("packages", "ok", f"{checked} ranges and pins hold")


def devices(root: Path) -> Finding:
    """torch, and whether the device of params.yaml is there."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "failure", str(error).split("\n")[0], "run `make setup`")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    found = f"torch {torch.__version__}, {torch.get_num_threads()} threads, {', '.join(names) or 'no GPU'}"
    execution = _execution(root)
    if execution is not None and execution.device == "cuda" and not torch.cuda.is_available():
        mend = "set execution.device: auto, or install the driver and the CUDA build of torch"
        return Finding("torch", "failure", f"{found}; execution.device is cuda", mend)
    return Finding("torch", "ok", found)


def compiler(root: Path) -> Finding:
    """Compiles one line of what torch.compile writes: C beside its GPU kernels, C++ where it is on for a CPU."""
    execution = _execution(root)
    cxx = execution is not None and execution.compile is True and not _has_gpu(execution)
    language, variable, names, ending = C_PLUS_PLUS if cxx else C
    mend = f"install a {language} compiler (such as the package {names[1]}), or set execution.compile: false"
    command = os.environ.get(variable) or next(filter(shutil.which, names), "")
    if not command:
        return Finding("compiler", "warning", f"none of {', '.join(names)}; torch.compile needs one", mend)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / f"probe.{ending}"
        source.write_text(PROBES[ending])
        try:
            built = _run([*command.split(), str(source), "-o", str(source.with_suffix(""))], root)
        except OSError as error:
            return Finding("compiler", "warning", f"{command}: {error.strerror}", mend)
    if built.returncode:
        return Finding("compiler", "warning", f"{command}: {_first(built.stderr)}", mend)
    return Finding("compiler", "ok", _first(_run([*command.split(), "--version"], root).stdout))


def disk(root: Path) -> Finding:
    free = shutil.disk_usage(root).free / 1e9
    mend = "free some space: `millrace gc` shows what nothing needs any more, and frees it"
    found = f"{free:.0f} GB free"
    if free < ENOUGH_FREE_GB:
        return Finding("disk", "failure" if free < LEAST_FREE_GB else "warning", found, mend)
    return Finding("disk", "ok", found)


def file_system(root: Path) -> Finding:
    """The kind of file system, which decides whether locks and SQLite can be trusted."""
    kind = _file_system_of(root)
    if kind.startswith(NETWORK_FILE_SYSTEMS):
        mend = "put the repository on a local disk; locks and SQLite are not safe over a network"
        return Finding("file system", "warning", kind, mend)
    return Finding("file system", "ok", kind)


def databases(root: Path) -> Finding:
    """Where SQLite files lie: of DVC's experiments and state, and of MLflow. Over a network they get corrupted."""
    remote = []
    for what, place, mend in _database_places(root):
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if (kind := _file_system_of(there)).startswith(NETWORK_FILE_SYSTEMS):
            remote.append((f"{what} in {place} is on {kind}", mend))
    if remote:
        return Finding("databases", "warning", "; ".join(found for found, _ in remote), "; ".join(m for _, m in remote))
    return Finding("databases", "ok", "the SQLite files of DVC and MLflow are on local disks")


def _database_places(root: Path) -> Iterator[tuple[str, Path, str]]:
    local = "`dvc config --local core.site_cache_dir /local/folder`"
    yield "DVC's state", Path(dvc_program.dvc_setting(root, "core.site_cache_dir") or "/var/tmp/dvc"), local
    yield (
        "DVC's folder",
        root / ".dvc" / "tmp",
        "put the repository on a local disk, data stay linked to a cache anywhere",
    )
    if (execution := _execution(root)) is None or not execution.tracking:
        return
    from stages.entry import Job
    from stages.tracking import store_address

    address, _ = store_address(Job("train", root, execution))
    if address.startswith("sqlite:///"):
        mend = "set execution.tracking_uri to a server, or to sqlite:////local/folder/mlflow.db"
        yield "MLflow's store", Path(address.removeprefix("sqlite:///")).parent, mend


def link_type(root: Path) -> Finding:
    """How DVC puts files into the workspace, against what the file system can do."""
    try:
        cache = links.cache_folder(root)
        working = links.probe(cache if cache.exists() else root, root)
    except OSError as error:
        mend = "make the folder writable, or choose another: `dvc cache dir --local PATH`"
        return Finding("links", "failure", f"{error.filename}: {error.strerror}", mend)
    chosen = links.configured(root)
    found = f"cache.type {chosen or 'reflink,copy'}; works here: {', '.join(working) or 'copy'}"
    first = next((kind for kind in (chosen or "reflink,copy").split(",") if kind in ("copy", *working)), "copy")
    if first == "copy" and working:
        return Finding("links", "warning", f"{found}; every file of data/ takes its space twice", "run `make setup`")
    return Finding("links", "ok", found)


def git(root: Path) -> Finding:
    if not shutil.which("git"):
        return Finding("git", "failure", "not found", "install git")
    inside = _run(["git", "rev-parse", "--show-toplevel"], root)
    if inside.returncode:
        return Finding("git", "failure", _first(inside.stderr), "clone the repository with git; DVC works on commits")
    found = _first(_run(["git", "--version"], root).stdout)
    if _run(["git", "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT"], root).returncode:
        mend = '`git config --global user.name "Your Name"` and `git config --global user.email you@example.com`'
        return Finding("git", "warning", f"{found}; no user.name or user.email: experiments cannot be kept", mend)
    return Finding("git", "ok", found)


def dvc(root: Path) -> Finding:
    if at_work := dvc_program.at_work(root):
        working = ", ".join(f"`{command}` (process {process})" for process, command in at_work.items())
        mend = "look again when it has ended; to end it press Ctrl-C there, the same command goes on later"
        return Finding("dvc", "warning", f"busy, so dvc.yaml and the cache were not checked: {working}", mend)
    answer = dvc_program.dvc(root, "status", "--json")
    if answer.returncode:
        return Finding("dvc", "failure", _first(answer.stderr), "mend dvc.yaml; `dvc status` says more")
    return Finding("dvc", "ok", "dvc.yaml is valid, the cache can be read")


def params(root: Path) -> Finding:
    from pipeline.params_view import resolved

    try:
        return Finding("params", "ok", f"{len(resolved(root))} values are valid")
    except BadInput as error:
        return Finding("params", "failure", str(error), "correct the line")


CHECKS: tuple[Callable[[Path], Finding], ...] = (
    python, packages, devices, compiler, disk, file_system, databases, git, dvc, link_type, params,
)  # fmt: skip


def _project(root: Path) -> dict:
    try:
        return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise BadInput(f"{root / 'pyproject.toml'}: {error}; run this in the root of the repository") from None


def _execution(root: Path) -> Execution | None:
    from stages.execution import Execution
    from stages.params import ParamsFile

    try:
        return ParamsFile(root / "params.yaml").section("execution", Execution)
    except BadInput:
        return None  # the check of params says it


def _has_gpu(execution: Execution) -> bool:
    """Whether training takes one; false without torch, which its own check tells."""
    try:
        import torch
    except (ImportError, OSError):
        return False
    return execution.device != "cpu" and torch.cuda.is_available()


def _file_system_of(path: Path) -> str:
    """Its type as the kernel names it; `unknown` where there is no /proc."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    best, kind = "", "unknown"
    for line in mounts.read_text().splitlines():
        _, point, this = line.split(" ")[:3]
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), point)
        if path.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, this
    return kind


def _run(command: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def _first(text: str) -> str:
    return text.strip().split("\n")[0]
