"""Compiled kernels are found again by the content of every file that decides what they compute."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages import compiled


@pytest.mark.parametrize("changed", ["kernel.py", "constants.py", "rules.py", "shared.py"])
def test_a_changed_file_that_a_kernel_reads_compiles_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    shared, folder = tmp_path / "stages", tmp_path / "stages/clean"
    folder.mkdir(parents=True)
    monkeypatch.setattr(compiled, "SHARED", shared)
    uses = "from stages.compiled import kernel\n"
    (folder / "kernel.py").write_text(uses + "from stages.clean.constants import ONE\nfrom stages.clean import rules\n")
    (folder / "constants.py").write_text("ONE = 1\n")
    (folder / "rules.py").write_text("TWO = 2\n")
    (folder / "other.py").write_text("THREE = 3\n")
    (shared / "shared.py").write_text(uses)
    before = compiled.source_digest.__wrapped__(folder)
    (folder / "other.py").write_text("THREE = 4\n")
    assert compiled.source_digest.__wrapped__(folder) == before, "no kernel reads it"
    path = next(place / changed for place in (folder, shared) if (place / changed).is_file())
    path.write_text(path.read_text() + "# changed\n")
    assert compiled.source_digest.__wrapped__(folder) != before


def test_the_rules_of_clean_are_among_what_its_kernels_read() -> None:
    modules = list(compiled.imported_modules(Path("stages/clean/judge.py").read_text("utf-8")))
    assert "stages/clean/rules.py" in modules
