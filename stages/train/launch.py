"""Starts several training processes on this machine through torchrun and waits for them.

Signals are passed on: every rank finishes its step, the first one saves, all of them end. If this
process is killed, Linux sends torchrun SIGTERM, so no rank is left behind; the next launch waits until
they have saved and ended, for they hold the GPUs, and write where it would read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from stages.entry import Job
from stages.errors import BadInput, Failed, Stopped
from stages.execution import n_cores
from stages.locks import locked
from stages.signals import die_with_parent, signals
from stages.train.elastic import ENDS, LOG
from stages.train.worker import OUTCOMES, RANKS, STOPPED, describe

# that torchrun gives its ranks after a signal before it kills them; by itself it waits for 30
SECONDS_TO_SAVE = 120
# torchrun's SIGTERM, or a rank that saved at it; torch itself aborts one that misses another, so SIGABRT comes last
ENDED_BY_OTHERS = (0, STOPPED, -signal.SIGTERM)
BY_WHOM = ", from outside: by hand, or by the kernel, where memory is short"


def launch(job: Job, folder: Path) -> None:
    """Trains with `execution.n_processes` ranks.

    Raises:
        Stopped: a signal ended them.
        BadInput, Failed: what a rank ended with.
    """
    with locked(folder / RANKS):
        pass
    described = folder / "job.json"
    described.write_text(describe(job, folder), encoding="utf-8")
    for old in (folder / ENDS, *folder.glob(OUTCOMES)):
        old.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "stages.train.elastic", str(folder), "--standalone",
        f"--nproc-per-node={job.execution.n_processes}", f"--signals-to-handle={signals_of_torchrun()}",
        "-m", "stages.train.worker", str(described),
    ]  # fmt: skip
    code_root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(code_root), os.environ.get("PYTHONPATH", "")])}
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))
    environment.setdefault(
        "OMP_NUM_THREADS", str(job.execution.threads or max(1, n_cores() // job.execution.n_processes))
    )
    with signals.wait():
        process = subprocess.Popen(command, cwd=job.root, env=environment, preexec_fn=die_with_parent)
        passed_on = False
        while True:
            try:
                code = process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                if signals.received and not passed_on:
                    process.send_signal(signal.SIGTERM)
                    passed_on = True
    if signals.received:
        raise Stopped(signal.Signals(signals.received).name)
    if code:
        raise reason(folder, code)


def reason(folder: Path, code: int) -> BadInput | Failed:
    """Why the ranks ended: what one of them says of itself, else who ended without a word, else that one was missed."""
    told = {path.stem.rpartition("-")[2]: json.loads(path.read_bytes()) for path in sorted(folder.glob(OUTCOMES))}
    for outcome in told.values():
        if not outcome["lost"]:
            return (BadInput if outcome["bad_input"] else Failed)(outcome["message"])
    ends = json.loads((folder / ENDS).read_bytes()) if (folder / ENDS).exists() else {}
    codes = {rank: end["exit_code"] for rank, end in ends.items() if rank not in told}
    for rank in sorted(codes, key=lambda rank: (codes[rank] == -signal.SIGABRT, codes[rank])):
        if codes[rank] not in ENDED_BY_OTHERS:
            return Failed(
                f"rank {rank} (process {ends[rank]['pid']}) {_ended(codes[rank])}; the same command goes on from the "
                f"newest checkpoint. What torch said is in {folder / LOG}"
            )
    if told:
        return Failed(next(iter(told.values()))["message"])
    return Failed(
        f"training ended with exit code {code}; the reason stands above, or in {folder / LOG}; the same command goes "
        "on from the newest checkpoint"
    )


def _ended(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}; if it gave a reason, that stands above"
    name = signal.Signals(-code).name
    return f"was ended by {name}{BY_WHOM if name == 'SIGKILL' else ''}"


def signals_of_torchrun() -> str:
    """Those that end its ranks: by its own choice also SIGHUP, which nohup had it ignore."""
    hung_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else ["SIGHUP"]
    return ",".join(["SIGTERM", "SIGINT", "SIGQUIT", *hung_up])
