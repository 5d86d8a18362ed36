"""pipeline.dvc_program: a kill of DVC at any moment leaves nothing that stops the next one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import environment
from pipeline.dvc_program import dvc, mend_torn_books
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
