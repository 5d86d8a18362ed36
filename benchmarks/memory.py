"""Peak memory, CPU and time of every data stage on corpora of growing size, and how memory grows.

    python -m benchmarks.memory --gb 0.1 1 4 --workers 2 --corpora /tmp/corpora --out memory.json

For each size benchmarks.make_corpus writes a corpus (kept in `--corpora`), and download, clean, dedup,
tokenizer and pack run as they do in a pipeline: one after the other, as processes, in a workspace of their
own, with the default params but for the source. While a stage runs, /proc is read ten times a second for
the whole tree of its processes. `memory` is the highest sum of their proportional set sizes (PSS: a page
that two processes share counts half in each); `own` is the part of it that is not pages of files.

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
    memory = own = processes = 0
    while True:
        ended, status, usage = os.wait4(program.pid, os.WNOHANG)
        if ended:
            break
        sizes = [memory_of(each) for each in tree(process)]
        memory = max(memory, sum(size[0] for size in sizes))
        own = max(own, sum(size[1] for size in sizes))
        processes = max(processes, len(sizes))
        time.sleep(INTERVAL)
    program.returncode = os.waitstatus_to_exitcode(status)
    if program.returncode:
        sys.exit(f"{stage} at {gb} GB ended with {program.returncode}:\n{log.read_text()[-3000:]}")
    return Measured(gb, stage, memory, own, processes, usage.ru_utime + usage.ru_stime, time.monotonic() - started)


def make_corpus(gb: float, corpora: Path) -> Path:
    """The corpus of this size; one that was made before is taken as it is."""
    out = corpora / f"{gb:g}gb"
    if not (out / "manifest.json").exists():
        command = [sys.executable, "-m", "benchmarks.make_corpus", "--bytes", str(int(gb * 1e9)), "--out", str(out)]
        subprocess.run(command, cwd=ROOT, check=True)
    return out


def make_workspace(folder: Path, corpus: Path, settings: dict[str, Any]) -> None:
    """The project's code, and params that read the corpus as a user's files."""
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    for name in COPIED:
        shutil.copy(ROOT / name, folder)
    inputs = folder / "inputs"
    inputs.mkdir()
    for path in (corpus / "documents").iterdir():
        (inputs / path.name).symlink_to(path.resolve())
    yaml = YAML()
    params = yaml.load((folder / "params.yaml").read_text(encoding="utf-8"))
    params["download"]["source"] = "files"
    for key, value in settings.items():
        section, _, name = key.partition(".")
        params[section][name] = value
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(params, file)


def run_size(gb: float, corpora: Path, scratch: Path, settings: dict[str, Any]) -> list[Measured]:
    corpus = make_corpus(gb, corpora)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="millrace-memory-") as temporary:
        workspace = Path(temporary)
        make_workspace(workspace, corpus, settings)
        measured(gb, "code", workspace)
        found = []
        for stage in STAGES:
            each = measured(gb, stage, workspace)
            print(f"  {gb:g} GB {stage}: {each.memory / 1e6:,.0f} MB, {each.cpu_seconds:,.1f} CPU s", flush=True)
            found.append(each)
        return found


def report(found: list[Measured]) -> str:
    sizes = sorted({each.gb for each in found})
    of = {(each.gb, each.stage): each for each in found}
    heads = " | ".join(f"{gb:g} GB: memory (own), MB | CPU s | wall s" for gb in sizes)
    lines = [f"| stage | {heads} | growth of memory |", "|---" * (2 + 3 * len(sizes)) + "|"]
    for stage in STAGES:
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
    parser.add_argument("--scratch", type=Path, help="a folder on a disk with room for the workspaces")
    parser.add_argument("-S", "--set", action="append", default=[], metavar="KEY=VALUE", help="a param, repeatable")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    settings = {"execution.workers": arguments.workers}
    for setting in arguments.set:
        key, _, value = setting.partition("=")
        settings[key] = YAML(typ="safe").load(value)
    found = []
    for gb in sorted(arguments.gb):
        found += run_size(gb, arguments.corpora, arguments.scratch or Path(tempfile.gettempdir()), settings)
    print(report(found))
    if arguments.out:
        arguments.out.write_text(json.dumps([each._asdict() for each in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
