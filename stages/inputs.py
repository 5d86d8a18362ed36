"""What lies below download.inputs and can be no input: found before DVC, which ends in its own words or waits for ever.

    python -m stages.inputs     `make repro` runs this first; `millrace run`, `millrace doctor`, and the stages code
                                and download look as well

DVC reads every file there when it looks whether the stage download has to run, so it fails at a link to nothing, waits
at a named pipe, and passes over a folder that is a link, whose texts would be missing without a word.
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


def problem_of_inputs(inputs: Path) -> str | None:
    """The first thing that cannot be read, with its mend. Where `inputs` itself is not there, others say so."""
    return next(problems(inputs), None) if inputs.is_dir() else None


def problems(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from problems(Path(entry.path))
        elif (entry.is_symlink() or not entry.is_file()) and (problem := _problem(entry)):
            yield f"{entry.path}: {problem}"


def _problem(entry: os.DirEntry[str]) -> str | None:
    try:
        mode = entry.stat().st_mode
    except OSError:  # also links in a circle
        target = Path(entry.path).readlink()
        return f"a link to {target}, which is not there; remove the link, or bring back what it means"
    if kind := KINDS.get(stat.S_IFMT(mode)):
        return f"{kind} and no file, which DVC would wait for or refuse; move it out of download.inputs"
    if stat.S_ISDIR(mode) and not entry.name.startswith("."):
        return (
            "a link to a folder, whose files neither DVC nor download would see; let download.inputs name the folder "
            "itself, or make a folder here with links to its files"
        )
    return None


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
