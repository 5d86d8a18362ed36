"""What lies below download.inputs and can be no input: found before DVC, which ends in its own words or waits for ever.

    python -m stages.inputs     `make repro` runs this first; `millrace run`, `millrace doctor`, and the stages code
                                and download look as well

DVC reads every file there when it looks whether the stage download has to run, so it fails at a link to nothing and at
a name that is not UTF-8, waits at a named pipe, and passes over a folder that is a link, whose texts would be missing
without a word.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from stages.errors import BadInput

BAD_INPUT = 2
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}
REFUSED = "may not be read by this user; `chmod -R u+rX` lets its owner, or move it out of download.inputs"


def problem_of_inputs(inputs: Path) -> str | None:
    """The first thing that cannot be read, with its mend. Where nothing is at `inputs`, others say so."""
    return next(problems(inputs), None)


def problems(inputs: Path) -> Iterator[str]:
    if inputs.is_dir():
        yield from _problems_below(str(inputs))
    elif os.path.lexists(inputs) and (problem := _problem_of_special(inputs) or _problem_of_file(str(inputs))):
        yield f"{_shown(str(inputs))}: {problem}"


def _problems_below(folder: str) -> Iterator[str]:
    if not os.access(folder, os.R_OK | os.X_OK):
        yield f"{_shown(folder)}: {REFUSED}"
        return
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        special = entry.is_symlink() or not (entry.is_file() or entry.is_dir())
        problem = (_problem_of_special(Path(entry.path)) if special else None) or _problem_of_file(entry.path)
        if problem:
            yield f"{_shown(entry.path)}: {problem}"
        elif entry.is_dir(follow_symlinks=False):
            yield from _problems_below(entry.path)


def _problem_of_special(path: Path) -> str | None:
    """What is wrong with a link, or with what is neither a file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:  # also links in a circle
        return f"a link to {path.readlink()}, which is not there; remove the link, or bring back what it means"
    if kind := KINDS.get(stat.S_IFMT(mode)):
        return f"{kind} and no file, which DVC would wait for or refuse; move it out of download.inputs"
    if stat.S_ISDIR(mode) and not path.name.startswith("."):
        return (
            "a link to a folder, whose files neither DVC nor download would see; let download.inputs name the folder "
            "itself, or make a folder here with links to its files"
        )
    return None


def _problem_of_file(path: str) -> str | None:
    if path.encode(errors="replace") != os.fsencode(path):
        return "its name is not UTF-8, which DVC cannot record; rename it"
    return None if os.access(path, os.R_OK) else REFUSED


def _shown(path: str) -> str:
    """In one line, whatever is in a name."""
    return path if path.isprintable() else repr(path)[1:-1]


def main(root: Path) -> int:
    from stages.params import ParamsFile

    try:
        named = (ParamsFile(root / "params.yaml").values.get("download") or {}).get("inputs", "inputs")
        problem = problem_of_inputs(root / named)
    except (BadInput, AttributeError, TypeError):
        return 0  # params that are wrong are for the stage code
    if problem:
        print(f"millrace: {problem}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(Path.cwd()))
