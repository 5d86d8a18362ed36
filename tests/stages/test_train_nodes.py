"""A training on several nodes: the user's torchrun starts the stage, and any checkout goes on with its scratch."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from stages.checkpoint import checkpoints_in
from stages.entry import plain
from stages.errors import BadInput
from stages.train.nodes import finds_word, follows, leave_word
from stages.train.ranks import join_ranks
from tests.stages.test_train import EXECUTION, MODEL, REPOSITORY, TRAIN, job_in, run_in, weights

LONG = TRAIN.model_copy(update={"max_steps": 150, "eval_interval": 50, "lr": 0.001, "muon_lr": 0.001})


def checkout(folder: Path, data: Path, **execution: object) -> Path:
    """Another place with the same data and params."""
    (folder / "data").mkdir(parents=True)
    (folder / "data/pack").symlink_to(data / "data/pack")
    (folder / "dvc.yaml").write_text(
        "stages:\n  train:\n    deps: [data/pack/train, data/pack/validation]\n    params: [model, train]\n"
    )
    sections = {"model": plain(MODEL), "train": plain(LONG), "execution": {**plain(EXECUTION), **execution}}
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(sections, file)
    return folder


def start_node(root: Path, number: int, port: int) -> subprocess.Popen:
    """torchrun as the user gives it on each of two nodes."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--signals-to-handle=SIGTERM,SIGUSR1", "--nnodes=2",
        f"--node-rank={number}", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}",
        "-m", "stages.train",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with (root / "output").open("w") as output:
        return subprocess.Popen(command, cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_stop_together_and_another_checkout_goes_on_with_their_scratch(packed: Path, tmp_path_factory):
    alone = weights(run_in(packed, LONG))
    scratch = str(tmp_path_factory.mktemp("shared"))
    base = tmp_path_factory.mktemp("nodes")
    roots = [checkout(base / name, packed, launcher="environment", scratch=scratch) for name in ("one", "another")]
    port = free_port()
    nodes = [start_node(root, number, port) for number, root in enumerate(roots)]
    execution = EXECUTION.model_copy(update={"scratch": scratch})
    third = checkout(base / "a/third", packed)
    with job_in(third, LONG, execution).scratch() as folder:
        pass
    deadline = time.monotonic() + 120
    while max(checkpoints_in(folder), default=0) < 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    nodes[0].send_signal(signal.SIGUSR1)
    for node in nodes:
        node.wait(60)
    said = [(root / "output").read_text() for root in roots]
    stopped_at = max(checkpoints_in(folder), default=0)
    assert 10 <= stopped_at < LONG.max_steps, said
    assert "step 0 validation" in said[0] and "step 0 validation" not in said[1]
    resumed = weights(run_in(third, LONG, execution))
    for name, tensor in alone.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=1e-3)


def test_the_environment_is_asked_for_where_params_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = checkout(tmp_path, tmp_path / "nowhere", launcher="environment")
    assert not follows(root)
    with pytest.raises(BadInput, match="WORLD_SIZE, RANK, .* is not set; start this by torchrun"):
        join_ranks(EXECUTION, launched=True)
    monkeypatch.setenv("RANK", "3")
    assert follows(root)
    assert not follows(checkout(tmp_path / "other", tmp_path / "nowhere"))  # a cluster's shell with a RANK of its own


def test_a_folder_of_the_same_name_on_another_disk_is_not_the_first_nodes(tmp_path: Path):
    shared, other = tmp_path / "shared", tmp_path / "other"
    for folder in (shared, other):
        folder.mkdir()
        before = leave_word(folder)
    word = leave_word(shared)
    assert finds_word(shared, word)
    assert not finds_word(shared, before) and not finds_word(other, word) and not finds_word(tmp_path / "gone", word)
