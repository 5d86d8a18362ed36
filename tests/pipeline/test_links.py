"""pipeline.links: what the file system can do, and what is written into .dvc/config.local."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline import links
from tests.pipeline.tiny_repository import dvc


def test_links_work_on_every_file_system_of_linux(tmp_path: Path) -> None:
    working = links.probe(tmp_path, tmp_path)
    assert working[-2:] == ["hardlink", "symlink"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system here")
def test_no_hard_link_goes_to_another_file_system(tmp_path: Path) -> None:
    assert links.probe(Path("/dev/shm"), tmp_path) == ["symlink"]


def test_the_cheap_way_is_set_once_and_kept(repository: Path) -> None:
    copies = "reflink" not in links.probe(repository, repository)
    assert links.configure(repository).startswith("no reflinks here" if copies else "DVC reflinks")
    local = repository / ".dvc" / "config.local"
    assert local.exists() == copies
    dvc(repository, "config", "--local", "cache.type", "copy")
    assert links.configure(repository).startswith("cache.type is copy; works here: ")
    assert links.configured(repository) == "copy"


def test_dvc_then_links(repository: Path) -> None:
    links.configure(repository)
    dvc(repository, "repro", "--quiet", "code")
    out = repository / "out" / "code"
    if "reflink" not in links.probe(repository, repository):
        assert out.stat().st_nlink == 2
    shutil.rmtree(repository / "out")
