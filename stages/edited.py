"""Whether params.yaml and the user's own files are at the end of a stage what they were when the stage read them.

DVC reads both when a stage has ended. Edited in between, it would record a result of the old ones as one of the new, in
dvc.lock and in its run cache, and never make the true one:

    train begins with lr 0.02 ... params.yaml: lr: 0.01 ... train ends, dvc.lock: lr 0.01, weights of 0.02
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stages.errors import BadInput, Failed
from stages.params import ParamsFile

SHOWN = 3  # keys in a message
ABSENT = "(none)"


def refuse_edited(
    path: Path, then: Mapping[str, Any], sections: Iterable[str] | None = None, kept: bool = True
) -> None:
    """Raises Failed if a key of `sections`, by default of all, is no longer what it was `then`.

    Args:
        kept: whether the work of the stage is in its scratch folder, and is taken from there with the old params.
    """
    put_back = "stays in scratch: `dvc repro` takes it from there if you put them back, or works with new ones"
    what_next = put_back if kept else "is not published; `dvc repro` works with those that are there now"
    try:
        now = ParamsFile(path).values
    except BadInput as error:  # removed, or half edited
        raise Failed(f"{error}; it could be read when the stage began, whose result {what_next}") from None
    names = dict.fromkeys([*then, *now]) if sections is None else sections
    edits = [edit for name in names for edit in differences(then.get(name), now.get(name), name)]
    if edits:
        more = f" and {len(edits) - SHOWN} more" if edits[SHOWN:] else ""
        raise Failed(
            f"{path.name}: edited while the stage ran: {', '.join(edits[:SHOWN])}{more}; the result is of the old "
            f"values and {what_next}"
        )


class Stamp(NamedTuple):
    """What is another as soon as a file is written or replaced."""

    n_bytes: int
    written_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """None where the file is not there any more."""
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)


def refuse_rewritten(path: Path, then: Stamp | None) -> None:
    """Raises Failed if a file of the user's is no longer what it was `then`."""
    now = Stamp.of(path)
    if now != then:
        what = "removed" if now is None else "changed" if then else "put there"
        raise Failed(f"{path}: {what} while the stage read; the same command reads it as it is now")


def differences(then: Any, now: Any, name: str) -> Iterator[str]:
    """Example: "train.lr from 0.02 to 0.01" for each value that differs. A section without keys is as good as none."""
    if isinstance(then, Mapping) or isinstance(now, Mapping):
        then, now = then or {}, now or {}
        if isinstance(then, Mapping) and isinstance(now, Mapping):
            for key in dict.fromkeys([*then, *now]):
                yield from differences(then.get(key, ABSENT), now.get(key, ABSENT), f"{name}.{key}")
            return
    if then != now:
        yield f"{name} from {_short(then)} to {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}.."
