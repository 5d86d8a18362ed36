"""DVC remotes: what one clone has pushed, another one pulls, and then has nothing to do (docs/remotes.md)."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pipeline.tiny_repository import command, dvc


def test_a_fresh_clone_pulls_from_a_folder_and_has_nothing_to_do(repository: Path, tmp_path: Path) -> None:
    remote, clone = tmp_path / "remote", tmp_path / "clone"
    dvc(repository, "remote", "add", "--default", "folder", str(remote))
    dvc(repository, "repro")
    dvc(repository, "push", "--quiet")
    command(repository, "git", "add", "--all")
    command(repository, "git", "commit", "--quiet", "--message", "results and remote")

    command(tmp_path, "git", "clone", "--quiet", str(repository), str(clone))
    dvc(clone, "pull", "--quiet", "last")  # one stage alone
    assert [path.name for path in (clone / "out").iterdir() if path.name != ".gitignore"] == ["last"]
    dvc(clone, "pull", "--quiet")
    said = dvc(clone, "repro")
    assert "Running stage" not in said and "Data and pipelines are up to date." in said
    assert (clone / "out/last").read_bytes() == (repository / "out/last").read_bytes()
    assert json.loads(dvc(clone, "status", "--json")) == {}
