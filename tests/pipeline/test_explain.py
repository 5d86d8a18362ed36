"""pipeline.explain: why a stage would run again, held against what DVC itself says."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.explain import Reason, explain, lines_of, own_names, reasons
from pipeline.locked import file_md5, folder_md5
from tests.pipeline.tiny_repository import command, dvc

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run_once(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny repository after one `dvc repro`."""
    root = shutil.copytree(template, tmp_path_factory.mktemp("ran") / "repository")
    dvc(root, "repro", "--quiet")
    return root


@pytest.fixture
def ran(run_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run_once, tmp_path / "repository")


def said(root: Path, stage: str) -> list[str]:
    return [str(reason) for reason in reasons(root, stage)]


def test_each_kind_of_reason_is_one_line(ran: Path) -> None:
    assert {stage: said(ran, stage) for stage in ("code", "left", "right", "join", "last")} == {
        "code": [], "left": [], "right": [], "join": [], "last": [],
    }  # fmt: skip
    params, graph = ran / "params.yaml", ran / "dvc.yaml"
    params.write_text(params.read_text().replace("amount: 1", "amount: 2") + "  more: [a]\n")
    graph.write_text(graph.read_text().replace("join out/left out/right", "join out/right out/left"))
    (ran / "inputs" / "b.txt").write_text("b")
    (ran / "out" / "right").unlink()
    assert said(ran, "left") == [
        "param left.amount: 1 -> 2",
        'param left.more: not there -> ["a"]',
        "file inputs: changed",
    ]
    assert said(ran, "right") == ["output out/right: missing"]
    assert said(ran, "join") == [
        "command: exec python stage.py join out/left out/right -> exec python stage.py join out/right out/left",
        "file out/right: missing",
    ]
    assert said(ran, "last") == []
    status = json.loads(dvc(ran, "status", "--json"))
    assert {stage for stage in ("left", "right", "join", "last") if said(ran, stage)} | {"code"} == status.keys()
    assert [str(reason) for reason in reasons(ran, "join", status)] == said(ran, "join")


def test_a_stage_that_never_ran(repository: Path) -> None:
    assert reasons(repository, "left") == [Reason("never ran", "left")]
    assert list(lines_of(explain(repository, "left"))) == [
        "no stage has run in this clone: `dvc repro left` runs code, left"
    ]
    (repository / "out" / "code").write_text("a stage has run")
    said = list(lines_of(explain(repository, "left")))
    assert said[:2] == ["left would run, or come from DVC's run cache if it ran so before:", "  never ran"]


def test_a_fresh_clone_is_one_line_and_not_a_list_of_what_is_missing(ran: Path) -> None:
    shutil.rmtree(ran / "out")
    assert list(lines_of(explain(ran, "join"))) == [
        "no stage has run in this clone: `dvc repro join` runs code, left, right, join; dvc.lock is of a run "
        "elsewhere, see `dvc pull`"
    ]


def test_what_stands_before_and_after(ran: Path) -> None:
    (ran / "inputs" / "a.txt").write_text("other")
    found = explain(ran, "join")
    assert not found.reasons and list(found.before) == ["left"] and found.after == ["last"]
    assert list(lines_of(found)) == [
        "join is as it ran last, but waits for stages that would run:",
        "  before it left: file inputs: changed",
        "  join runs where what they make differs from what it read last",
    ]


def test_what_is_too_large_to_be_read_is_named(ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.locked.HASHED_BYTES", 0)
    copy = ran / "out" / "join"
    content = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(content)  # a copy of the right size, no link to the cache
    found = explain(ran, "last")
    assert not found.reasons and "out/join" in found.unchecked
    assert f"not read (large, no links to the cache): {', '.join(found.unchecked)}" in list(lines_of(found))[-1]


def test_our_hash_of_a_folder_is_that_of_dvc(ran: Path) -> None:
    (ran / "inputs" / "sub").mkdir()
    for name in ("b.txt", "sub/c.txt", "sub.txt", "a-a.txt"):
        (ran / "inputs" / name).write_text(name)
    dvc(ran, "repro", "--quiet", "left")
    locked = YAML(typ="safe").load((ran / "dvc.lock").read_text())["stages"]["left"]["deps"]
    folder = ran / "inputs"
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert folder_md5(files) == next(entry["md5"] for entry in locked if entry["path"] == "inputs")


MODULES = {
    "stages/__init__.py": "",
    "stages/one/__init__.py": "",
    "stages/one/__main__.py": "from stages.one.work import f\nf()\n",
    "stages/one/work.py": "def f():\n    return 1\n\nclass C:\n    def g(self):\n        return 2\n",
    "model/__init__.py": "",
    "params.yaml": "one: {a: 1}\n",
    "dvc.yaml": "stages:\n  one: {cmd: x, deps: [data/code/one.json], params: [one]}\n",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """One stage of two modules, with its fingerprint in the cache as after a run."""
    from stages.code.stage import fingerprint
    from stages.files import write_json
    from stages.fingerprint.imports import Project

    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    made = tmp_path / "data" / "code" / "one.json"
    made.parent.mkdir(parents=True)
    write_json(made, fingerprint(Project(tmp_path), "one"))
    md5 = file_md5(made)
    entry = tmp_path / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    entry.parent.mkdir(parents=True)
    shutil.copy(made, entry)
    dep = {"path": "data/code/one.json", "md5": md5, "size": made.stat().st_size}
    lock = {"stages": {"one": {"cmd": "x", "deps": [dep], "params": {"params.yaml": {"one": {"a": 1}}}}}}
    with (tmp_path / "dvc.lock").open("w") as file:
        YAML(typ="safe").dump(lock, file)
    return tmp_path


def test_code_is_told_by_function(project: Path) -> None:
    assert said(project, "one") == []
    work = project / "stages/one/work.py"
    work.write_text("# a comment\n" + work.read_text())
    assert said(project, "one") == []
    work.write_text(work.read_text().replace("return 2", "return 3") + "\ndef h():\n    return 4\n\nX = 1\n")
    (project / "stages/one/__main__.py").write_text("from stages.one.work import f\nimport stages.one.other\nf()\n")
    (project / "stages/one/other.py").write_text("def o():\n    return 5\n")
    assert said(project, "one") == [
        "code stages.one.__main__: module level changed",
        "code stages.one.other added",
        "code stages.one.work: module level added",
        "code stages.one.work: C.g changed",
        "code stages.one.work: h added",
    ]


def test_parts_of_users_are_found_in_a_pattern_of_either_sign() -> None:
    for pattern in ("full*1,model.mine.Mine*1", "full*1+model.mine.Mine*1"):
        params = {"model": {"layer_pattern": pattern, "norm": "rmsnorm"}, "train": {"hooks": ["stages.own.Hook"]}}
        assert list(own_names(params)) == ["model.mine.Mine", "stages.own.Hook"]
    assert list(own_names({"model": {"layer_pattern": "a.B**2"}})) == []  # the stage `code` refuses it


def test_a_fingerprint_that_is_in_no_cache_still_tells_that_it_differs(project: Path) -> None:
    shutil.rmtree(project / ".dvc")
    (project / "data/code/one.json").unlink()
    assert said(project, "one") == []
    work = project / "stages/one/work.py"
    work.write_text(work.read_text().replace("return 1", "return 7"))
    assert "no function can be named" in said(project, "one")[0]


def test_the_command_loads_nothing_heavy(ran: Path) -> None:
    heavy = "{'torch', 'numpy', 'pyarrow', 'mlflow', 'prefect', 'scipy', 'dvc'}"
    code = (
        f"import sys; from pipeline.cli import cli; cli.main(['explain', 'left', '--json'], standalone_mode=False); "
        f"print({heavy} & set(sys.modules), file=sys.stderr); sys.exit(bool({heavy} & set(sys.modules)))"
    )
    answer = json.loads(command(ran, sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"))
    assert answer.pop("stage") == "left" and answer.pop("after") == ["join", "last"] and not any(answer.values())
