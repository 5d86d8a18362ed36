"""Several ranks end with one line, the reason: torchrun's own words are in a file beside."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from stages.checkpoint import checkpoints_in
from stages.errors import BadInput, Failed
from stages.locks import shared
from stages.train.launch import reason
from stages.train.worker import RANKS
from tests.stages.test_train import EXECUTION, TRAIN, job_in, run_in

TWO = EXECUTION.model_copy(update={"n_processes": 2})


def told(folder: Path, rank: int, message: str, bad_input: bool = False, lost: bool = False) -> None:
    outcome = {"message": message, "bad_input": bad_input, "lost": lost}
    (folder / f"outcome-{rank}.json").write_text(json.dumps(outcome))


def ended(folder: Path, *exit_codes: int) -> None:
    ends = {str(rank): {"pid": 100 + rank, "exit_code": code} for rank, code in enumerate(exit_codes)}
    (folder / "ends.json").write_text(json.dumps(ends))


def test_what_a_rank_says_of_itself_is_the_reason_whichever_rank_it_is(tmp_path: Path):
    told(tmp_path, 0, "another process of this training ended", lost=True)
    told(tmp_path, 1, "execution.n_processes is 2, but this machine has 1 GPUs", bad_input=True)
    ended(tmp_path, 1, 1)
    found = reason(tmp_path, 1)
    assert isinstance(found, BadInput) and str(found) == "execution.n_processes is 2, but this machine has 1 GPUs"


def test_a_rank_that_was_killed_is_named_before_those_that_missed_it(tmp_path: Path):
    told(tmp_path, 0, "another process of this training ended", lost=True)
    ended(tmp_path, -signal.SIGTERM, -signal.SIGKILL)
    found = reason(tmp_path, 1)
    assert isinstance(found, Failed) and str(found).startswith(
        "rank 1 (process 101) was ended by SIGKILL, from outside"
    )
    ended(tmp_path, -signal.SIGTERM, -signal.SIGSEGV)
    assert str(reason(tmp_path, 1)).startswith("rank 1 (process 101) was ended by SIGSEGV; the same command goes on")
    ended(tmp_path, -signal.SIGTERM, -signal.SIGTERM)
    assert str(reason(tmp_path, 1)) == "another process of this training ended"


def test_a_rank_that_ended_by_itself_without_a_word_is_named(tmp_path: Path):
    """By os._exit in a library, say; an exception shows its traceback, behind which stands whose it is."""
    told(tmp_path, 0, "another process of this training ended", lost=True)
    for codes in ((1, 3), (1, 3, -signal.SIGTERM), (1, 3, -signal.SIGABRT), (1, 3, 130)):
        ended(tmp_path, *codes)
        assert str(reason(tmp_path, 1)).startswith(
            "rank 1 (process 101) ended with exit code 3; if it gave a reason, that stands above; the same command"
        )
    ended(tmp_path, 1, -signal.SIGABRT)
    assert str(reason(tmp_path, 1)).startswith("rank 1 (process 101) was ended by SIGABRT; the same command")


def test_the_mistake_of_all_ranks_is_told_once_and_nothing_else(packed: Path, capfd: pytest.CaptureFixture[str]):
    broken = TRAIN.model_copy(update={"lr": 1e38, "muon_lr": 1e38, "max_skipped_steps": 2})
    with pytest.raises(Failed, match=r"^2 steps in a row up to step \d had a loss .*; lower train.lr"):
        run_in(packed, broken, TWO)
    assert capfd.readouterr().err == ""
    (log,) = packed.glob(".dvc/tmp/millrace/train/*/torchrun.log")
    assert "stages.train.worker FAILED" in log.read_text()


def test_ranks_that_a_killed_stage_has_left_end_before_others_begin(packed: Path, capfd: pytest.CaptureFixture[str]):
    train = TRAIN.model_copy(update={"max_steps": 5})
    with job_in(packed, train, TWO).scratch() as folder:
        pass
    held, begun = threading.Event(), []

    def save_and_end() -> None:
        with shared(folder / RANKS):
            held.set()
            time.sleep(2)
            begun.extend(psutil.Process().children())

    left = threading.Thread(target=save_and_end)
    left.start()
    held.wait()
    run_in(packed, train, TWO)
    left.join()
    assert begun == [] and f"waiting for {folder / RANKS}" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_after_kill_9_of_a_rank_it_is_named_and_the_same_command_goes_on(
    packed: Path, capfd: pytest.CaptureFixture[str], victim: int
):
    train = TRAIN.model_copy(update={"max_steps": 150, "eval_interval": 50})
    with job_in(packed, train, TWO).scratch() as folder:
        pass

    def kill() -> None:
        deadline = time.monotonic() + 60
        while max(checkpoints_in(folder), default=0) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        for child in psutil.Process().children(recursive=True):
            if child.environ().get("RANK") == str(victim):
                os.kill(child.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(
        Failed, match=rf"^rank {victim} \(process \d+\) was ended by SIGKILL, .*; the same command goes on"
    ):
        run_in(packed, train, TWO)
    killer.join()
    assert capfd.readouterr().err == ""
    assert json.loads((run_in(packed, train, TWO) / "metrics.json").read_text())["steps"] == 150
