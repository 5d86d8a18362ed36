"""pipeline.smoke and pipeline.experiment: runs beside the workspace, which they leave as it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from pipeline.experiment import dotted, name_of, nested, parse, worktree
from pipeline.graph import read_graph
from pipeline.reproduce import Workspace, reproduce
from pipeline.smoke import LARGE_BYTES, fitted, override_params, smoke_copy
from stages.errors import BadInput
from stages.files import content_hash
from stages.params import ParamsFile
from tests.pipeline.tiny_repository import command, dvc

ROOT = Path(__file__).parents[2]


@pytest.fixture
def edited(repository: Path) -> Path:
    """The tiny repository with one file edited, one new, one removed, one ignored, and one large and new."""
    (repository / "recipes").mkdir()
    (repository / "recipes" / "smoke.yaml").write_text("left:\n  amount: 7\n")
    (repository / "source.txt").write_text("edited")
    (repository / "inputs" / "new.txt").write_text("new")
    (repository / "inputs" / "a.txt").unlink()
    (repository / "large.bin").write_text("ignored")
    with (repository / "corpus.txt").open("wb") as file:
        file.truncate(LARGE_BYTES + 1)
    return repository


def files_of(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] not in (".git", ".dvc", "recipes")} - {".git"}


AS_NOW = {
    ".dvcignore", ".gitignore", "dvc.yaml", "params.yaml", "stage.py", "source.txt", "inputs/new.txt", "out/.gitignore"
}  # fmt: skip


def test_the_smoke_copy_holds_the_present_files_with_tiny_params(edited: Path) -> None:
    before = {path: content_hash(edited / path) for path in files_of(edited)}
    with smoke_copy(edited) as folder:
        assert files_of(folder) == AS_NOW
        assert (folder / "source.txt").read_text() == "edited"
        text = (folder / "params.yaml").read_text()
        assert "amount: 7  # how often" in text and text.startswith("# every knob")
        assert reproduce("code", Workspace(folder), print).outcome == "Completed"
        assert (folder / "out" / "code").read_text() == "code(edited)"
        assert (folder / ".dvc" / "cache" / "files").is_dir()
    assert not folder.exists()
    assert {path: content_hash(edited / path) for path in files_of(edited)} == before
    assert not (edited / ".dvc" / "cache").exists()


def test_a_failed_smoke_copy_stays_and_the_next_replaces_it(edited: Path) -> None:
    with pytest.raises(RuntimeError), smoke_copy(edited) as folder:
        (folder / "trace").touch()
        raise RuntimeError
    assert (folder / "trace").exists()
    with smoke_copy(edited) as folder:
        assert not (folder / "trace").exists()
        with pytest.raises(BadInput, match="the same command is at work there"), smoke_copy(edited):
            pass


def test_a_smoke_run_reports_to_no_server_of_the_user(edited: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example.org")
    with smoke_copy(edited):
        assert "MLFLOW_TRACKING_URI" not in os.environ
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://tracking.example.org"


def test_the_recipe_in_git_fits_params_yaml(tmp_path: Path) -> None:
    from pipeline.params_view import resolved

    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    recipe = YAML(typ="safe").load((ROOT / "recipes" / "smoke.yaml").read_text())
    override_params(path, recipe)
    values = {value.name: value.value for value in resolved(tmp_path)}
    flat = {f"{section}.{key}": value for section, keys in recipe.items() for key, value in keys.items()}
    assert flat.items() <= {name: value for name, value in values.items() if name in flat}.items()


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ({"layer_pattern": "swa*2+mla*1", "n_layers": 12}, 3),
        ({"n_experts": 4, "dense_layers": 5, "n_layers": 12}, 2),
        ({"n_experts": 4, "dense_layers": 1}, 2),
        ({"init_sha256": "ab" * 32}, 2),
        ({"preset": "hybrid"}, 3),
        ({"layer_pattern": "swa", "sink_tokens": 100}, 2),
    ],
)
def test_smoke_takes_the_architecture_of_the_user(tmp_path: Path, model: dict, layers: int) -> None:
    from pipeline.params_view import resolved

    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    override_params(path, {"model": model, "execution": {"activation_checkpointing": "every_3"}})
    recipe = YAML(typ="safe").load((ROOT / "recipes" / "smoke.yaml").read_text())
    override_params(path, fitted(recipe, ParamsFile(path).values))
    values = {value.name: value.value for value in resolved(tmp_path)}
    assert values["model.n_layers"] == layers and values["model.hidden_size"] == 64
    kept = {key: value for key, value in model.items() if key in ("layer_pattern", "n_experts", "preset")}
    assert kept.items() <= {name.removeprefix("model."): value for name, value in values.items()}.items()
    assert values["model.dense_layers"] == min(model.get("dense_layers", 0), 1)
    assert values["model.init_sha256"] == values["execution.init_from"] == ""
    assert values["model.sink_tokens"] == min(model.get("sink_tokens", 4), 32)
    assert values["execution.activation_checkpointing"] == f"every_{layers}"


def test_smoke_of_a_pattern_that_is_none_leaves_it_to_be_refused() -> None:
    recipe = {"model": {"n_layers": 2}}
    assert fitted(recipe, {"model": {"layer_pattern": "swa*"}}) == recipe
    assert fitted(recipe, {"model": {"layer_pattern": 3}}) == recipe


def test_settings_are_yaml() -> None:
    found = parse(["train.lr=1e-3", "train.steps=20", "model.post_norm=true", "split.salt=a=b", "evaluate.texts=[a]"])
    assert found == {
        "train": {"lr": 0.001, "steps": 20},
        "model": {"post_norm": True},
        "split": {"salt": "a=b"},
        "evaluate": {"texts": ["a"]},
    }
    assert nested(dotted(found)) == found
    for wrong in ("train", "train.", "a.b.c"):
        with pytest.raises(BadInput, match=f"^overrides: {wrong}: must read section.key"):
            nested({wrong: 1})
    for wrong in ("train.lr", "lr=1", "=1", "train.=1", "a.b.c=1", "train.lr={"):
        with pytest.raises(BadInput, match=r"^-S "):
            parse([wrong])


def test_the_name_of_an_experiment_follows_from_commit_and_settings() -> None:
    overrides = parse(["train.max_steps=20", "model.post_norm=true"])
    assert name_of("abc", overrides).startswith("post-norm-")
    assert name_of("abc", overrides) == name_of("abc", parse(["train.max_steps=20", "model.post_norm=true"]))
    assert name_of("abc", overrides) != name_of("abd", overrides)
    assert name_of("abc", overrides) != name_of("abc", parse(["train.max_steps=21", "model.post_norm=true"]))


def test_an_experiment_runs_beside_and_is_kept(edited: Path) -> None:
    dvc(edited, "repro", "--quiet", "right")
    command(edited, "git", "add", "dvc.lock")
    command(edited, "git", "commit", "--quiet", "--message", "ran")
    before = {path: content_hash(edited / path) for path in files_of(edited)}
    said: list[str] = []
    with worktree(edited, {"left": {"amount": 3}}) as experiment:
        assert files_of(experiment.folder) == AS_NOW | {"dvc.lock", "out/code", "out/right", "out/right.csv"}
        for stage, outcome in {"code": "Completed", "right": "Unchanged", "left": "Completed"}.items():
            assert reproduce(stage, Workspace(experiment.folder, experiment.variables), said.append).outcome == outcome
        dvc(experiment.folder, "repro", "--quiet")
        experiment.save(["code", "left", "right", "join", "last"])
    assert f"left at work in {experiment.name}" in said
    assert not experiment.folder.exists()
    assert command(edited, "git", "worktree", "list").count("\n") == 1
    assert {path: content_hash(edited / path) for path in files_of(edited)} == before
    assert dvc(edited, "exp", "list", "--name-only").split() == [experiment.name]
    command(edited, "git", "checkout", "--quiet", "--", "inputs", "source.txt")
    dvc(edited, "exp", "apply", experiment.name)
    assert "amount: 3  # how often" in (edited / "params.yaml").read_text()
    assert "amount: 3" in (edited / "out" / "left" / "text").read_text()


def test_an_experiment_with_metrics_of_other_params_is_told_from_a_whole_one(repository: Path) -> None:
    dvc(repository, "repro", "--quiet")
    command(repository, "git", "add", "dvc.lock")
    command(repository, "git", "commit", "--quiet", "--message", "ran")
    with worktree(repository, {"left": {"amount": 3}}) as experiment:
        graph = read_graph(experiment.folder)
        assert experiment.foreign_metrics(graph) == ["left"]
        dvc(experiment.folder, "repro", "--quiet")
        assert experiment.foreign_metrics(graph) == []
    with worktree(repository, {"left": {"amount": 1}}) as experiment:
        (experiment.folder / "source.txt").write_text("another")  # left itself is as it was, what it waits for is not
        assert experiment.foreign_metrics(graph) == ["left"]


def run_beside(repository: Path, stages: list[str], setting: str) -> subprocess.Popen[str]:
    """What the flow does with overrides, with `dvc repro` for its tasks."""
    code = f"""
        import subprocess, sys
        from pathlib import Path
        from pipeline.experiment import parse, worktree
        from pipeline.graph import read_graph
        from pipeline.programs import programs
        with programs.stop_on_signals(), worktree(Path.cwd(), parse([{setting!r}])) as experiment:
            command = [sys.executable, "-m", "dvc", "repro", "--quiet", *{stages!r}]
            subprocess.run(command, cwd=experiment.folder, check=True)
            graph = read_graph(experiment.folder)
            print(experiment.keep(graph, graph.select({stages!r})))
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=repository, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_run_of_some_stages_saves_no_experiment_with_metrics_of_others(repository: Path) -> None:
    dvc(repository, "repro", "--quiet")
    command(repository, "git", "add", "dvc.lock")
    command(repository, "git", "commit", "--quiet", "--message", "ran")
    output, _ = run_beside(repository, ["code"], "left.amount=3").communicate(timeout=120)
    assert "no experiment saved: the metrics of left are not of these params;" in output
    assert dvc(repository, "exp", "list", "--name-only").split() == []
    output, _ = run_beside(repository, ["left"], "left.amount=3").communicate(timeout=120)
    assert "experiment amount-" in output
    assert len(dvc(repository, "exp", "list", "--name-only").split()) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_the_experiment_is_saved_leaves_no_worktree(repository: Path, number: signal.Signals) -> None:
    process = run_beside(repository, [], "left.amount=3")
    while process.poll() is None and not is_at_work("exp", "save"):
        time.sleep(0.02)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "experiment amount-" in output, output
    assert not is_at_work("exp", "save")
    assert [path for path in (repository / ".dvc/tmp/millrace/worktrees").iterdir() if path.is_dir()] == []
    assert command(repository, "git", "worktree", "list").count("\n") == 1


def is_at_work(*words: str) -> bool:
    """Whether one of our descendants, or what they left behind, runs `dvc` with these words."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return any("dvc" in line and set(words) <= set(line) and "--name" in line for line in lines)


def test_worktrees_of_killed_runs_are_swept_and_those_at_work_stay(repository: Path) -> None:
    command(repository, "git", "worktree", "add", "--quiet", "--detach", ".dvc/tmp/millrace/worktrees/killed", "HEAD")
    two, three = {"left": {"amount": 2}}, {"left": {"amount": 3}}
    with worktree(repository, two) as first, worktree(repository, three) as second:
        assert first.folder.is_dir() and second.folder.is_dir()
        assert not (first.folder.parent / "killed").exists()
        assert command(repository, "git", "worktree", "list").count("\n") == 3


def test_an_experiment_needs_a_commit(tmp_path: Path) -> None:
    command(tmp_path, "git", "init", "--quiet")
    with (
        pytest.raises(BadInput, match="in a git worktree: there is no commit yet"),
        worktree(tmp_path, {"a": {"b": 1}}),
    ):
        pass
