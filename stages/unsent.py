"""What did not reach MLflow by the end of a stage: kept in a folder, and sent by a later process.

    .dvc/tmp/millrace/unsent/9f2c41d07be35a68-train-1763812345678/
        unsent.json     the run's identity and address, its points, figures and status
        0/loss.csv      its files, as hard links: a stage replaces its outputs and never writes into them

The next stage that writes to the same address sends it first, oldest first, so that what training said about
itself stays the first word; so does `millrace promote`. Sent twice, because a process died in between, it
stands there once: points whose step the run has are left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.files import write_json
from stages.mlflow_store import (
    MOST_METRICS,
    Address,
    Artifact,
    Identity,
    Point,
    Results,
    Store,
    Text,
    Write,
    refused,
)
from stages.progress import say
from stages.store import link_file

FILE = "unsent.json"


@dataclasses.dataclass(frozen=True)
class Unsent:
    """The rest of one process's writes to one run; times in milliseconds."""

    identity: Identity
    start: int
    end: int
    status: str
    points: list[Point]
    writes: list[Write]


def keep(base: Path, address: Address, stage: str, unsent: Unsent) -> Path:
    """Writes a folder below `base`, beside and then renamed; its files may be replaced afterwards."""
    folder = base / f"{unsent.identity.key}-{stage}-{time.time_ns() // 1_000_000}"
    beside = folder.with_name(f"{folder.name}.partial")
    beside.mkdir(parents=True)
    writes = [_described(write, beside / str(number)) for number, write in enumerate(unsent.writes)]
    described = {
        "uri": address.uri,
        "identity": dataclasses.asdict(unsent.identity),
        "start": unsent.start,
        "end": unsent.end,
        "status": unsent.status,
        "points": [dataclasses.astuple(point) for point in unsent.points],
        "writes": [write for write in writes if write],
    }
    write_json(beside / FILE, described)
    beside.replace(folder)
    return folder


def send_all(base: Path, address: Address) -> int:
    """Sends what waits for this address, oldest first, and removes it; the number of folders sent.

    Raises:
        Exception: whatever MLflow raises. What was not sent stays.
    """
    sent = 0
    for folder in waiting(base, address):
        with contextlib.ExitStack() as held:
            try:
                file = held.enter_context((folder / FILE).open(encoding="utf-8"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (FileNotFoundError, BlockingIOError):  # another process has sent it, or is sending it
                continue
            if (folder / FILE).exists():
                _send(_read(folder, json.load(file)), address)
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(folder)
                sent += 1
    return sent


def waiting(base: Path, address: Address) -> list[Path]:
    """The folders for this address, oldest first."""
    found = [path.parent for path in base.glob(f"*/{FILE}") if path.parent.suffix != ".partial"]
    mine = [folder for folder in found if _uri(folder) == address.uri]
    return sorted(mine, key=lambda folder: folder.name.rsplit("-", 1)[1])


def _uri(folder: Path) -> str | None:
    """Where the folder is to be sent; None where another process has sent and removed it by now."""
    try:
        return str(json.loads((folder / FILE).read_text(encoding="utf-8"))["uri"])
    except FileNotFoundError:
        return None


def _send(unsent: Unsent, address: Address) -> None:
    store = Store(address, unsent.identity, unsent.start)
    store.open()
    for first in range(0, len(unsent.points), MOST_METRICS):
        store.write_points(unsent.points[first : first + MOST_METRICS])
    for write in unsent.writes:
        try:
            store.write(write)
        except Exception as error:
            if not refused(error):
                raise
            say(f"MLflow at {address.uri}: refused what an earlier stage left ({error}); it is dropped")
    store.end(unsent.status, unsent.end)


def _described(write: Write, place: Path) -> dict[str, Any] | None:
    """A write as JSON, its files linked into `place`; None if they are gone."""
    if not isinstance(write, Artifact):
        return {"kind": type(write).__name__, **dataclasses.asdict(write)}
    if not write.path.exists():
        return None
    copy = place / write.path.name
    for source, target in _files(write.path, copy):
        target.parent.mkdir(parents=True, exist_ok=True)
        link_file(source, target)
    return {"kind": "Artifact", "path": f"{place.name}/{write.path.name}", "folder": write.folder}


def _files(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    if source.is_file():
        yield source, target
    for path in source.rglob("*"):
        if path.is_file():
            yield path, target / path.relative_to(source)


def _read(folder: Path, described: dict[str, Any]) -> Unsent:
    return Unsent(
        Identity(**described["identity"]),
        described["start"],
        described["end"],
        described["status"],
        [Point(*point) for point in described["points"]],
        list(_writes(folder, described["writes"])),
    )


def _writes(folder: Path, described: Sequence[dict[str, Any]]) -> Iterator[Write]:
    for one in described:
        if one["kind"] == "Artifact":
            yield Artifact(folder / one["path"], one["folder"])
        elif one["kind"] == "Results":
            yield Results(one["values"])
        else:
            yield Text(one["folder"], one["name"], one["text"])
