"""Pure tasks with their results in folders, done once: a stage maps over shards and reduces over partitions.

A task is a key and an item. Its function gets the item and an empty folder and writes files there; the
key names everything that decides their bytes. Finished folders stay in scratch under their key, so
what was killed goes on where it stopped, and when one input file of a thousand changes, one task runs:

    tasks = [Task(job.key("sketch", file_sha256(path), ngram), path) for path in shards]
    for folder in results(job, "sketch", write_sketches, tasks):   # in the order of the tasks
        ...

A folder is filled beside and renamed, so it is whole or not there. Its files may be those of the stage's outputs, by
hard links, and somebody may write into these: each folder has a list of sizes and times, and a result that is no longer
as it was made is made again. Where tasks run is this module's secret: local processes now; an engine for many machines
needs nothing but key, item and function.
Results of keys that are no longer asked for stay, least recently used first out, until all of a
stage's take less than `execution.scratch_gb`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stages.entry import Job
from stages.files import RECORD, sync
from stages.memory import release_freed
from stages.progress import progress
from stages.workers import ordered_map


class Task(NamedTuple):
    """One piece of work.

    Attributes:
        key: names the result (`Job.key`): equal keys are equal bytes.
        item: what the function needs; pickled to a worker.
    """

    key: str
    item: Any


Function = Callable[[Any, Path], None]
"""Writes the result of an item into an empty folder. A function of a module, or a partial of one."""


def results(job: Job, step: str, function: Function, tasks: Sequence[Task], unit: str = "shards") -> Iterator[Path]:
    """The folder of each task's result, in the order of `tasks`; what is there already is not done again.

    Equal keys are done once. Folders are read-only to the caller: `stages.store.link_file` takes files from them.
    """
    store = job.store / step
    store.mkdir(parents=True, exist_ok=True)
    for left in store.glob("*.partial"):
        if not _is_running(int(left.suffixes[-2][1:])):
            shutil.rmtree(left, ignore_errors=True)
    missing = list({task.key: task for task in tasks if not _is_whole(store / task.key)}.values())
    for task in missing:
        shutil.rmtree(store / task.key, ignore_errors=True)
    done = ordered_map(partial(_perform, function, store), missing, min(job.execution.n_workers(), len(missing)))
    waiting = {task.key for task in missing}
    release_freed()  # before workers inherit it
    n_there = len(tasks) - sum(task.key in waiting for task in tasks)
    some = "all" if n_there == len(tasks) else f"{n_there:,} of them"
    note = f", {some} taken from scratch" if n_there else ""
    with progress(f"{job.stage}: {step}", len(tasks), unit, note=note) as bar:
        for task in tasks:
            while task.key in waiting:
                waiting.discard(next(done))
            folder = store / task.key
            os.utime(folder)
            yield folder
            bar.update()


def _perform(function: Function, store: Path, task: Task) -> str:
    partial_folder = store / f"{task.key}.{os.getpid()}.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir()
    try:
        function(task.item, partial_folder)
        for path in partial_folder.rglob("*"):
            if path.is_file():
                sync(path)
        (partial_folder / RECORD).write_text(json.dumps(_stamps(partial_folder)))
        sync(partial_folder / RECORD)
        try:
            partial_folder.rename(store / task.key)
        except OSError:
            if not (store / task.key).is_dir():  # else another process was first, with equal bytes
                raise
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return task.key


def _is_whole(folder: Path) -> bool:
    """Whether the result is there, with the files that it was finished with."""
    try:
        return bool(json.loads((folder / RECORD).read_bytes()) == _stamps(folder))
    except (OSError, ValueError):
        return False


def _stamps(folder: Path) -> dict[str, list[int]]:
    """Bytes and time of the last writing of each file."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.name != RECORD}
    stats = {name: path.stat() for name, path in files.items() if path.is_file()}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
