"""A rank of several is killed with SIGKILL in mid-run, and the same command goes on: the losses must be those of a run
that nobody touched. Used by `python -m benchmarks.scaling --kill`.

On CPUs they are the same bits. On GPUs the sums of a step may be taken in another order from run to run (atomic
additions in the gradient of an embedding), so the largest difference is printed, beside that of two runs that
nobody touched.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from model.config import ModelConfig
from stages.checkpoint import checkpoints_in
from stages.entry import Job
from stages.errors import Failed
from stages.execution import Execution
from stages.train import stage
from stages.train.params import TrainParams
from tests.stages.conftest import markov_documents, write_split

STEPS, SAVED = 240, 40  # steps in all, and between checkpoints


def job_in(root: Path, ranks: int, on_gpus: bool, sharding: str) -> Job:
    execution = Execution(
        tracking=False, compile=False, device="cuda" if on_gpus else "cpu", threads=0 if on_gpus else 1,
        n_processes=ranks, sharding=sharding, checkpoint_interval=SAVED, log_interval=1,
    )  # fmt: skip
    model = ModelConfig(n_layers=4, hidden_size=768 if on_gpus else 64, n_heads=12 if on_gpus else 4)
    train = TrainParams(
        max_steps=STEPS, batch_tokens=4096 if on_gpus else 256, warmup_steps=2, eval_interval=30,
        validation_tokens=256, precision="bf16" if on_gpus else "fp32",
    )  # fmt: skip
    return Job("train", root, execution, ("data/pack/train", "data/pack/validation"), {"model": model, "train": train})


def run(root: Path, ranks: int, on_gpus: bool, sharding: str) -> None:
    """The stage in this process, which starts its ranks."""
    job = job_in(root, ranks, on_gpus, sharding)
    job.prepare()
    try:
        stage.run(job, job.sections["model"], job.sections["train"])  # type: ignore[arg-type]
    except Failed as error:
        sys.exit(f"{error}")
    job.publish()


def losses(root: Path) -> dict[int, str]:
    with (root / "data/train/loss.csv").open() as file:
        return {int(row["step"]): row["loss"] for row in csv.DictReader(file) if row["loss"]}


def start(root: Path, ranks: int, on_gpus: bool, sharding: str) -> subprocess.Popen:
    words = [str(root), str(ranks), str(int(on_gpus)), sharding]
    return subprocess.Popen([sys.executable, "-m", "benchmarks.killed_rank", *words], stdout=subprocess.DEVNULL)


def ranks_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that train, behind the stage and torchrun."""
    found = psutil.Process(process.pid).children(recursive=True)
    return sorted(
        (child for child in found if "RANK" in child.environ()), key=lambda child: int(child.environ()["RANK"])
    )


def kill_a_rank(base: Path, ranks: int, on_gpus: bool, sharding: str) -> None:
    """Prints what came of it. `sharding` as in params: with `full`, every rank saves a part of each checkpoint.

    Raises:
        SystemExit: a run failed that should not, losses are missing, or differ on CPUs.
    """
    base.mkdir()
    write_split(base, "train", markov_documents(300, seed=0))
    write_split(base, "validation", markov_documents(40, seed=1))
    roots = []
    for name in ("killed", "alone", *(["again"] if on_gpus else [])):
        roots.append(base / name)
        (roots[-1] / "data").mkdir(parents=True)
        (roots[-1] / "data/pack").symlink_to(base / "data/pack")
    for root in roots[1:]:
        if start(root, ranks, on_gpus, sharding).wait():
            raise SystemExit("benchmarks.scaling: an untouched run failed; the reason stands above")
    process = start(roots[0], ranks, on_gpus, sharding)
    scratch = roots[0] / ".dvc/tmp/millrace/train"
    while not any(checkpoints_in(folder) for folder in scratch.glob("*") if folder.is_dir()):
        if process.poll() is not None:
            raise SystemExit(f"benchmarks.scaling: the run ended with {process.returncode} before a checkpoint")
        time.sleep(0.01)
    victim = ranks_of(process)[-1]
    os.kill(victim.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    code = process.wait()
    seconds = time.monotonic() - killed_at
    print(f"sharding {sharding}: the last of {ranks} ranks killed; the stage ended {seconds:.1f} s later with {code}")
    if code == 0:
        raise SystemExit("benchmarks.scaling: the kill came too late")
    if start(roots[0], ranks, on_gpus, sharding).wait():
        raise SystemExit("benchmarks.scaling: the same command did not go on; the reason stands above")
    found, expected, *twice = map(losses, roots)
    print(f"{len(found)} losses; largest difference from the untouched run: {apart(expected, found)}")
    for again in twice:
        print(f"of two untouched runs: {apart(expected, again)}")
    if found.keys() != expected.keys():
        raise SystemExit("benchmarks.scaling: steps are missing or twice")
    if not on_gpus and found != expected:
        raise SystemExit("benchmarks.scaling: losses differ")


def apart(one: dict[int, str], other: dict[int, str]) -> float:
    return max(abs(float(one[step]) - float(other[step])) for step in one.keys() & other.keys())


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), bool(int(sys.argv[3])), sys.argv[4])
