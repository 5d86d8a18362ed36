"""pipeline.plan and pipeline.recipes: what a run takes, before it begins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline import plan as planning
from pipeline.cli import cli
from pipeline.experiment import parse
from pipeline.params_view import resolved
from pipeline.plan import SOURCES, on_disk, planned, stop_where_far_short
from pipeline.recipes import read_recipe, recipe_names, settings_of
from pipeline.smoke import override_params
from stages.code.sections import read_sections
from stages.errors import BadInput
from stages.execution import n_cores
from stages.params import ParamsFile

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "inputs").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", recipe_names(ROOT))
def test_every_recipe_is_valid_over_params_yaml(root: Path, name: str) -> None:
    recipe = read_recipe(root, name)
    override_params(root / "params.yaml", recipe)
    values = {value.name: value.value for value in resolved(root)}
    flat = {f"{section}.{key}": value for section, keys in recipe.items() for key, value in keys.items()}
    assert flat.items() <= {name: value for name, value in values.items() if name in flat}.items()
    assert parse(settings_of(recipe)) == recipe  # as `-S` has them


def test_a_recipe_that_is_not_there_is_told_with_the_nearest(root: Path) -> None:
    with pytest.raises(BadInput, match="no recipes/8xh10.yaml; did you mean 8xh100"):
        read_recipe(root, "8xh10")
    (root / "recipes" / "flat.yaml").write_text("max_steps: 3\n")
    with pytest.raises(BadInput, match="must hold sections such as `train:`"):
        read_recipe(root, "flat")


def test_the_default_run_takes_what_it_took(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a factor of two of dvc.lock and README of the default run: 7.3M tokens, 3 min 24 s on two cores."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = planned(root, None)
    assert found.tokens == pytest.approx(7.32e6, rel=0.02) and found.documents == pytest.approx(2903, rel=0.01)
    train = next(step for step in found.steps if step.stage == "train")
    assert 0.5 < train.hours * n_cores() / (2 * 204 / 3600) < 2
    monkeypatch.setenv("MILLRACE_EXECUTION__WORKERS", "1")  # of data stages
    monkeypatch.setenv("MILLRACE_EXECUTION__THREADS", "1")
    one_thread = next(step for step in planned(root, None).steps if step.stage == "train")
    assert one_thread.hours == pytest.approx(train.hours * n_cores())


def test_two_hundred_gigabytes_on_one_node(root: Path) -> None:
    found = planned(root, "8xh100")
    assert found.text_gb == 200 and found.documents == pytest.approx(4e7, rel=0.1)
    assert found.trained_tokens == pytest.approx(found.tokens, rel=0.05)  # one pass
    assert 200 < found.peak_gb / found.copies < 350 and 10 < found.hours < 100
    assert {step.stage for step in found.steps} >= {"download", "clean", "dedup", "pack", "train", "export"}


def test_the_exit_code_says_that_the_disk_is_short(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    usage = shutil.disk_usage(root)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: usage._replace(free=100 * 10**9))
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "--recipe", "8xh100", "--json"], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1 and said["short_gb"] == pytest.approx(said["peak_gb"] - 100, abs=1)
    with pytest.raises(BadInput, match="far too small: about .* GB are needed and 100 GB are free"):
        cli.main(["run", "--recipe", "8xh100"], standalone_mode=False)
    stop_where_far_short(root, None)
    cli.main(["plan"], standalone_mode=False)
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in SOURCES if not name.startswith(("web", "GPU", "CPU")))


def test_what_cannot_be_counted_is_said(root: Path) -> None:
    override_params(root / "params.yaml", {"download": {"source": "huggingface"}})
    with pytest.raises(BadInput, match="download.max_bytes is 0"):
        planned(root, None)
    override_params(root / "params.yaml", {"download": {"source": "files"}})
    (root / "inputs" / "a.txt").write_text("x" * 1_000_000)
    (root / "inputs" / "b.jsonl.zst").write_bytes(b"x" * 1_000_000)
    assert planned(root, None).text_gb == pytest.approx(0.004)


def test_pack_compares_all_text_with_each_group_of_reserved_text(root: Path) -> None:
    """Within 2% of the record of 1 and of 4 GB, which had one and three groups; a smaller share is one group again."""
    record = json.loads((ROOT / "benchmarks/records/2026-11-23-data.json").read_text())["stages"]["pack"]

    def cpu_seconds(gb: int, share: float) -> float:
        sections = read_sections(ParamsFile(root / "params.yaml"))
        split = sections["split"].model_copy(update={"validation": share, "test": share})
        download = sections["download"].model_copy(update={"source": "huggingface", "max_bytes": gb * 10**9})
        plan = planning.make_plan(root, {**sections, "download": download, "split": split})
        return next(step.hours for step in plan.steps if step.stage == "pack") * 3600 * plan.cores

    assert cpu_seconds(1, 0.01) == pytest.approx(record["1"][2], rel=0.02)
    assert cpu_seconds(4, 0.01) == pytest.approx(record["4"][2], rel=0.02)
    assert cpu_seconds(4, 0.002) == pytest.approx(4 * record["1"][2], rel=0.02)


def test_linked_files_are_counted_once(root: Path) -> None:
    cache = root / ".dvc" / "cache"
    (root / ".dvc" / "tmp" / "millrace").mkdir(parents=True)
    cache.mkdir()
    (cache / "a").write_bytes(b"x" * 1_000_000)
    (root / ".dvc" / "tmp" / "millrace" / "b").hardlink_to(cache / "a")
    assert on_disk(root) == pytest.approx(1e6, rel=0.05)


def test_figures_are_those_of_the_records_that_they_name():
    repository = Path(__file__).parents[2]
    record = json.loads((repository / "benchmarks/records/2026-11-23-data.json").read_text())
    for name, (value, source) in SOURCES.items():
        if source.startswith("benchmarks/records/"):
            assert (repository / source.split(": ")[0]).exists(), name
        if name.endswith("CPU s a GB"):
            assert record["stages"][name.split(":")[0]]["1"][2] == value, name
