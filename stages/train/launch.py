"""Starts several training processes on this machine through torchrun and waits for them.

Signals are passed on: every rank finishes its step, the first one saves, all of them end. If this
process is killed, Linux sends torchrun SIGTERM, so no rank is left behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from stages.entry import Job, die_with_parent, signals
from stages.errors import BadInput, Failed, Stopped
from stages.execution import n_cores
from stages.train.worker import OUTCOME, describe

# that torchrun gives its ranks after a signal before it kills them; by itself it waits for 30
SECONDS_TO_SAVE = 120


def launch(job: Job, folder: Path) -> None:
    """Trains with `execution.n_processes` ranks.

    Raises:
        Stopped: a signal ended them.
        BadInput, Failed: what the first rank ended with.
    """
    described = folder / "job.json"
    described.write_text(describe(job, folder), encoding="utf-8")
    outcome = folder / OUTCOME
    outcome.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
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
    if code and outcome.exists():
        reason = json.loads(outcome.read_text(encoding="utf-8"))
        raise (BadInput if reason["bad_input"] else Failed)(reason["message"])
    if code:
        raise Failed(
            f"training ended with exit code {code}; the reason stands above, or a process was killed from outside; the "
            "same command goes on from the newest checkpoint"
        )


def signals_of_torchrun() -> str:
    """Those that end its ranks: by its own choice also SIGHUP, which nohup had it ignore."""
    hung_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else ["SIGHUP"]
    return ",".join(["SIGTERM", "SIGINT", "SIGQUIT", *hung_up])
