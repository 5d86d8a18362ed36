"""pipeline.reproduce: DVC's words, held against the installed DVC."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.programs import STOPPED, Programs
from pipeline.reproduce import (
    Reproduced,
    Workspace,
    has_remote,
    inputs_came_out_equal,
    judge,
    reproduce,
    stale_stages,
)
from tests.pipeline.tiny_repository import dvc


def outcome(repository: Path, stage: str) -> tuple[Reproduced, list[str]]:
    lines: list[str] = []
    return reproduce(stage, Workspace(repository), lines.append), lines


def test_dvc_still_says_what_we_listen_for(repository: Path) -> None:
    first, lines = outcome(repository, "code")
    assert first == Reproduced("Completed")
    assert "Running stage 'code':" in lines and "code at work in no experiment" in lines
    assert not any("dvc push" in line or "git add" in line for line in lines)

    assert outcome(repository, "code")[0] == Reproduced("Unchanged")
    (repository / "out" / "code").unlink()
    assert stale_stages(repository) == {"code", "left", "right", "join", "last"}
    assert outcome(repository, "code")[0] == Reproduced("Cached")
    assert (repository / "out" / "code").exists()
    assert stale_stages(repository) == {"left", "right", "join", "last"}


def test_a_failing_stage_keeps_its_exit_code(repository: Path, behave: Callable[..., None]) -> None:
    for code, expected in [(2, "Failed"), (130, "Stopped")]:
        behave("code", f"fail {code}")
        assert outcome(repository, "code")[0] == Reproduced(expected, code)


def test_files_that_another_process_works_on_make_the_stage_busy(repository: Path) -> None:
    lock = {"write": {str(repository / "out" / "code"): {"pid": os.getpid(), "cmd": "dvc repro"}}, "read": {}}
    (repository / ".dvc" / "tmp").mkdir(exist_ok=True)
    (repository / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(lock))
    assert outcome(repository, "code")[0] == Reproduced("Busy", 1)


def test_a_repository_that_dvc_cannot_read_is_a_failure(repository: Path) -> None:
    (repository / "dvc.yaml").write_text("stages: {code: {command: x}}")
    assert outcome(repository, "code")[0] == Reproduced("Failed", 1)
    assert stale_stages(repository) is None


@pytest.mark.parametrize(
    ("text", "exit_code", "stopping", "expected"),
    [
        ("failed to run: x, exited with -9", 255, False, Reproduced("Failed", 1)),
        ("failed to run: x, exited with -2", 255, True, Reproduced("Stopped", 130)),
        ("", -15, True, Reproduced("Stopped", 130)),
        ("Unable to acquire lock. Most likely", 255, False, Reproduced("Busy", 1)),
        ("missing data 'source': x", 255, False, Reproduced("Failed", 1)),
    ],
)
def test_ends_that_are_not_the_stages_own(text: str, exit_code: int, stopping: bool, expected: Reproduced) -> None:
    assert judge(text, exit_code, stopping) == expected


def test_the_environment_has_our_python_and_what_it_is_given(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = repository / "stage.py"
    stage.write_text("import sys; print('python is', sys.executable)\n" + stage.read_text())
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("DVC_ROOT", "/nowhere")
    lines: list[str] = []
    reproduce("code", Workspace(repository, {"DVC_EXP_NAME": "brave-mill"}), lines.append)
    assert "code at work in brave-mill" in lines
    ours = subprocess.run([sys.executable, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
    assert f"python is {ours.stdout.strip()}" in lines


def test_a_stage_whose_inputs_came_out_equal_is_known_without_dvc(repository: Path) -> None:
    dvc(repository, "repro", "--quiet", "join")
    assert inputs_came_out_equal(repository, "join", ["out/left", "out/right"]) is False  # out/left holds two outputs
    assert inputs_came_out_equal(repository, "right", ["out/code"])
    (repository / "source.txt").write_text("another")
    dvc(repository, "repro", "--quiet", "--single-item", "code")
    assert not inputs_came_out_equal(repository, "right", ["out/code"])
    assert not inputs_came_out_equal(repository, "last", ["out/join"])  # it never ran
    (repository / "dvc.lock").write_text("schema: '2.0'\nstages:\n  code:\n    outs:\n    - path: out")
    assert not inputs_came_out_equal(repository, "right", ["out/code"])


def test_outputs_come_from_the_remote_and_go_there(repository: Path, tmp_path: Path) -> None:
    assert not has_remote(repository)
    dvc(repository, "remote", "add", "--default", "team", str(tmp_path / "remote"))
    assert has_remote(repository)
    lines: list[str] = []
    here = Workspace(repository, remote=True)
    assert reproduce("code", here, lines.append).outcome == "Completed"
    there = shutil.copytree(repository, tmp_path / "another")
    shutil.rmtree(there / ".dvc" / "cache")
    (there / "out" / "code").unlink()
    assert reproduce("code", Workspace(there, remote=True), lines.append).outcome == "Cached"
    assert (there / "out" / "code").read_bytes() == (repository / "out" / "code").read_bytes()


def test_a_signal_ends_the_question_what_is_stale(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC would wait for ever at a named pipe, and for minutes in many new files."""
    dvc(repository, "repro", "--quiet")
    os.mkfifo(repository / "inputs" / "pipe")
    programs = Programs()
    monkeypatch.setattr("pipeline.reproduce.programs", programs)
    found: list[object] = []
    asking = threading.Thread(target=lambda: found.append(stale_stages(repository)), daemon=True)
    asking.start()
    asking.join(timeout=4)
    assert asking.is_alive()
    programs.stop(signal.SIGTERM)
    began = time.monotonic()
    asking.join(timeout=60)
    assert found == [None] and time.monotonic() - began < 30
    assert programs.ask(["true"], repository, os.environ).returncode == STOPPED
