"""pipeline.dvc_program: a kill of DVC at any moment leaves nothing that stops the next one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import doctor, environment
from pipeline.dvc_program import at_work, dvc, dvc_command, mend_left_refs, mend_torn_books
from pipeline.reproduce import Workspace, reproduce

# A DVC that is killed while it writes its books: as soon as it has emptied the file.
KILLED = """
import json, os, signal
from dvc import rwlock
def dump(*_):
    os.kill(os.getpid(), signal.SIGKILL)
rwlock.json = type("json", (), {"load": json.load, "JSONDecodeError": json.JSONDecodeError, "dump": dump})
from dvc.cli import main
main(["repro", "--single-item", "code"])
"""


@pytest.fixture
def torn(repository: Path) -> Path:
    subprocess.run([sys.executable, "-c", KILLED], cwd=repository, env=environment.for_programs(), check=False)
    assert (repository / ".dvc/tmp/rwlock").read_bytes() == b""
    return repository


def test_dvc_itself_refuses_to_go_on_after_a_kill_in_mid_write(torn: Path) -> None:
    env = environment.for_programs({"GIT_CONFIG_GLOBAL": os.devnull})
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "code"]
    answer = subprocess.run(command, cwd=torn, env=env, capture_output=True, text=True, check=False)
    assert answer.returncode and "JSON structure is corrupted" in answer.stderr  # or nothing is left to mend


def test_a_stage_runs_after_such_a_kill(torn: Path) -> None:
    assert reproduce("code", Workspace(torn), lambda line: None).outcome == "Completed"


def test_a_question_to_dvc_is_answered_after_such_a_kill(torn: Path) -> None:
    assert json.loads(dvc(torn, "status", "--json").stdout)


def test_whole_books_are_kept(repository: Path) -> None:
    assert not mend_torn_books(repository)  # none yet
    dvc(repository, "repro", "--quiet", "code")
    before = (repository / ".dvc/tmp/rwlock").read_bytes()
    assert not mend_torn_books(repository) and (repository / ".dvc/tmp/rwlock").read_bytes() == before


def test_who_is_at_work_is_named_and_not_taken_for_a_fault_of_dvc_yaml(repository: Path, behave) -> None:
    assert at_work(repository) == {} and doctor.dvc(repository).level == "ok"
    behave("left", "wait")
    command = [sys.executable, "-m", "dvc", "repro", "left"]
    run = subprocess.Popen(command, cwd=repository, env=environment.for_programs(), start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (repository / "behaviour" / "left.here").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert at_work(repository) == {run.pid: "dvc repro left"}
        found = doctor.dvc(repository)
        assert found.level == "warning" and f"`dvc repro left` (process {run.pid})" in found.found
        assert "when it has ended" in found.mend
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert at_work(repository) == {}


def test_who_holds_the_lock_of_the_repository_is_named(repository: Path) -> None:
    hold = "import sys; from dvc.repo import Repo; repo = Repo(); repo.lock.lock(); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, "/bin/dvc", "pull"]
    with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin and holder.stdout
        holder.stdout.readline()
        assert at_work(repository) == {holder.pid: "dvc pull"}
        holder.stdin.close()
    assert at_work(repository) == {}


def test_a_lock_that_a_killed_dvc_has_left_on_the_refs_of_experiments_is_removed(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert mend_left_refs(tmp_path) == []
    left = tmp_path / ".git/refs/exps/stash.lock"
    left.parent.mkdir(parents=True)
    left.touch()
    dvc_command(tmp_path, "status")
    assert left.exists(), "it is in the way of experiments alone"
    dvc_command(tmp_path, "exp", "run")
    assert not left.exists()
