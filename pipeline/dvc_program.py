"""DVC as a program, the way every door of Millrace starts it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil

from pipeline import environment
from pipeline.programs import bound

LEFT_SECONDS = 3.0
PROGRAM = re.compile(r"(^|/)dvc(/__main__\.py)?$")


def dvc_command(root: Path, *arguments: str) -> list[str]:
    """The command that runs DVC in `root`, to be started now: it waits for DVC's lock, and finds its books whole."""
    mend_torn_books(root)
    if arguments[:1] == ("exp",):
        mend_left_refs(root)
    return [sys.executable, "-m", "dvc", "--wait-for-lock", *arguments]


def dvc(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `dvc` and returns what it said. Ctrl-C in the terminal reaches us alone, who decide; it dies with us."""
    return subprocess.run(
        bound(dvc_command(root, *arguments)),
        cwd=root,
        env=environment.for_programs(),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
    )


def dvc_setting(root: Path, name: str) -> str:
    """A setting of DVC as it resolves it; empty where it is not set."""
    answer = dvc(root, "config", name)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def at_work(root: Path) -> dict[int, str]:
    """The DVC commands that are at work here just now, by their process.

    A command that runs a stage holds the stage's files, as .dvc/tmp/rwlock says, and whoever asks about one of them is
    told that it is busy. At other times it holds the lock of the repository, .dvc/tmp/lock, with its process in it.
    """
    folder = root / ".dvc" / "tmp"
    found: dict[int, str] = {}
    with contextlib.suppress(OSError, ValueError, LookupError, AttributeError, TypeError):  # not there, or torn
        books = json.loads((folder / "rwlock").read_bytes())
        for one in [*books["write"].values(), *(one for several in books["read"].values() for one in several)]:
            found[int(one["pid"])] = _short(one["cmd"].split())
    with contextlib.suppress(OSError), (folder / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(ValueError, psutil.Error):
                process = int(lock.read())
                found[process] = _short(psutil.Process(process).cmdline())
    return {process: command for process, command in found.items() if psutil.pid_exists(process)}


def _short(words: list[str]) -> str:
    """`dvc repro train` for `/home/me/.venv/bin/python -m dvc repro train`, as DVC or the system has it."""
    begin = next((place for place, word in enumerate(words) if PROGRAM.search(word)), 0)
    return " ".join(["dvc", *words[begin + 1 :]])


def mend_torn_books(root: Path) -> bool:
    """Removes .dvc/tmp/rwlock where a kill has torn it; returns whether it had to.

    DVC writes there, in place, which process reads and writes which output. Killed in mid-write it leaves an empty
    file, and from then on every `dvc repro` says "JSON structure is corrupted". DVC reads and writes it under
    rwlock.lock only, so whoever holds that and still finds no JSON may start a new one.
    """
    books = root / ".dvc" / "tmp" / "rwlock"
    if _is_whole(books):
        return False
    from dvc.lock import make_lock

    with make_lock(str(books.with_name("rwlock.lock")), tmp_dir=str(books.parent), wait=True):
        torn = not _is_whole(books)
        if torn:
            books.unlink()
    return torn


def mend_left_refs(root: Path) -> list[Path]:
    """Removes locks on the refs of experiments that a killed DVC has left, and returns them.

    Whoever writes a ref holds `refs/exps/NAME.lock` for milliseconds. Left there, every later `dvc exp run` says "File
    exists". One that is still the same after `LEFT_SECONDS` is nobody's.
    """
    answer = subprocess.run(
        ["git", "rev-parse", "--git-common-dir"], cwd=root, capture_output=True, text=True, check=False
    )
    refs = root / answer.stdout.strip() / "refs" / "exps"
    if answer.returncode or not (before := _written(refs)):
        return []
    time.sleep(LEFT_SECONDS)
    left = [lock for lock, written in _written(refs).items() if before.get(lock) == written]
    for lock in left:
        lock.unlink(missing_ok=True)
    return left


def _written(refs: Path) -> dict[Path, tuple[int, int]]:
    found = {}
    for lock in refs.rglob("*.lock"):
        with contextlib.suppress(FileNotFoundError):
            state = lock.stat()
            found[lock] = (state.st_ino, state.st_mtime_ns)
    return found


def _is_whole(books: Path) -> bool:
    try:
        json.loads(books.read_bytes())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True
