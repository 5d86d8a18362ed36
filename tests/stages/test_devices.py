"""stages.devices: each GPU is held by one stage at a time. Locks of files alone: no GPU is needed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stages.devices import VISIBLE, own_gpus, visible_devices
from stages.entry import Job
from stages.execution import Execution

ROOT = Path(__file__).parents[2]

# Takes GPUs, says which, and keeps them until its input ends.
HOLDER = """
import sys
from pathlib import Path
from stages.devices import own_gpus
from stages.entry import Job
with own_gpus(Job(sys.argv[1], Path(sys.argv[2])), int(sys.argv[3])) as taken:
    import os
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(taken)
    print("got", *taken, flush=True)
    sys.stdin.read()
"""


def holder(stage: str, root: Path, count: int, devices: str = "2,3") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, stage, str(root), str(count)],
        cwd=ROOT,
        env={**os.environ, VISIBLE: devices, "DVC_EXP_NAME": "", "DVC_ROOT": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.communicate()


def test_two_processes_share_the_visible_gpus_and_the_third_says_whom_it_waits_for(tmp_path: Path) -> None:
    first = holder("train", tmp_path, 1)
    assert line_of(first) == "got 2"
    second = holder("evaluate", tmp_path, 1)
    assert line_of(second) == "got 3"
    third = holder("train", tmp_path, 1)
    waits = line_of(third)
    assert waits.startswith("train: waits for 1 of 2 GPUs, held by train of the workspace (process ")
    assert f"evaluate of the workspace (process {second.pid})" in waits
    first.send_signal(signal.SIGKILL)
    assert line_of(third) == "got 2"
    end(first, second, third)


def test_one_that_needs_all_is_not_passed_by_those_that_need_one(tmp_path: Path) -> None:
    first = holder("train", tmp_path, 1)
    assert line_of(first) == "got 2"
    whole = holder("train", tmp_path, 8)  # there are two
    assert "waits for 2 of 2 GPUs" in line_of(whole)
    late = holder("evaluate", tmp_path, 1)
    assert "waits for 1 of 2 GPUs" in line_of(late)
    end(first)
    assert line_of(whole) == "got 2 3"
    end(whole)
    assert line_of(late) == "got 2"
    end(late)


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("0,1", ["0", "1"]),
        ("GPU-8a, GPU-9b", ["GPU-8a", "GPU-9b"]),
        ("", []),
        ("-1", []),
        ("1,-1,0", ["1"]),
        ("1,,0", ["1"]),
    ],
)
def test_the_list_is_read_as_cuda_reads_it(monkeypatch: pytest.MonkeyPatch, listed: str, names: list[str]) -> None:
    monkeypatch.setenv(VISIBLE, listed)
    assert visible_devices() == names


def test_where_the_driver_makes_no_nodes_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(()))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_devices() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: One GPU (UUID: GPU-8a)'\necho 'GPU 1: Another (UUID: GPU-9b)'\n")
    program.chmod(0o755)
    assert visible_devices() == ["0", "1"]


def test_hosts_that_share_a_scratch_do_not_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0")
    for name in ("DVC_ROOT", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "one")
    with own_gpus(Job("train", tmp_path)) as first:
        monkeypatch.setenv(VISIBLE, "0")
        monkeypatch.setattr(socket, "gethostname", lambda: "other")
        monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waits for the GPU of the other host"))
        with own_gpus(Job("train", tmp_path)) as second:
            assert first == second == ["0"]
    assert {path.parent.name for path in tmp_path.rglob("0.lock")} == {"one", "other"}


def test_without_gpus_and_under_torchrun_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,1")
    for execution in (Execution(device="cpu"), Execution(launcher="environment")):
        with own_gpus(Job("train", tmp_path, execution)) as taken:
            assert taken == [] and os.environ[VISIBLE] == "0,1"
    assert not (tmp_path / ".dvc").exists()
    with own_gpus(Job("train", tmp_path)) as taken:
        assert taken == ["0"] == os.environ[VISIBLE].split(",")
    assert os.environ[VISIBLE] == "0,1"
