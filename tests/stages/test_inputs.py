"""inputs: what is no file among the user's own is named before anything waits for it or passes over it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.params_view import resolved
from stages.errors import BadInput
from stages.inputs import problem_of_inputs
from stages.sources import find_files, validate
from tests.stages.test_download import download

REPOSITORY = Path(__file__).parents[2]


def odd_inputs(root: Path, kind: str) -> Path:
    inputs = root / "inputs"
    (inputs / "news").mkdir(parents=True)
    (inputs / "news/a.txt").write_text("a text")
    (inputs / "news/b.txt").symlink_to("a.txt")
    odd = inputs / "news/odd.txt"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        os.mknod(odd, stat.S_IFSOCK)
    else:
        odd.symlink_to({"nothing": "nowhere.txt", "circle": "odd.txt", "folder": "../news"}[kind])
    return root


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nothing", "a link to nowhere.txt, which is not there; remove the link, or"),
        ("circle", "a link to odd.txt, which is not there; remove the link, or"),
        ("folder", "a link to a folder, whose files neither DVC nor download would see; let download.inputs name"),
        ("pipe", "a named pipe and no file, which DVC would wait for or refuse; move it out of download.inputs"),
        ("socket", "a socket and no file, which DVC would wait for or refuse; move it out of download.inputs"),
    ],
)
def test_what_is_no_file_is_named_before_anything_waits_for_it(tmp_path: Path, kind: str, words: str) -> None:
    odd_inputs(tmp_path, kind)
    line = rf"^{tmp_path}/inputs/news/odd.txt: {words}"
    with pytest.raises(BadInput, match=line):
        download(tmp_path, source="files")
    checked = list(validate(tmp_path / "inputs", "**/*", "text"))
    assert [file.name for file in checked] == ["news/a.txt", "news/b.txt"], "validate goes on with the others"


@pytest.mark.parametrize("kind", ["nothing", "circle", "pipe"])
def test_the_same_holds_where_params_name_it_itself(tmp_path: Path, kind: str) -> None:
    odd = odd_inputs(tmp_path, kind) / "inputs/news/odd.txt"
    assert str(problem_of_inputs(odd)).startswith(f"{odd}: a ")
    odd.unlink()
    assert problem_of_inputs(odd) is None, "that nothing is there is said by who needs it"
    assert problem_of_inputs(tmp_path / "inputs/news/a.txt") is None


def test_a_name_that_dvc_cannot_record_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "new\nline").mkdir()
    (tmp_path / "new\nline/a\nb.txt").write_text("names of two lines can be recorded")
    assert problem_of_inputs(tmp_path) is None
    (tmp_path / "new\nline" / os.fsdecode(b"caf\xe9.txt")).write_text("this name cannot")
    assert problem_of_inputs(tmp_path) == (
        rf"{tmp_path}/new\nline/caf\udce9.txt: its name is not UTF-8, which DVC cannot record; rename it"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["news", "news/a.txt"])
def test_what_may_not_be_read_is_named(tmp_path: Path, name: str) -> None:
    refused = odd_inputs(tmp_path, "nothing") / "inputs" / name
    mode = refused.stat().st_mode
    refused.chmod(0)
    try:
        assert str(problem_of_inputs(tmp_path / "inputs")).startswith(f"{refused}: may not be read by this user; ")
    finally:
        refused.chmod(mode)


def test_make_repro_looks_before_dvc_does(tmp_path: Path) -> None:
    (odd_inputs(tmp_path, "nothing") / "params.yaml").write_text("download: {inputs: inputs}")
    command = [sys.executable, "-m", "stages.inputs"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2 and found.stderr.startswith(f"millrace: {tmp_path}/inputs/news/odd.txt: a link to")
    (tmp_path / "inputs/news/odd.txt").unlink()
    assert subprocess.run(command, cwd=tmp_path, env=environment, timeout=60).returncode == 0


def test_a_run_is_refused_with_the_line_of_the_param(tmp_path: Path) -> None:
    """By `millrace run` before it starts, and by the stage code."""
    params = YAML(typ="rt").load((REPOSITORY / "params.yaml").read_text())
    with (odd_inputs(tmp_path, "pipe") / "params.yaml").open("w") as file:
        YAML(typ="rt").dump(params, file)
    with pytest.raises(
        BadInput, match=rf"^params.yaml:\d+: download.inputs: {tmp_path}/inputs/news/odd.txt: a named pipe"
    ):
        resolved(tmp_path)


def test_links_to_files_and_hidden_links_to_folders_are_no_problem(tmp_path: Path) -> None:
    inputs = odd_inputs(tmp_path, "nothing") / "inputs"
    (inputs / "news/odd.txt").unlink()
    (inputs / ".git").symlink_to("news")
    assert [file.name for file in find_files(inputs)[0]] == ["news/a.txt", "news/b.txt"]
    (tmp_path / "linked").symlink_to("inputs")
    assert len(find_files(tmp_path / "linked")[0]) == 2, "the folder that params name may be a link itself"
