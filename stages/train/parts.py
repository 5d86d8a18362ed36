"""Checkpoints of a model in parts (sharding.py): every rank writes its rows, any number of ranks reads those it needs.

    model-00001-of-00002.safetensors    rows 0, 1, 2 of a tensor of 5 rows on 2 ranks, and what does not lie in parts
    model-00002-of-00002.safetensors    rows 3, 4
    manifest.json                       size and sha256 of all files, written last, by the first rank

A rank notes size and sha256 of its files beside them when they are on the disk. The first rank waits for the notes of
all, writes the manifest and gives the folder its name, so that a kill at any moment leaves it whole or not there. It
waits as long as the files of a rank grow, and somewhat longer.

`Stored` is a tensor in such files, or in one: 3 ranks that go on from the files above read rows 0 and 1, 2 and 3, 4.
What train publishes is joined: the bytes of the rows end to end, behind a header, are the file of the whole tensors.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.checkpoint import MANIFEST, described, partial_of, seal, write_tables, write_tensors
from stages.files import sync, write_json
from stages.weights_file import read_header, readable

PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
POLL = 0.02  # seconds between looks for the notes of other ranks
PATIENCE = 120.0  # seconds for which the files of a rank may stay as they are
GRACE = 5.0  # the same when the training ends
SLOWEST = 1e8  # bytes a second of a disk and of sha256: a rank has so long in addition, as then files do not grow
CHUNK = 1 << 24  # bytes


def part_name(name: str, rank: int, world: int) -> str:
    return f"{name}-{rank + 1:05}-of-{world:05}"


def parts_of(folder: Path, name: str) -> list[Path]:
    """The files of NAME in a checkpoint, in the order of their rows; none if it holds nothing by that name."""
    if (whole := folder / f"{name}.safetensors").exists():
        return [whole]
    return sorted(path for path in folder.iterdir() if (found := PART.fullmatch(path.name)) and found[1] == name)


class Stored:
    """A tensor of a checkpoint, of which the rows that are asked for are read.

    Args:
        files: those that hold rows of it, in the order of the rows; as `safetensors.safe_open` opens them.
    """

    def __init__(self, name: str, files: Sequence[Any]):
        self._name, self._files = name, files
        self.ndim = len(files[0].get_slice(name).get_shape())

    def whole(self) -> Tensor:
        found = [file.get_tensor(self._name) for file in self._files]
        return found[0] if len(found) == 1 else torch.cat(found)

    def __getitem__(self, rows: slice) -> Tensor:
        """The rows from `start` to `stop`, as far as they are there."""
        pieces = [file.get_slice(self._name) for file in self._files]
        sizes = [piece.get_shape()[0] for piece in pieces]
        start, stop, _ = rows.indices(sum(sizes))
        found, before = [], 0
        for piece, size in zip(pieces, sizes, strict=True):
            first, last = max(start - before, 0), min(stop - before, size)
            if first < last:
                found.append(piece[first:last])
            before += size
        return torch.cat(found) if found else pieces[0][0:0]


def stored(folder: Path, name: str) -> dict[str, Stored]:
    """The tensors of NAME.safetensors in a checkpoint, whole or in parts; nothing is read yet."""
    from safetensors import safe_open

    files: dict[str, list[Any]] = {}
    for path in parts_of(folder, name):
        opened = safe_open(path, framework="pt")
        for key in opened.keys():  # noqa: SIM118  # not a mapping
            files.setdefault(key, []).append(opened)
    return {key: Stored(key, found) for key, found in files.items()}


def write_part(folder: Path, files: Mapping[str, Mapping[str, Tensor]], rank: int, world: int) -> None:
    """Writes the files of a rank that is not the first, and its note: that they are on the disk, or what the system
    refused. Then they go again, so that on a full disk the note has room, and the first rank tells it."""
    beside = partial_of(folder)
    beside.mkdir(parents=True, exist_ok=True)
    paths = [beside / f"{part_name(name, rank, world)}.safetensors" for name in files]
    try:
        for path, tensors in zip(paths, files.values(), strict=True):
            write_tensors(path, tensors)
            sync(path)
        content: dict[str, Any] = {"files": {path.name: described(path) for path in paths}}
    except OSError as error:
        for path in paths:
            path.unlink(missing_ok=True)
        content = {"error": [error.errno, error.strerror, error.filename]}
    write_json(_note(folder, rank), content)


def save_parts(
    folder: Path, files: Mapping[str, Mapping[str, Tensor]], config: dict[str, Any], state: dict[str, Any],
    origin: dict[str, Any], tables: Mapping[str, bytes], world: int, closing: threading.Event,
) -> bool:  # fmt: skip
    """What the first rank does: its own files, what is no tensor, and, once the others are done, the manifest.

    Returns:
        Whether the checkpoint is there: not if the training ends and a rank is no more.

    Raises:
        OSError: some rank could not write its part, or does not write.
    """
    beside = partial_of(folder)
    beside.mkdir(parents=True, exist_ok=True)
    for name, tensors in files.items():
        write_tensors(beside / f"{part_name(name, 0, world)}.safetensors", tensors)
    write_tables(beside, config, state, origin, tables)
    others = gather_notes(folder, list(files), world, closing)
    if others is None:
        shutil.rmtree(beside, ignore_errors=True)  # a rank that lives after all may still write there
        return False
    seal(folder, others)
    return True


def _note(folder: Path, rank: int) -> Path:
    return partial_of(folder) / f"rank-{rank:05}.note"


def gather_notes(
    folder: Path, names: Sequence[str], world: int, closing: threading.Event
) -> dict[str, Any] | None:  # fmt: skip
    """What the manifest says about the files of all ranks but the first, once all of them are there; the notes go.
    None if the training ends and some rank is no more.

    Args:
        names: of the files that every rank writes, without their numbers.

    Raises:
        OSError: some rank could not write its part, or does not write.
    """
    files: dict[str, Any] = {}
    for rank in range(1, world):
        if not _note_comes(folder, names, rank, world, closing):
            return None
        path = _note(folder, rank)
        content = json.loads(path.read_text(encoding="utf-8"))
        if "error" in content:
            raise OSError(*content["error"])
        files |= content["files"]
        path.unlink()
    return files


def _note_comes(folder: Path, names: Sequence[str], rank: int, world: int, closing: threading.Event) -> bool:
    """Waits for the note of a rank as long as its files grow. False if they do not and the training ends.

    Raises:
        TimeoutError: they do not, and the training goes on or waits for this very save.
    """
    path = _note(folder, rank)
    paths = [path.with_name(f"{part_name(name, rank, world)}.safetensors") for name in names]
    seen: tuple[object, ...] = ()
    while not path.exists():
        now, ending = time.monotonic(), closing.is_set()
        sizes = [_size_and_time(part) for part in paths]
        if seen != (found := (ending, *sizes)):
            seen, since = found, now
        allowed = (GRACE if ending else PATIENCE) + sum(size for size, _ in sizes) / SLOWEST
        if now - since > allowed:
            if ending:
                return False
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"rank {rank} of ranks 0 to {world - 1} has written nothing into {path.parent} for {allowed:.0f} s; "
                "see in its output why it ended, or whether its host reaches that folder; the same command goes on "
                "from the newest checkpoint",
                path.parent.name,  # relative: no fault of the folder that execution.scratch names
            )
        time.sleep(POLL)
    return True


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of the last write; 0 before there is a file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def publish(source: Path, target: Path) -> None:
    """The checkpoint under another name: its files as hard links where the file system has them, its parts joined."""
    names = {found[1] for path in source.iterdir() if (found := PART.fullmatch(path.name))}
    if not names:
        shutil.copytree(source, target, copy_function=_link)
        return
    beside = partial_of(target)
    beside.mkdir()
    for path in source.iterdir():
        if path.name != MANIFEST and not PART.fullmatch(path.name):
            _link(str(path), str(beside / path.name))
    for name in sorted(names):
        join(parts_of(source, name), beside / f"{name}.safetensors")
    seal(target)


def _link(one: str, other: str) -> None:
    try:
        os.link(one, other)
    except OSError:
        shutil.copyfile(one, other)


def join(parts: Sequence[Path], target: Path) -> None:
    """One file of safetensors of the rows of several, byte for byte what safetensors itself writes for whole tensors.
    Nothing is held in memory."""
    headers = [read_header(path) for path in parts]
    names = sorted(headers[0], key=lambda name: headers[0][name].first)  # the first rank has some rows of all
    entries, end = {}, 0
    for name in names:
        pieces = [header[name] for header in headers if name in header]
        n_bytes = sum(piece.end - piece.first for piece in pieces)
        shape = list(pieces[0].shape)
        if shape:
            shape[0] = sum(piece.shape[0] for piece in pieces)
        entries[name] = {"dtype": pieces[0].dtype, "shape": shape, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for path, header in zip(parts, headers, strict=True):
                if name in header:
                    _copy_bytes(path, header[name].first, header[name].end, out)
    readable(target)


def _copy_bytes(path: Path, first: int, end: int, out: Any) -> None:
    with path.open("rb") as file:
        file.seek(first)
        while first < end:
            piece = file.read(min(CHUNK, end - first))
            out.write(piece)
            first += len(piece)
