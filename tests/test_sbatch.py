"""recipes/train.sbatch: what it starts, and that a signal sends the job back to the queue after training has saved."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[1] / "recipes/train.sbatch"

# Programs of a cluster, as far as the recipe needs them: each writes down how it was called.
PROGRAMS = {
    "scontrol": 'echo "scontrol $*" >>calls\n[ "$1" = show ] && printf "node7\\nnode8\\n"; exit 0',
    "dvc": 'echo "dvc $* ${MILLRACE_EXECUTION__LAUNCHER:-stage}" >>calls',
    "srun": 'echo "srun $MILLRACE_EXECUTION__LAUNCHER" >>calls\nshift\nexec "$@"',
    "torchrun": 'trap "echo saved >>calls; exit 130" USR1\necho "torchrun $*" >>calls\n'
    "[ -e long ] || exit 0\nwhile :; do sleep 0.05; done",
}


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name, text in PROGRAMS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return tmp_path


def submit(cluster: Path) -> subprocess.Popen:
    job = {"SLURM_SUBMIT_DIR": str(cluster), "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[7-8]"}
    node = {"SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_GPUS_ON_NODE": "8"}
    path = {"PATH": f"{cluster / 'bin'}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(RECIPE)], env={**os.environ, **job, **node, **path})


def calls(cluster: Path) -> list[str]:
    return (cluster / "calls").read_text().splitlines() if (cluster / "calls").exists() else []


TRAINED = [
    "scontrol show hostnames node[7-8]",
    "dvc repro pack stage",
    "srun environment",
    "torchrun --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --nnodes=2 --node-rank=0 --nproc-per-node=8 "
    "--master-addr=node7 --master-port=20042 -m stages.train",
]


def test_it_runs_data_stages_then_training_on_all_nodes_then_the_rest(cluster: Path):
    assert submit(cluster).wait(20) == 0
    assert calls(cluster) == [*TRAINED, "dvc repro stage"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_lets_training_save_and_sends_the_job_back_to_the_queue(cluster: Path, number: int):
    (cluster / "long").touch()
    job = submit(cluster)
    deadline = time.monotonic() + 20
    while calls(cluster) != TRAINED and time.monotonic() < deadline:
        time.sleep(0.01)
    job.send_signal(number)
    assert job.wait(20) == 0
    assert calls(cluster) == [*TRAINED, "saved", "scontrol requeue 42"]
