"""How DVC puts files of its cache into the workspace here: the cheapest way that the file system has.

`dvc checkout` copies by default where it cannot reflink; on ext4 that is 4.1 GB of disk for 2 GB of data.
So `make setup` runs this file: it tries each way between the cache and the workspace, and where reflinks
do not work it writes `cache.type = hardlink,symlink` into .dvc/config.local, which is in no commit.
With hard links the files in data/ are read-only: the stages replace files and never write into them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.dvc_program import dvc, dvc_setting

CLONE_FILE = 0x40049409  # FICLONE of linux/fs.h
CHEAP_LINKS = "hardlink,symlink"


def reflink(source: Path, target: Path) -> None:
    """A copy that shares its blocks until one of the two is written."""
    with source.open("rb") as read, target.open("wb") as written:
        fcntl.ioctl(written.fileno(), CLONE_FILE, read.fileno())


def symlink(source: Path, target: Path) -> None:
    target.symlink_to(source)


WAYS: dict[str, Callable[[Path, Path], None]] = {"reflink": reflink, "hardlink": os.link, "symlink": symlink}


def probe(cache: Path, workspace: Path) -> list[str]:
    """The ways that work from a file in `cache` to one in `workspace`, the cheapest first.

    Example: ["reflink", "hardlink", "symlink"] on btrfs and XFS, ["hardlink", "symlink"] on ext4,
    ["symlink"] where the cache is on another disk.
    """
    working = []
    with tempfile.TemporaryDirectory(dir=cache) as held, tempfile.TemporaryDirectory(dir=workspace) as seen:
        source = Path(held) / "source"
        source.write_bytes(b"millrace" * 1024)
        for name, link in WAYS.items():
            with contextlib.suppress(OSError):
                target = Path(seen) / name
                link(source, target)
                if target.read_bytes() == source.read_bytes():
                    working.append(name)
    return working


def cache_folder(root: Path) -> Path:
    """Where DVC keeps its cache for this repository."""
    answer = dvc(root, "cache", "dir")
    return root / (answer.stdout.strip() if answer.returncode == 0 else ".dvc/cache")


def configured(root: Path) -> str:
    """`cache.type` as DVC resolves it; empty means its default, reflink and else copy."""
    return dvc_setting(root, "cache.type")


def configure(root: Path) -> str:
    """Writes .dvc/config.local where reflinks do not work and nobody has chosen; tells what holds now."""
    cache = cache_folder(root)
    cache.mkdir(parents=True, exist_ok=True)
    working = probe(cache, root)
    chosen = configured(root)
    if chosen:
        return f"cache.type is {chosen}; works here: {', '.join(working) or 'copy'}"
    if "reflink" in working or not working:
        return f"DVC {'reflinks' if working else 'copies'} files from its cache; nothing to set"
    dvc(root, "config", "--local", "cache.type", CHEAP_LINKS).check_returncode()
    return f"no reflinks here: cache.type = {CHEAP_LINKS} is set in .dvc/config.local"


if __name__ == "__main__":
    print(configure(Path.cwd()))
