"""entry: outputs are whole or absent, equal work has one scratch folder, and every end has its code."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from stages import entry
from stages.entry import Job, prepare_job
from stages.errors import BadInput, Stopped
from stages.execution import Execution
from stages.files import write_json
from stages.params import Section
from stages.signals import Signals

REPOSITORY = Path(__file__).parents[2]


class ToyParams(Section):
    amount: int = 1  # of a param named `size` DVC's run cache knows no value: dict_sha256(exclude=["size", "nfiles"])


def toy(job: Job, toy: ToyParams) -> None:
    """A stage of one section."""


def workspace(root: Path, amount: int = 1) -> Path:
    """A repository with one stage, `toy`, that reads the section `toy` and the folder data/input."""
    (root / "data/input").mkdir(parents=True, exist_ok=True)
    (root / "data/input/part").write_text("content")
    (root / "data/code").mkdir(exist_ok=True)
    (root / "data/code/toy.json").write_text("{}")
    (root / "params.yaml").write_text(f"toy: {{amount: {amount}}}\nexecution: {{threads: 1}}\n")
    (root / "dvc.yaml").write_text(
        "stages:\n  toy: {cmd: python toy.py, params: [toy], deps: [data/code/toy.json, data/input]}\n"
    )
    return root


def job_of(root: Path, amount: int = 1) -> Job:
    return prepare_job("toy", toy, workspace(root, amount))


# Publishing


def stage_files(job: Job, version: str) -> None:
    job.prepare()
    (job.staging / "documents").mkdir()
    (job.staging / "documents" / version).write_text(version)
    (job.staging / "weights").write_text(version)
    write_json(job.staging / "manifest.json", version)
    write_json(job.staging / "metrics.json", version)


def published(job: Job) -> dict[str, str]:
    files = sorted(path for path in job.out.rglob("*") if path.is_file())
    return {str(path.relative_to(job.out)): path.read_text().strip().strip('"') for path in files}


def test_what_is_published_replaces_what_was_there(tmp_path):
    job = Job("toy", tmp_path)
    for version in ("old", "new"):
        stage_files(job, version)
        job.publish()
    expected = {"documents/new": "new", "weights": "new", "manifest.json": "new", "metrics.json": "new"}
    assert published(job) == expected
    assert not job.staging.exists()


@pytest.mark.parametrize("n_renames", range(4))
def test_an_interrupted_publish_leaves_no_manifest_beside_other_files(tmp_path, monkeypatch, n_renames):
    job = Job("toy", tmp_path)
    stage_files(job, "old")
    job.publish()
    stage_files(job, "new")
    rename, done = Path.replace, []

    def rename_a_few(path: Path, target: Path) -> Path:
        if len(done) == n_renames:
            raise KeyboardInterrupt
        done.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", rename_a_few)
    with pytest.raises(KeyboardInterrupt):
        job.publish()
    monkeypatch.undo()
    files = published(job)
    assert "metrics.json" not in files and "old" not in {files.get("manifest.json")}
    if "manifest.json" in files:
        assert files == {"documents/new": "new", "weights": "new", "manifest.json": "new"}
    stage_files(job, "new")
    job.publish()
    assert set(published(job).values()) == {"new"}


def test_what_a_killed_run_left_in_staging_is_thrown_away(tmp_path):
    job = Job("toy", tmp_path)
    stage_files(job, "killed")
    job.prepare()
    assert list(job.staging.iterdir()) == []


def test_equal_values_are_equal_bytes(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": "é"})
    write_json(tmp_path / "b", {"a": "é", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == '{\n  "a": "é",\n  "b": 1\n}\n'.encode()


# The digest


def test_the_digest_changes_with_params_inputs_and_code_and_with_nothing_else(tmp_path, monkeypatch):
    original = job_of(tmp_path).digest()
    assert job_of(tmp_path, amount=2).digest() != original
    assert job_of(tmp_path).digest() == original
    monkeypatch.setenv("MILLRACE_EXECUTION__THREADS", "7")
    job = job_of(tmp_path)
    assert job.execution.threads == 7 and job.digest() == original
    for path, text in (("data/input/part", "Content"), ("data/input/more", ""), ("data/code/toy.json", "{ }")):
        job_of(tmp_path)
        before = (tmp_path / path).read_text() if (tmp_path / path).exists() else None
        (tmp_path / path).write_text(text)
        job = Job("toy", tmp_path, inputs=job.inputs, sections=job.sections)
        assert job.digest() != original, path
        (tmp_path / path).unlink() if before is None else (tmp_path / path).write_text(before)
    (tmp_path / "data/input/part").rename(tmp_path / "data/input/renamed")
    assert job.digest() != original


def test_the_digest_does_not_know_where_the_workspace_is(tmp_path):
    assert job_of(tmp_path / "a").digest() == job_of(tmp_path / "b").digest()


# Scratch


def test_scratch_goes_on_and_published_folders_of_other_work_go(tmp_path):
    with job_of(tmp_path).scratch() as folder:
        (folder / "half").touch()
    job = job_of(tmp_path, amount=2)
    with job.scratch() as other:
        stage_files(job, "new")
    with job_of(tmp_path).scratch():
        assert other.exists(), "what is not published stays"
    job_of(tmp_path, amount=2)
    job.publish()
    with job_of(tmp_path).scratch() as again:
        assert again == folder and (again / "half").exists(), "what was begun goes on"
        assert not other.exists(), "what is published goes"
    with job_of(tmp_path, amount=3).scratch():
        assert folder.exists(), "what was begun stays"


def test_a_published_folder_that_another_process_publishes_from_stays(tmp_path):
    with job_of(tmp_path, amount=2).scratch() as other:
        (other / entry.PUBLISHED).touch()
        with job_of(tmp_path).scratch():
            assert other.exists()
    with job_of(tmp_path).scratch():
        assert not other.exists()


def test_scratch_is_where_execution_says_or_in_the_main_repository(tmp_path, monkeypatch):
    with Job("toy", tmp_path, Execution(scratch=str(tmp_path / "disk"))).scratch() as folder:
        assert folder.parent == tmp_path / "disk/toy"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    with Job("toy", tmp_path / "main/.dvc/tmp/exps/tmp1").scratch() as folder:
        assert folder.parent == tmp_path / "main/.dvc/tmp/millrace/toy"


# As a program

PROGRAM = """
    import errno, os, signal, sys, time
    from pathlib import Path
    from stages import entry
    from stages.entry import Job
    from stages.errors import BadInput, Failed
    from stages.params import Section

    class ToyParams(Section):
        amount: int = 1

    def run(job: Job, toy: ToyParams) -> None:
    {body}

    run.__module__ = "stages.toy.stage"
    entry.main(run)
"""
BODIES = {
    "done": "(job.staging / 'out').write_text('x')",
    "bad": "raise BadInput('data/input/part: line 3 is empty; remove it')",
    "failed": "raise Failed('the loss is not finite')",
    "refused": "Path('params.yaml/part').open('w')",
    "full": "Path('/dev/full').open('w', buffering=1).write('x\\n')",
    "wait": "(job.staging / 'out').touch(); Path('started').touch(); [time.sleep(0.01) for _ in range(6000)]",
    "publishing": "entry.sync = lambda path: os.kill(os.getpid(), signal.SIGTERM); (job.staging / 'out').touch()",
    "edited": """
        text = Path('params.yaml').read_text()
        with job.scratch() as folder:
            if not (folder / 'done').exists():
                print('works with', toy.amount)
                (folder / 'done').write_text(str(toy.amount))
                if wish := Path('wish').exists() and Path('wish').read_text():
                    Path('params.yaml').write_text(text.replace(*wish.split(' -> ')))
            (job.staging / 'out').write_text((folder / 'done').read_text())
    """,
    "edited at once": """
        text = Path('params.yaml').read_text()
        Path('params.yaml').write_text(text.replace(*Path('wish').read_text().split(' -> ')))
    """,
    "locked": """
        with job.scratch() as folder:
            print("in scratch", flush=True)
            sys.stdin.readline()
    """,
}


def start(root: Path, body: str, **environment: str) -> subprocess.Popen:
    lines = textwrap.indent(textwrap.dedent(BODIES[body]).strip(), "    ")
    (root / "toy.py").write_text(textwrap.dedent(PROGRAM).replace("{body}", lines))
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "toy.py"], cwd=root, env=variables, text=True, **pipes)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists()


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("done", 0, ""),
        ("bad", 2, "millrace: toy: data/input/part: line 3 is empty; remove it\n"),
        ("failed", 1, "millrace: toy: the loss is not finite\n"),
        ("full", 1, "millrace: toy: the disk is full ("),
        ("refused", 1, "millrace: toy: params.yaml/part: Not a directory\n"),
        ("publishing", 0, ""),
    ],
)
def test_every_end_has_its_code_and_one_line(tmp_path, body, code, line):
    process = start(workspace(tmp_path), body)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.startswith(line) and errors.count("\n") == (1 if line else 0)
    assert (tmp_path / "data/toy/out").exists() == (code == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_stage_and_publishes_nothing(tmp_path, number):
    process = start(workspace(tmp_path), "wait")
    wait_for(tmp_path / "started")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == f"millrace: toy: stopped by {number.name}; the same command goes on from here\n"
    assert not (tmp_path / "data/toy").exists()


def test_under_nohup_a_lost_terminal_stops_nothing(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the process inherits
    try:
        process = start(workspace(tmp_path), "locked")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert process.stdout.readline() == "in scratch\n"
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate("\n", timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_a_scratch_folder_that_cannot_be_made_is_told_with_its_param(tmp_path):
    scratch = workspace(tmp_path) / "params.yaml" / "scratch"
    process = start(tmp_path, "locked", MILLRACE_EXECUTION__SCRATCH=str(scratch))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    problem = f"execution.scratch: {scratch}/toy/tasks: Not a directory; name a folder that can be written"
    assert errors == f"millrace: toy: {problem}\n"


def test_a_second_process_waits_for_the_scratch_folder(tmp_path):
    """As two queued experiments with equal params do, each in its own copy of the repository."""
    first = start(workspace(tmp_path / "a"), "locked", DVC_ROOT=str(tmp_path))
    assert first.stdout.readline() == "in scratch\n"
    second = start(workspace(tmp_path / "b"), "locked", DVC_ROOT=str(tmp_path))
    assert second.stdout.readline().startswith("another process does the same work; waiting")
    first.communicate("\n", timeout=60)
    assert second.stdout.readline() == "in scratch\n"
    second.communicate("\n", timeout=60)
    assert first.returncode == second.returncode == 0


# Params that are edited while a stage runs: DVC reads them when it has ended


def run_with(root: Path, wish: str) -> tuple[int, str, str]:
    """The stage, which works once for each value of its params and there edits params.yaml as wished."""
    (root / "wish").write_text(wish)
    process = start(root, "edited")
    said, errors = process.communicate(timeout=60)
    return process.returncode, said, errors


def test_params_edited_while_the_stage_runs_are_named_and_its_work_is_not_lost(tmp_path):
    code, said, errors = run_with(workspace(tmp_path), "amount: 1 -> amount: 2")
    assert (code, said) == (1, "works with 1\n") and errors.count("\n") == 1
    assert errors.startswith(
        "millrace: toy: params.yaml: edited while the stage ran: toy.amount from 1 to 2; the result"
    )
    assert not (tmp_path / "data/toy/out").exists()
    assert run_with(tmp_path, "")[:2] == (0, "works with 2\n")
    assert (tmp_path / "data/toy/out").read_text() == "2"
    workspace(tmp_path, amount=1)
    assert run_with(tmp_path, "")[:2] == (0, ""), "the work with 1 is taken from scratch"
    assert (tmp_path / "data/toy/out").read_text() == "1"


@pytest.mark.parametrize(
    "wish", ["threads: 1 -> threads: 2", "amount: 1 -> amount: 0x1", "toy: -> other: {key: 1}\ntoy:"]
)
def test_an_edit_of_what_the_stage_does_not_depend_on_is_none(tmp_path, wish):
    assert run_with(workspace(tmp_path), wish) == (0, "works with 1\n", "")


def test_a_stage_that_depends_on_the_whole_file_compares_the_whole_file(tmp_path):
    graph = "stages: {toy: {cmd: python toy.py, params: [toy], deps: [params.yaml]}}"
    (workspace(tmp_path) / "dvc.yaml").write_text(graph)
    code, _, errors = run_with(tmp_path, "threads: 1 -> threads: 2")
    assert code == 1 and "edited while the stage ran: execution.threads from 1 to 2; " in errors
    _, _, errors = run_with(tmp_path, "amount: 1} -> amount: 1}\nother: {a: 1, b: 1, c: 1, d: 1}")
    assert "other.a from (none) to 1, other.b from (none) to 1, other.c from (none) to 1 and 1 more; " in errors


@pytest.mark.parametrize(
    ("wish", "line"),
    [
        ("amount: 1 -> ]", "params.yaml:1: not valid YAML: .*; it could be read when the stage began, whose result"),
        ("amount: 1 -> amount: 2", "params.yaml: edited while the stage ran: .*; the result is of the old values and"),
    ],
)
def test_work_is_said_to_stay_only_where_it_does(tmp_path, wish, line):
    """Evaluation and exports, say, have no scratch folder: there is nothing to put params back for."""
    code, _, errors = run_with(workspace(tmp_path / "kept"), wish)
    assert code == 1 and re.match(f"millrace: toy: {line} stays in scratch: `dvc repro` takes it from there", errors)
    (tmp_path / "kept/params.yaml").write_text("toy: {amount: 1}")
    assert run_with(tmp_path / "kept", "")[:2] == (0, ""), "it is taken from there"
    (workspace(tmp_path / "lost") / "wish").write_text(wish)
    process = start(tmp_path / "lost", "edited at once")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and re.match(f"millrace: toy: {line} is not published; `dvc repro` works", errors)


def dvc_in(root: Path):
    """What `dvc` says there."""
    programs = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PATH": programs}

    def dvc(*command: str) -> str:
        done = subprocess.run([sys.executable, "-m", "dvc", *command], cwd=root, env=variables, capture_output=True)
        return (done.stdout + done.stderr).decode()

    return dvc


def test_dvc_records_no_result_as_that_of_params_which_came_later(tmp_path):
    dvc = dvc_in(root := workspace(tmp_path))
    graph = "stages: {toy: {cmd: exec python toy.py, params: [toy], deps: [data/input], outs: [data/toy/out]}}"
    (root / "dvc.yaml").write_text(graph)
    dvc("init", "--quiet", "--no-scm")
    assert run_with(root, "") == (0, "works with 1\n", "")  # which writes toy.py
    shutil.rmtree(root / ".dvc/tmp")
    (root / "wish").write_text("amount: 1 -> amount: 2")
    assert "toy.amount from 1 to 2" in dvc("repro")
    assert not (root / "dvc.lock").exists()
    (root / "wish").write_text("")
    assert "works with 2" in dvc("repro") and "amount: 2" in (root / "dvc.lock").read_text()
    workspace(root, amount=1)
    (root / "dvc.yaml").write_text(graph)
    said = dvc("repro")
    assert "Running stage 'toy'" in said and "works with" not in said
    assert "amount: 1" in (root / "dvc.lock").read_text() and (root / "data/toy/out").read_text() == "1"


def test_dvc_checkout_is_advised_where_it_brings_something_back(tmp_path):
    dvc = dvc_in(root := workspace(tmp_path))
    graph = "stages: {toy: {cmd: exec python toy.py, params: [toy], deps: [data/input], outs: [data/toy/out]}}"
    (root / "dvc.yaml").write_text(graph)
    dvc("init", "--quiet", "--no-scm")
    (root / "wish").write_text("amount: 1 -> amount: 2")
    start(root, "edited").kill()  # which writes toy.py
    first = dvc("repro")
    assert "or works with new ones\n" in first and "checkout" not in first, "nothing was there before"
    (root / "wish").write_text("")
    dvc("repro")
    (root / "wish").write_text("amount: 3 -> amount: 4")
    workspace(root, amount=3)
    (root / "dvc.yaml").write_text(graph)
    later = dvc("repro")
    assert later.count("or works with new ones. Earlier outputs are in the DVC cache: `dvc checkout toy` brings") == 1
    assert not (root / "data/toy/out").exists()
    dvc("checkout", "toy")
    assert (root / "data/toy/out").read_text() == "2"
    shutil.rmtree(root / ".dvc/cache")
    (root / "wish").write_text("amount: 5 -> amount: 6")
    workspace(root, amount=5)
    (root / "dvc.yaml").write_text(graph)
    assert "edited while" in (elsewhere := dvc("repro")) and "checkout" not in elsewhere, "as in a fresh clone"


# What cannot be used


def test_a_missing_input_is_named_with_the_stage_to_run(tmp_path):
    (workspace(tmp_path) / "data/code/toy.json").unlink()
    with pytest.raises(BadInput, match=r"^data/code/toy.json: not there; `dvc repro toy` makes"):
        prepare_job("toy", toy, tmp_path)


def test_a_graph_that_lists_other_sections_than_the_code_reads_is_refused(tmp_path):
    (workspace(tmp_path) / "dvc.yaml").write_text("stages: {toy: {params: [toy, train]}}")
    with pytest.raises(BadInput, match=r"dvc.yaml: stages.toy.params must be \['toy'\], the sections that its code"):
        prepare_job("toy", toy, tmp_path)


def test_a_param_of_dvc_yaml_names_an_input(tmp_path):
    (workspace(tmp_path) / "params.yaml").write_text("toy: {amount: 1}\nsource: {folder: data/input}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {toy: {params: [toy], deps: ['${source.folder}']}}")
    assert prepare_job("toy", toy, tmp_path).inputs == ("data/input",)


def test_signals_can_be_deferred():
    signals = Signals()
    with signals.wait():
        signals._handle(signal.SIGTERM, None)
    assert signals.received == signal.SIGTERM
    with pytest.raises(Stopped, match="SIGTERM"):
        signals._handle(signal.SIGTERM, None)


def test_params_reach_the_stage(tmp_path):
    job = job_of(tmp_path, amount=5)
    assert (
        job.sections == {"toy": ToyParams(amount=5)} and json.dumps(entry.plain(job.sections["toy"])) == '{"amount": 5}'
    )
