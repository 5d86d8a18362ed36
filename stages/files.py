"""Files that are whole or not there, and what names their content."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import xxhash

RECORD = "whole.json"  # in a folder of results: sizes and times of its files (stages/tasks.py), which are no content


def content_hash(path: Path) -> str:
    """A hash of a file, or of the names and contents below a folder."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != RECORD)
        parts = [f"{p.relative_to(path)}:{content_hash(p)}" for p in files]
        return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Forces a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """JSON with sorted keys and a final newline, so that equal values are equal bytes; whole or not there."""
    beside = path.with_name(path.name + ".partial")
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(path)
