"""Tasks are done once, whole or not at all, and give their results in order."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from stages.entry import Job
from stages.execution import Execution
from stages.params import Section
from stages.store import link_file, save_array, trim
from stages.tasks import Task, results


def write_square(number: int, folder: Path, log: Path) -> None:
    if number == 13:
        (folder / "half").write_text("half of it")
        raise ValueError("thirteen")
    (folder / "square").write_text(str(number**2))
    with log.open("a") as file:
        file.write(f"{number} ")


def squares(job: Job, numbers: list[int]) -> list[int]:
    function = partial(write_square, log=job.root / "log")
    tasks = [Task(job.key(number), number) for number in numbers]
    return [int((folder / "square").read_text()) for folder in results(job, "squares", function, tasks)]


@pytest.fixture(params=[1, 3])
def job(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    return Job("clean", tmp_path, Execution(workers=request.param, scratch=str(tmp_path / "scratch")))


def done(job: Job) -> list[int]:
    return sorted(map(int, (job.root / "log").read_text().split()))


def test_results_come_in_the_order_of_the_tasks_and_equal_keys_are_done_once(job: Job) -> None:
    assert squares(job, [3, 1, 2, 3]) == [9, 1, 4, 9]
    assert done(job) == [1, 2, 3]


def test_only_what_is_missing_is_done(job: Job) -> None:
    squares(job, [1, 2, 3])
    assert squares(job, [4, 2, 3]) == [16, 4, 9]
    assert done(job) == [1, 2, 3, 4]


def test_what_was_there_already_is_said(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    for numbers, said in ([1, 2, 3], ")\n"), ([4, 2, 3], "), 2 of them taken from scratch\n"), ([1], "), all taken "):
        squares(job, numbers)
        assert said in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "written over", "without its list"])
def test_a_result_that_is_not_as_it_was_made_is_made_again(job: Job, damage: str) -> None:
    squares(job, [12, 3])
    folder = job.store / "squares" / job.key(12)
    output = job.root / "output"
    link_file(folder / "square", output)  # as stages publish results: who writes there writes into both
    if damage == "cut":
        os.truncate(output, 1)
    elif damage == "written over":
        output.write_text("999")
    else:
        (folder / "whole.json").unlink()
    assert squares(job, [12, 3]) == [144, 9]
    assert done(job) == [3, 12, 12]


def test_a_task_that_fails_leaves_nothing_and_the_others_stay(job: Job) -> None:
    with pytest.raises(ValueError, match="thirteen"):
        squares(job, [1, 13])
    assert not list(job.store.rglob("half"))
    assert squares(job, [1]) == [1]
    assert done(job) == [1]


def test_what_a_killed_process_left_is_removed(job: Job) -> None:
    left = job.store / "squares" / f"{job.key(1)}.{2**22 - 1}.partial"
    own = job.store / "squares" / f"{job.key(2)}.{os.getpid()}.partial"
    left.mkdir(parents=True)
    own.mkdir()
    squares(job, [5])
    assert not left.exists()
    assert own.exists()


class Params(Section):
    size: int = 1


def test_a_key_changes_with_params_and_code(job: Job) -> None:
    before = job.key("a", Params())
    assert before == job.key("a", Params(size=1))
    assert before != job.key("a", Params(size=2))
    (job.root / "data/code").mkdir(parents=True)
    (job.root / "data/code/clean.json").write_text("{}")
    assert before != job.key("a", Params())


def test_the_store_is_trimmed_by_last_use_and_links_cost_nothing(job: Job) -> None:
    squares(job, [1, 2, 3])
    folders = {number: job.store / "squares" / job.key(number) for number in (1, 2, 3)}
    for folder in folders.values():
        (folder / "square").write_bytes(b"x" * 10_000)
    link_file(folders[2] / "square", job.root / "published")
    for age, number in enumerate((3, 2, 1)):
        os.utime(folders[number], (1e9 - age, 1e9 - age))
    trim(job.store, 11_000)  # beside the lists of what they hold
    assert [folder.is_dir() for folder in folders.values()] == [False, True, True]


def test_trimming_waits_for_nobody(job: Job) -> None:
    with job.store_in_use():
        squares(job, [1])
        with Job("clean", job.root, Execution(scratch=job.execution.scratch, scratch_gb=0)).store_in_use():
            pass
        assert (job.store / "squares" / job.key(1)).is_dir()


@pytest.mark.parametrize("values", [np.arange(6).reshape(2, 3), np.arange(12)[::2], np.empty((0, 2)), np.ones(3, bool)])
def test_arrays_have_the_bytes_of_numpy(values: np.ndarray, tmp_path: Path) -> None:
    save_array(tmp_path / "ours.npy", values)
    np.save(tmp_path / "theirs.npy", np.ascontiguousarray(values))
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_array_that_meets_a_full_disk_says_so() -> None:
    with pytest.raises(OSError) as caught:
        save_array(Path("/dev/full"), np.zeros(1 << 20))
    assert caught.value.errno == errno.ENOSPC
