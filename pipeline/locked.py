"""What dvc.lock says of the last run of each stage, and whether a file is still what it says, found cheaply.

`dvc status` costs more than a second of loading DVC. Most of what it tells can be had without:

    linked       a file that is one with its entry of the cache (hard link or symlink) has not changed
    size         another size is another content
    hash         a small file is read and hashed
    unchecked    a large file that is a copy (or a reflink) of the right size: it would have to be read

`Locked.state` answers same, changed, missing or unchecked; whoever asks says what was unchecked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.dvc_cache import cache_in
from stages.errors import BadInput

State = Literal["same", "changed", "missing", "unchecked"]
HASHED_BYTES = 32 << 20  # of one file or one folder: more is not read


class Locked:
    """dvc.lock of a repository, and its cache.

    Attributes:
        stages: what dvc.lock says of each stage that ran, by name.
        cache: the folder of the DVC cache.
    """

    def __init__(self, root: Path, text: str | None = None):
        """`text` is a dvc.lock of another revision; else that of the workspace is read."""
        self.root = root
        self.cache = cache_in(root)
        path = root / "dvc.lock"
        if text is None:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        try:
            content = YAML(typ="safe").load(text) or {}
            self.stages: Mapping[str, Mapping[str, Any]] = content.get("stages", {})
        except (YAMLError, AttributeError):
            raise BadInput("dvc.lock: not valid YAML (after a merge?); `git checkout dvc.lock` takes it back") from None

    def files(self, stage: str, kind: Literal["deps", "outs"]) -> dict[str, Mapping[str, Any]]:
        """What a stage read or wrote when it ran last: path to {md5, size, nfiles}."""
        return {entry["path"]: entry for entry in self.stages.get(stage, {}).get(kind, [])}

    def content(self, path: str, md5: str) -> bytes | None:
        """The bytes with this hash: from the cache, or from the workspace where it still has them."""
        for place in (self.entry(md5), self.root / path):
            try:
                content = place.read_bytes()
            except OSError:
                continue
            if hashlib.md5(content, usedforsecurity=False).hexdigest() == md5:
                return content
        return None

    def entry(self, md5: str) -> Path:
        """Where the cache keeps what has this hash."""
        return self.cache / "files" / "md5" / md5[:2] / md5[2:]

    def state(self, path: str, locked: Mapping[str, Any]) -> State:
        """Whether the file or folder is what dvc.lock says of it."""
        place = self.root / path
        if not place.exists():
            return "missing"
        md5, size = locked.get("md5"), locked.get("size")
        if md5 is None:  # an output without cache, or something that is no file
            return "unchecked"
        if place.is_dir() != md5.endswith(".dir"):
            return "changed"
        return self._folder_state(place, md5, size) if place.is_dir() else self._file_state(place, md5, size)

    def _file_state(self, place: Path, md5: str, size: int | None) -> State:
        found = place.stat()
        try:
            if os.path.samestat(found, self.entry(md5).stat()):
                return "same"
        except OSError:
            pass  # not in the cache
        if size is not None and found.st_size != size:
            return "changed"
        if found.st_size > HASHED_BYTES:
            return "unchecked"
        return "same" if file_md5(place) == md5 else "changed"

    def _folder_state(self, place: Path, md5: str, size: int | None) -> State:
        found = dict(folder_files(self.root, place))
        entry = self.entry(md5)
        if entry.exists():
            listed = {item["relpath"]: item["md5"] for item in json.loads(entry.read_bytes())}
            if listed.keys() != found.keys():
                return "changed"
            states = {self._file_state(found[name], listed[name], None) for name in listed}
            return next((state for state in ("changed", "unchecked") if state in states), "same")
        total = sum(path.stat().st_size for path in found.values())
        if size is not None and total != size:
            return "changed"
        if total > HASHED_BYTES:
            return "unchecked"
        return "same" if folder_md5(found) == md5 else "changed"


def file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def folder_md5(files: Mapping[str, Path]) -> str:
    """The hash that DVC gives a folder: of the list of its files, by name."""
    listed = [{"md5": file_md5(path), "relpath": name} for name, path in sorted(files.items())]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def folder_files(root: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """The files below a folder that DVC looks at: name within the folder, and path."""
    import pathspec

    lines = root / ".dvcignore"
    patterns = lines.read_text(encoding="utf-8").splitlines() if lines.exists() else []
    ignored = pathspec.PathSpec.from_lines("gitwildmatch", [".git", ".hg", ".dvc", *patterns])
    inside = folder.is_relative_to(root)
    for path in sorted(folder.rglob("*")):
        seen_as = path.relative_to(root if inside else folder).as_posix()
        if path.is_file() and not ignored.match_file(seen_as):
            yield path.relative_to(folder).as_posix(), path
