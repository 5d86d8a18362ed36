"""stages.fingerprint.memo: files of the project that did not change are not read again, and nothing else differs."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.code.stage import fingerprint
from stages.fingerprint.imports import Project
from stages.fingerprint.memo import Memo

FILES = {
    "stages/__init__.py": "",
    "stages/a/__init__.py": "",
    "stages/a/__main__.py": "from . import work\nwork.f()\n",
    "stages/a/work.py": "import importlib\n\ndef f():\n    importlib.import_module('model.named')\n",
    "model/__init__.py": "",
    "model/named.py": "x = 1\n",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def with_memo(root: Path) -> tuple[dict, list[str]]:
    """The fingerprint with the memo, and the modules that were read for it."""
    memo = Memo(root / "memo" / "modules.json")
    project = Project(root, memo)
    found = fingerprint(project, "a")
    memo.save()
    return found, sorted(project._trees)


def test_only_what_changed_is_read(root: Path) -> None:
    plain = fingerprint(Project(root), "a")
    assert with_memo(root) == (plain, sorted(["stages", "stages.a", "stages.a.__main__", "stages.a.work", "model",
                                              "model.named"]))  # fmt: skip
    assert with_memo(root) == (plain, [])
    (root / "model" / "named.py").write_text("x = 2\n")
    changed, read = with_memo(root)
    assert read == ["model.named"] and changed == fingerprint(Project(root), "a") != plain


def test_a_new_file_that_a_string_names_is_found(root: Path) -> None:
    (root / "model" / "named.py").unlink()
    without, _ = with_memo(root)
    (root / "model" / "named.py").write_text("x = 1\n")
    found, _ = with_memo(root)
    assert "model.named" in found["modules"] and "model.named" not in without["modules"]


@pytest.mark.parametrize("kept", ["", "[]", '{"reader": "another Python", "readings": {}}'])
def test_a_memo_that_is_of_no_use_is_not_used(root: Path, kept: str) -> None:
    (root / "memo").mkdir()
    (root / "memo" / "modules.json").write_text(kept)
    assert with_memo(root)[0] == fingerprint(Project(root), "a")


def test_a_file_saved_while_it_is_read_is_kept_as_one_content(tmp_path: Path) -> None:
    """Parsed by one look and hashed by another, an edit got the hashes of what stood there before, for good."""
    (tmp_path / "stages").mkdir()
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "part.py"
    path.write_text("x = 1\n")
    memo = Memo(tmp_path / "memo.json")
    project = Project(tmp_path, memo)
    project.tree("model.part")
    path.write_text("x = 2\n")
    project.hashes("model.part")
    memo.save()
    assert Project(tmp_path, Memo(tmp_path / "memo.json")).hashes("model.part") == Project(tmp_path).hashes(
        "model.part"
    )
