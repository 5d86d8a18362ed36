"""Kills a small training with SIGKILL at random moments and compares what it ends with, byte by byte.

    python -m benchmarks.kills --kills 100

One run is left alone. Every other one is killed at a moment drawn between its start and the time that an
uninterrupted one takes, started again, killed again, and so on until it gets to its end; then its weights, optimizer
states, state, losses and metrics must be the bytes of the first. The moments are told by what lay in the scratch
folder: `saving` means that a checkpoint was half written. Processes are forked from one that has loaded torch, so
that a kill costs a second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import torch._dynamo  # which an optimizer loads, in seconds

from model.config import ModelConfig
from stages.checkpoint import checkpoints_in
from stages.entry import Job
from stages.execution import Execution
from stages.train import hooks, loop, stage  # noqa: F401  loop and hooks: loaded once, not by every child
from stages.train.params import TrainParams
from tests.stages.conftest import markov_documents, write_split

FILES = (
    "last/manifest.json", "last/model.safetensors", "last/optimizer.safetensors", "last/state.json",
    "best/manifest.json", "loss.csv", "metrics.json",
)  # fmt: skip
MODEL = ModelConfig(n_layers=2, hidden_size=64, n_heads=4, n_kv_heads=2, dropout=0.1)
TRAIN = TrainParams(max_steps=60, batch_tokens=256, warmup_steps=2, eval_interval=10, validation_tokens=256)


def job_in(root: Path) -> Job:
    execution = Execution(tracking=False, compile=False, device="cpu", threads=1, checkpoint_interval=4)
    return Job("train", root, execution, ("data/pack/train", "data/pack/validation"), {"model": MODEL, "train": TRAIN})


def start(root: Path) -> int:
    """The stage in a process of its own; its id."""
    if process := os.fork():
        return process
    try:
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):  # noqa: PTH123
            job = job_in(root)
            job.prepare()
            stage.run(job, MODEL, TRAIN)
            job.publish()
    except BaseException as error:
        print(f"{root}: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def wait(process: int, seconds: float) -> int | None:
    """The exit code of the process, or None if it still runs after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def moment(root: Path) -> str:
    """Where a run stood when it was killed."""
    folder = next((path for path in (root / ".dvc/tmp/millrace/train").glob("*") if path.is_dir()), None)
    if folder is None or not checkpoints_in(folder):
        return "before the first checkpoint"
    if any(folder.glob("*.partial")):
        return "saving"
    return "publishing" if (folder / "metrics.json").exists() else "training"


def workspace(base: Path, name: str) -> Path:
    root = base / name
    (root / "data").mkdir(parents=True)
    (root / "data/pack").symlink_to(base / "data/pack")
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {name: (root / "data/train" / name).read_bytes() for name in FILES}


def kill_until_the_end(root: Path, longest: float, draw: random.Random, left: int) -> list[str]:
    """Runs the stage in `root` to its end through at most `left` kills; the moments of those that hit it."""
    moments: list[str] = []
    while True:
        process = start(root)
        code = wait(process, draw.uniform(0, longest) if len(moments) < left else 600)
        if code is not None:
            if code:
                raise SystemExit(f"{root}: a resumed run ended with exit code {code}")
            return moments
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        moments.append(moment(root))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw, found, different, runs = random.Random(arguments.seed), Counter[str](), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        write_split(base, "train", markov_documents(300, seed=0))
        write_split(base, "validation", markov_documents(40, seed=1))
        alone = workspace(base, "alone")
        started = time.monotonic()
        assert wait(start(alone), 600) == 0, "the uninterrupted run failed"
        longest, expected = time.monotonic() - started, contents(alone)
        while found.total() < arguments.kills:
            root = workspace(base, f"run-{runs}")
            found.update(kill_until_the_end(root, longest, draw, arguments.kills - found.total()))
            runs += 1
            if wrong := [name for name, content in contents(root).items() if content != expected[name]]:
                different += 1
                print(f"run {runs}: other bytes in {', '.join(wrong)}")
            shutil.rmtree(root)
    for name, count in found.most_common():
        print(f"{count:5}  {name}")
    print(
        f"{found.total()} kills in {runs} runs of {longest:.1f} s; {runs - different} of {runs} ended with equal bytes"
    )
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
