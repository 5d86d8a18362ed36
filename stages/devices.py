"""One stage per GPU: whoever computes on a GPU holds the lock of it.

An ablation runs several experiments at a time, somebody starts `dvc repro` beside, a flow wants to evaluate. Each
takes the locks of as many GPUs as it uses, sees no others (CUDA_VISIBLE_DEVICES), and gives them back when it ends,
also by kill -9, since the lock goes with the process.

    CUDA_VISIBLE_DEVICES=2,3, one process trains on 2:   .dvc/tmp/millrace/devices/HOST/2.lock is held
    the next one that needs one GPU gets 3, and one more waits for the first that is free

Who waits stands in a line, so that a stage that needs eight GPUs is not passed by all that need one. The locks lie
in scratch, in a folder for each host, since several may share one scratch, and GPU 0 of one is not that of another.
They hold for one repository, its worktrees and its experiments. Without GPUs nothing is locked, and where torchrun or
Slurm started the processes (execution.launcher), these have shared them out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from stages.entry import Job
from stages.progress import say

VISIBLE = "CUDA_VISIBLE_DEVICES"
SECONDS_BETWEEN = 0.5


@contextlib.contextmanager
def own_gpus(job: Job, count: int = 1) -> Iterator[list[str]]:
    """Holds `count` GPUs, or all where there are fewer, and makes them the visible ones. Call it before torch has
    looked at GPUs, which it does once a process. Yields their names; none where the stage does not use GPUs."""
    devices = [] if job.execution.device == "cpu" else visible_devices()
    if not devices or job.execution.launcher == "environment":
        yield []
        return
    with contextlib.ExitStack() as held:
        taken = _take(job, devices, min(count, len(devices)), held)
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = ",".join(taken)
        try:
            yield taken
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def visible_devices() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them; torch is not asked,
    since what is visible then could no longer be changed."""
    if (listed := os.environ.get(VISIBLE)) is not None:
        names = [name.strip() for name in listed.split(",")]
        # CUDA reads the list up to the first name that is none
        end = next((place for place, name in enumerate(names) if name in ("", "-1")), len(names))
        return names[:end]
    nodes = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [str(number) for number in range(len(nodes) or _told_by_driver())]


def _told_by_driver() -> int:
    """The GPUs where the driver makes no such nodes, as in WSL."""
    try:
        command = ["nvidia-smi", "--list-gpus"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines()) if answer.returncode == 0 else 0


def _take(job: Job, devices: list[str], count: int, held: contextlib.ExitStack) -> list[str]:
    """Locks `count` of the devices, waiting for as long as that takes; the one whose turn it is keeps what it has."""
    folder = job.scratch_base.parent / "devices" / socket.gethostname()
    folder.mkdir(parents=True, exist_ok=True)
    me = f"{job.stage} of {os.environ.get('DVC_EXP_NAME') or 'the workspace'} (process {os.getpid()})"
    told = False
    taken: list[str] = []
    with (folder / "line.lock").open("a") as line:
        while True:
            if _lock(line):
                for device in devices:
                    if len(taken) < count and device not in taken and (file := _locked(folder / f"{device}.lock", me)):
                        held.enter_context(file)
                        taken.append(device)
                if len(taken) == count:
                    return sorted(taken, key=devices.index)
            if not told:
                holders = [holder for device in devices if (holder := _holder(folder / f"{device}.lock"))]
                say(f"{job.stage}: waits for {count} of {len(devices)} GPUs, held by {'; '.join(holders) or 'others'}")
                told = True
            time.sleep(SECONDS_BETWEEN)


def _locked(path: Path, me: str) -> IO[str] | None:
    file = path.open("a+")
    if not _lock(file):
        file.close()
        return None
    file.truncate(0)
    file.write(me)
    file.flush()
    return file


def _lock(file: IO[str]) -> bool:
    """Whether this open file has the lock now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(path: Path) -> str:
    """Who wrote himself into the lock last, where it is held."""
    with contextlib.suppress(OSError), path.open() as file:
        if not _lock(file):
            return file.read()
    return ""
