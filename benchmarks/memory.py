"""Peak memory, CPU and time of every data stage on corpora of growing size, and how memory grows.

    python -m benchmarks.memory --gb 0.1 1 4 --workers 2 --corpora /tmp/corpora --out memory.json
    python -m benchmarks.memory --gb 1 4 --workspaces /tmp/workspaces --stages dedup    # one stage again

For each size benchmarks.make_corpus writes a corpus (kept in `--corpora`), and download, clean, dedup,
tokenizer and pack run as they do in a pipeline: one after the other, as processes, in a workspace of their
own, with the default params but for the source. While a stage runs, /proc is read ten times a second for
the whole tree of its processes. `memory` is the highest sum of their proportional set sizes (PSS: a page
that two processes share counts half in each); `own` is the part of it that is not pages of files. `step` is
what the stage was doing at its peak: the next line of its log.

With `--workspaces` the workspaces stay, and `--stages` runs some stages again on what earlier ones have left.
A stage starts without its scratch, so that it does all of its work.

A disk needs about eight times the largest size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STAGES = ("download", "clean", "dedup", "tokenizer", "pack")
INTERVAL = 0.1
LINKED = ("model", "stages")
COPIED = ("params.yaml", "dvc.yaml", "constraints.txt")


class Measured(NamedTuple):
    """A stage on a corpus; sizes in bytes."""

    gb: float
    stage: str
    memory: int
    own: int
    step: str
    processes: int
    cpu_seconds: float
    wall_seconds: float


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """PSS of a process, and the part of it that is not pages of files."""
    values = {}
    try:
        for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value = line.split()[:2]
            values[name] = int(value) << 10
    except (OSError, ValueError):
        return 0, 0  # it has ended
    return values.get("Pss:", 0), values.get("Pss_Anon:", 0) + values.get("Pss_Shmem:", 0)


def tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def measured(gb: float, stage: str, workspace: Path) -> Measured:
    """Runs a stage and looks at its processes until it ends."""
    environment = {**os.environ, "PYTHONPATH": str(workspace)}
    log = workspace / f"{stage}.log"
    started = time.monotonic()
    with log.open("w") as output:
        command = [sys.executable, "-m", f"stages.{stage}"]
        program = subprocess.Popen(command, cwd=workspace, env=environment, stdout=output, stderr=subprocess.STDOUT)
    process = psutil.Process(program.pid)
    memory = own = processes = lines = 0
    while True:
        ended, status, usage = os.wait4(program.pid, os.WNOHANG)
        if ended:
            break
        sizes = [memory_of(each) for each in tree(process)]
        if (now := sum(size[0] for size in sizes)) > memory:
            memory, lines = now, len(log.read_text().splitlines())
        own = max(own, sum(size[1] for size in sizes))
        processes = max(processes, len(sizes))
        time.sleep(INTERVAL)
    program.returncode = os.waitstatus_to_exitcode(status)
    if program.returncode:
        sys.exit(f"{stage} at {gb} GB ended with {program.returncode}:\n{log.read_text()[-3000:]}")
    step = " ".join(log.read_text().splitlines()[lines : lines + 1]).removeprefix(f"{stage}: ")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Measured(gb, stage, memory, own, step, processes, cpu_seconds, time.monotonic() - started)


def make_corpus(gb: float, corpora: Path) -> Path:
    """The corpus of this size; one that was made before is taken as it is."""
    out = corpora / f"{gb:g}gb"
    if not (out / "manifest.json").exists():
        command = [sys.executable, "-m", "benchmarks.make_corpus", "--bytes", str(int(gb * 1e9)), "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True)
    return out


def make_workspace(folder: Path, corpus: Path) -> None:
    """The project's code, and params that read the corpus as a user's files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    for name in COPIED:
        shutil.copy(ROOT / name, folder)
    inputs = folder / "inputs"
    inputs.mkdir()
    for path in (corpus / "documents").iterdir():
        (inputs / path.name).symlink_to(path.resolve())
    set_params(folder / "params.yaml", {"download.source": "files"})


def set_params(path: Path, settings: dict[str, Any]) -> None:
    yaml = YAML()
    params = yaml.load(path.read_text(encoding="utf-8"))
    for key, value in settings.items():
        section, _, name = key.partition(".")
        params[section][name] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def run_size(gb: float, corpus: Path, workspace: Path, arguments: argparse.Namespace) -> list[Measured]:
    """Runs the stages in a workspace that may hold outputs of an earlier run."""
    if not (workspace / "inputs").exists():
        make_workspace(workspace, corpus)
    set_params(workspace / "params.yaml", {"execution.workers": arguments.workers, **arguments.settings})
    measured(gb, "code", workspace)
    found = []
    for stage in arguments.stages:
        shutil.rmtree(workspace / ".dvc" / "tmp" / "millrace" / stage, ignore_errors=True)
        each = measured(gb, stage, workspace)
        told = f"{each.memory / 1e6:,.0f} MB ({each.own / 1e6:,.0f} own), {each.cpu_seconds:,.1f} CPU s"
        print(f"  {gb:g} GB {stage}: {told}; {each.step}", flush=True)
        found.append(each)
    return found


def report(found: list[Measured]) -> str:
    sizes = sorted({each.gb for each in found})
    of = {(each.gb, each.stage): each for each in found}
    heads = " | ".join(f"{gb:g} GB: memory (own), MB | CPU s | wall s" for gb in sizes)
    lines = [f"| stage | {heads} | growth of memory |", "|---" * (2 + 3 * len(sizes)) + "|"]
    for stage in dict.fromkeys(each.stage for each in found):
        cells = []
        for gb in sizes:
            each = of[gb, stage]
            seconds = f"{each.cpu_seconds:,.1f} | {each.wall_seconds:,.1f}"
            cells.append(f"{each.memory / 1e6:,.0f} ({each.own / 1e6:,.0f}) | {seconds}")
        growth = []
        for low, high in itertools.pairwise(sizes):
            growth.append(f"{low:g} to {high:g}: {of[high, stage].memory / of[low, stage].memory - 1:+.0%}")
        lines.append(f"| {stage} | " + " | ".join(cells) + f" | {', '.join(growth) or '-'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, nargs="+", default=[0.1, 1, 4], help="sizes of the corpora, GB of text")
    parser.add_argument("--workers", type=int, default=2, help="execution.workers")
    parser.add_argument("--corpora", type=Path, default=Path(tempfile.gettempdir()) / "corpora", help="where they stay")
    parser.add_argument("--workspaces", type=Path, help="a folder for the workspaces, which then stay")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="on what others have left there")
    parser.add_argument("-S", "--set", action="append", default=[], metavar="KEY=VALUE", help="a param, repeatable")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    arguments.settings = {}
    for setting in arguments.set:
        key, _, value = setting.partition("=")
        arguments.settings[key] = YAML(typ="safe").load(value)
    found = []
    for gb in sorted(arguments.gb):
        corpus = make_corpus(gb, arguments.corpora)
        with tempfile.TemporaryDirectory(prefix="millrace-memory-") as temporary:
            found += run_size(gb, corpus, (arguments.workspaces or Path(temporary)) / f"{gb:g}gb", arguments)
    print(report(found))
    if arguments.out:
        arguments.out.write_text(json.dumps([each._asdict() for each in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
