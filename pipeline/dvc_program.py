"""DVC as a program, the way every door of Millrace starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pipeline import environment
from pipeline.programs import bound


def dvc_command(root: Path, *arguments: str) -> list[str]:
    """The command that runs DVC in `root`, to be started now: it waits for DVC's lock, and finds its books whole."""
    mend_torn_books(root)
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


def _is_whole(books: Path) -> bool:
    try:
        json.loads(books.read_bytes())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True
