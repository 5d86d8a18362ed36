"""That kernels will be compiled is said once on a machine, before a stage that has some works."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages import compiled
from stages.first_compile import tell_first_compile


def test_it_is_said_where_the_cache_has_no_kernels_of_the_stage_as_they_are_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compiled, "cache_folder", lambda: tmp_path)
    folder = compiled.SHARED / "dedup"
    for _ in range(2):
        tell_first_compile("dedup", folder)
        assert capsys.readouterr().out.startswith("dedup: compiles its kernels first, which takes up to a minute")
        (tmp_path / compiled.source_digest(folder)).mkdir(exist_ok=True)
    (tmp_path / compiled.source_digest(compiled.SHARED)).mkdir()
    tell_first_compile("dedup", folder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("stage", ["clean", "dedup", "tokenizer", "pack"])
def test_who_says_it_is_no_kernel_itself(stage: str) -> None:
    """Else an edit of the stage would compile its kernels anew."""
    source = compiled.SHARED / stage / "stage.py"
    assert "tell_first_compile(" in source.read_text() and compiled.USES not in source.read_bytes()
    assert compiled.USES not in (compiled.SHARED / "first_compile.py").read_bytes()
