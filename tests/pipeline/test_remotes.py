"""DVC remotes: what one clone has pushed, another one pulls, and then has nothing to do (docs/remotes.md)."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pipeline.tiny_repository import command, dvc


def clone_of(repository: Path, tmp_path: Path) -> Path:
    """A fresh clone, after every stage has run in `repository` and its results were pushed to a folder."""
    dvc(repository, "remote", "add", "--default", "folder", str(tmp_path / "remote"))
    dvc(repository, "repro")
    dvc(repository, "push", "--quiet")
    command(repository, "git", "add", "--all")
    command(repository, "git", "commit", "--quiet", "--message", "results and remote")
    command(tmp_path, "git", "clone", "--quiet", str(repository), str(tmp_path / "clone"))
    return tmp_path / "clone"


def test_a_fresh_clone_pulls_from_a_folder_and_has_nothing_to_do(repository: Path, tmp_path: Path) -> None:
    clone = clone_of(repository, tmp_path)
    dvc(clone, "pull", "--quiet", "last")  # one stage alone
    assert [path.name for path in (clone / "out").iterdir() if path.name != ".gitignore"] == ["last"]
    dvc(clone, "pull", "--quiet")
    said = dvc(clone, "repro")
    assert "Running stage" not in said and "Data and pipelines are up to date." in said
    assert (clone / "out/last").read_bytes() == (repository / "out/last").read_bytes()
    assert json.loads(dvc(clone, "status", "--json")) == {}


def test_what_is_not_pushed_is_not_missed(repository: Path, tmp_path: Path) -> None:
    graph = repository / "dvc.yaml"
    graph.write_text(graph.read_text().replace("outs: [out/right]", "outs: [{out/right: {push: false}}]"))
    clone = clone_of(repository, tmp_path)
    dvc(clone, "pull", "--quiet", "--allow-missing")
    said = dvc(clone, "repro", "--allow-missing")
    assert "Running stage" not in said and "Data and pipelines are up to date." in said
    assert not (clone / "out/right").exists() and (clone / "out/last").exists()
