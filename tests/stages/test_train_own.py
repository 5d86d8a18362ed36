"""The hook and the objective that docs/train.md shows work, and their code is an input of train alone."""

import re
import shutil
import sys
from pathlib import Path

import pytest

import stages.train
from stages.code.own_training import own_training_modules
from stages.code.stage import fingerprint
from stages.errors import BadInput
from stages.fingerprint.imports import Project
from stages.params import ParamsFile
from stages.train import objective
from stages.train.params import OBJECTIVES, TrainParams
from tests.stages.test_train import TRAIN, losses, run_in

REPOSITORY = Path(__file__).parents[2]
SHOWN = dict(
    re.findall(r"```python\n# (stages/train/\w+\.py)\n(.+?)```", (REPOSITORY / "docs/train.md").read_text(), re.DOTALL)
)
HOOK, OBJECTIVE = "stages.train.norms.WeightNorms", "stages.train.focal.FocalLoss"


@pytest.fixture
def shown(tmp_path_factory, monkeypatch):
    """The two files of the docs, importable as they would be below stages/train/."""
    folder = tmp_path_factory.mktemp("own")
    for name, code in SHOWN.items():
        (folder / Path(name).name).write_text(code)
    monkeypatch.setattr(stages.train, "__path__", [*stages.train.__path__, str(folder)])
    yield folder
    for name in ("norms", "focal", "mine"):
        sys.modules.pop(f"stages.train.{name}", None)


@pytest.fixture(scope="module")
def project_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    for name in ("model", "stages"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in SHOWN.items():
        (root / name).write_text(code)
    shutil.copy(REPOSITORY / "params.yaml", root)
    return root


def judged(root: Path, **train) -> list[str]:
    return own_training_modules(ParamsFile(root / "params.yaml"), Project(root), TrainParams(**train))


def test_the_hook_looks_at_the_steps_it_asks_for_and_changes_no_bit(packed, shown, capsys):
    plain = losses(run_in(packed))
    capsys.readouterr()
    assert losses(run_in(packed, TRAIN.model_copy(update={"hooks": [HOOK], "max_steps": 12}))) == plain
    said = re.findall(r"step (\d+): norms of the blocks (.+)", capsys.readouterr().out)
    assert [step for step, _ in said] == ["10"] and len(said[0][1].split()) == 2


def test_the_objective_trains(packed, shown):
    out = run_in(packed, TRAIN.model_copy(update={"objective": OBJECTIVE, "max_steps": 40, "lr": 0.01}))
    trace = losses(out)
    assert trace[-1] < trace[0] - 0.5
    assert trace != losses(run_in(packed, TRAIN.model_copy(update={"max_steps": 40, "lr": 0.01})))


def test_their_code_enters_the_fingerprint_of_train_alone(project_root):
    own = judged(project_root, hooks=[HOOK], objective=OBJECTIVE)
    assert own == ["stages.train.norms", "stages.train.focal"]
    found = {stage: fingerprint(Project(project_root), stage, own) for stage in ("train", "evaluate")}
    assert {"stages.train.norms", "stages.train.focal"} <= found["train"]["modules"].keys()
    assert found["evaluate"] == fingerprint(Project(project_root), "evaluate")
    path = project_root / "stages/train/norms.py"
    path.write_text(path.read_text().replace("% 10", "% 20"))
    assert fingerprint(Project(project_root), "train", own)["digest"] != found["train"]["digest"]


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ({"hooks": ["stages.train.nowhere.X"]}, "hooks: stages.train.nowhere.X: there is no stages/train/nowhere.py"),
        ({"hooks": ["stages.train.norms.X"]}, "stages/train/norms.py has no class X; it has WeightNorms"),
        ({"hooks": ["stages.train.hooks.Checkpoint"]}, "stages.train.hooks.Checkpoint is a part of Millrace"),
        ({"hooks": [OBJECTIVE]}, "focal.py:8: it is made as FocalLoss(), but __init__(self, model, train)"),
        ({"objective": "stages.train.focal.Foc"}, "objective: stages.train.focal.Foc: stages/train/focal.py has no"),
    ],
)
def test_what_cannot_be_made_is_refused_before_any_work(project_root, train, problem):
    with pytest.raises(BadInput) as error:
        judged(project_root, **train)
    assert re.match(r"params\.yaml:\d+: train\.", str(error.value)) and problem in str(error.value)


def test_what_python_alone_can_tell_is_one_line_too(packed, shown):
    (shown / "mine.py").write_text("import nowhere_at_all\n")
    with pytest.raises(
        BadInput, match=r"train\.hooks: stages\.train\.mine\.Hook: ModuleNotFoundError: No module named"
    ):
        run_in(packed, TRAIN.model_copy(update={"hooks": ["stages.train.mine.Hook"]}))
    (shown / "mine.py").write_text("class Hook:\n    pass\n")
    with pytest.raises(BadInput, match=r"is no Hook; derive it from stages\.train\.step\.Hook"):
        run_in(packed, TRAIN.model_copy(update={"hooks": ["stages.train.mine.Hook"]}))


def test_the_names_of_objectives_are_one_and_the_same_everywhere():
    assert set(OBJECTIVES) == objective.OBJECTIVES.keys()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("objective: causl", "'causl' is unknown; there are causal. One of yours is named stages.train.FILE.CLASS"),
        ("hooks: [mine.Hook]", "'mine.Hook' names no class of yours; name it as stages.train.FILE.CLASS"),
    ],
)
def test_a_name_that_is_none_is_refused(tmp_path, line, problem):
    (tmp_path / "params.yaml").write_text(f"train:\n  {line}\n")
    with pytest.raises(BadInput) as error:
        ParamsFile(tmp_path / "params.yaml").section("train", TrainParams)
    assert str(error.value) == f"params.yaml:2: train.{line.split(':')[0]}: {problem}"
