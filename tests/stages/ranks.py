"""Trains small models with several ranks in processes forked from one that has loaded torch.

    python -m tests.stages.ranks SCENARIOS.json

A scenario is {"folder": .., "world": 4, "train": {..}}; and, where it says so, every tensor is float64 ("double"), the
loss of one rank is not finite in a step ("nan": [rank, step]), a signal comes after a step ("stop": step), a rank is
killed in the middle of a checkpoint ("kill": [rank, step]), or nothing is trained and what was loaded is saved again
("again": folder). It may change params ("execution": {..}, "model": {..}).
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import safetensors.torch
import torch
import torch._dynamo  # which an optimizer loads, in seconds

from model.config import ModelConfig
from stages.checkpoint import folder_of
from stages.entry import Job
from stages.errors import Stopped
from stages.execution import Execution
from stages.signals import signals
from stages.train import hooks, loop
from stages.train.params import TrainParams
from stages.train.sharding import local
from stages.train.worker import work
from tests.stages.conftest import markov_documents, write_split

MODEL = ModelConfig(n_layers=2, hidden_size=32, n_heads=4, n_kv_heads=2)


def compute_in_double() -> None:
    """Everything that torch makes here is float64, also where the code asks for at least float32; but for flags."""
    torch.set_default_dtype(torch.float64)
    single = torch.Tensor.float
    torch.Tensor.float = lambda tensor: single(tensor) if tensor.dtype == torch.bool else tensor.double()


def break_loss(in_step: int) -> None:
    """The loss of this rank is not finite in a step, from 1."""
    whole, calls = torch.nn.functional.cross_entropy, 0

    def cross_entropy(*arguments, **named):
        nonlocal calls
        calls += torch.is_grad_enabled()  # not in validation
        loss = whole(*arguments, **named)
        return loss * float("nan") if torch.is_grad_enabled() and calls == in_step else loss

    torch.nn.functional.cross_entropy = cross_entropy


def weigh(into: Path) -> None:
    """Each rank writes how many bytes of parameters and of optimizer states it holds at the end."""
    whole = loop.train

    def train(run, hooks):
        whole(run, hooks)
        parameters = sum(local(parameter).nbytes for parameter in run.model.parameters())
        held = {"parameters": parameters, "states": run.optimizers.state_bytes()}
        (into / f"bytes-{run.ranks.rank}.json").write_text(json.dumps(held))

    loop.train = train


def signal_after(step: int) -> None:
    """A signal comes after this step; it is obeyed after the next."""
    after_step = hooks.Checkpoint.after_step

    def then_signal(self, run, result):
        after_step(self, run, result)
        if run.state.step == step:
            signals.received = signal.SIGTERM

    hooks.Checkpoint.after_step = then_signal


def kill_in_save(of_step: int) -> None:
    """SIGKILL comes when half of a file of this rank is written."""

    def save_file(tensors, path):
        whole(tensors, path)
        if folder_of(Path(path).parents[1], of_step).name in str(path):
            with Path(path).open("r+b") as file:
                file.truncate(Path(path).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    whole, safetensors.torch.save_file = safetensors.torch.save_file, save_file


def save_again(into: Path) -> None:
    """Instead of training."""

    def train(run, _):
        run.checkpoints.folder = into
        into.mkdir(exist_ok=True)
        hook = hooks.Checkpoint()
        hook.start(run)
        hook.save(run)
        if hook.saver:
            hook.saver.wait()
        run.ranks.barrier()
        hook.close(run)
        raise Stopped("saved")

    loop.train = train


def train(scenario: dict, root: Path, rank: int, port: int) -> None:
    world = scenario["world"]
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update(addresses | {name: str(number) for name, number in numbers.items()})
    if scenario.get("double"):
        compute_in_double()
    if scenario.get("nan") and scenario["nan"][0] == rank:
        break_loss(scenario["nan"][1])
    if scenario.get("stop") and rank == 0:
        signal_after(scenario["stop"])
    if scenario.get("kill") and scenario["kill"][0] == rank:
        kill_in_save(scenario["kill"][1])
    execution = Execution(
        tracking=False, compile=False, device="cpu", threads=1, n_processes=world, micro_batch=8, keep_checkpoints=99,
        checkpoint_interval=scenario.get("interval", 1000),
    ).model_copy(update=scenario.get("execution", {}))  # fmt: skip
    model = dataclasses.replace(MODEL, **scenario.get("model", {}))
    params = TrainParams(**scenario["train"])
    job = Job("train", root, execution, (), {"model": model, "train": params})
    folder = root / scenario["folder"]
    folder.mkdir(exist_ok=True)
    weigh(folder)
    if scenario.get("again"):
        save_again(root / scenario["again"])
    try:
        work(job, model, params, folder, launched=True)
    except Stopped:
        return


def train_all(root: Path, scenarios: list[dict], validation_documents: int) -> Path:
    """Trains every scenario below `root`, which gets rows of synthetic text, in a process of its own."""
    write_split(root, "train", markov_documents(300, seed=0))
    write_split(root, "validation", markov_documents(validation_documents, seed=1))
    (root / "scenarios.json").write_text(json.dumps(scenarios))
    command = [sys.executable, "-m", "tests.stages.ranks", str(root / "scenarios.json")]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return root


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def main(path: Path) -> int:
    torch.set_num_threads(1)
    for scenario in json.loads(path.read_text()):
        port, processes = free_port(), []
        for rank in range(scenario["world"]):
            if process := os.fork():
                processes.append(process)
                continue
            code = 1
            try:
                train(scenario, path.parent, rank, port)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:  # nothing of the parent's is closed here
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        if any(codes) != bool(scenario.get("kill")):
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
