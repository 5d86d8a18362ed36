"""`millrace ablate` from end to end on a repository whose stages only write what a report reads."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from pipeline.ablation.grid import Variant, for_dvc, name_of, parse, planned, split, variants
from pipeline.explain import reasons
from pipeline.revisions import Revision, experiments_on, git
from stages.errors import BadInput
from tests.pipeline.ablation_repository import ran, variables
from tests.pipeline.tiny_repository import command, dvc

DESK = ".dvc/tmp/millrace/ablations/links/desk"
PARAMS = {"train": {"seed": 0}, "model": {"post_norm": False, "qk_norm": True, "layer_pattern": "auto"}}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("true,false", ["true", "false"]),
        ("full,swa*2+mla*1", ["full", "swa*2+mla*1"]),
        ("[en,fr],[en]", ["[en,fr]", "[en]"]),
        ("['a, b'],['c']", ["['a, b']", "['c']"]),
        ("{a: 1, b: 2},{}", ["{a: 1, b: 2}", "{}"]),
        ("''", ["''"]),
    ],
)
def test_a_comma_separates_values_but_within_brackets_and_quotes(text: str, parts: list[str]) -> None:
    assert list(split(text)) == parts


def test_values_are_yaml_as_in_params() -> None:
    assert parse(["model.post_norm=true,false", "train.lr=1e-3,0.02", "clean.languages=[en, fr],[]"]) == {
        "model.post_norm": [True, False],
        "train.lr": [0.001, 0.02],
        "clean.languages": [["en", "fr"], []],
    }


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        (["post_norm=true"], "must read section.key=value,value"),
        (["train.seed=1,2"], "say --seeds 3"),
        (["model.a=1", "model.a=2"], "given twice"),
        (["model.a=1,1"], "the same value twice"),
        (["execution.threads=1,2"], "changes no result"),
        (["model.a=[1"], "not valid YAML"),
    ],
)
def test_a_mistake_in_the_grid_is_one_line(grid: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said.replace("[", r"\[")):
        parse(grid)


def test_the_baseline_is_that_of_params_and_comes_first() -> None:
    grid = parse(["model.post_norm=true,false", "model.qk_norm=true,false"])
    found = variants(grid, PARAMS, [])
    assert found[0].settings == {"model.post_norm": False, "model.qk_norm": True} and len(found) == 4
    chosen = variants(grid, PARAMS, ["model.post_norm=true"])
    assert chosen[0].settings == {"model.post_norm": True, "model.qk_norm": True} and len(chosen) == 4
    added = variants(parse(["model.layer_pattern=swa*2+mla*1"]), PARAMS, [])
    assert [variant.label for variant in added] == ["model.layer_pattern=auto", "model.layer_pattern=swa*2+mla*1"]
    with pytest.raises(BadInput, match="not varied here"):
        variants(grid, PARAMS, ["train.lr=1"])


def test_every_variant_has_every_seed_and_the_baseline_others_as_a_control() -> None:
    every = variants(parse(["model.post_norm=true"]), PARAMS, [])
    plan = planned(every, 2, 5, "a commit")
    assert [(one.variant.settings["model.post_norm"], one.seed) for one in plan] == [
        (False, 5), (True, 5), (False, 6), (True, 6), (False, 7), (False, 8),
    ]  # fmt: skip
    assert [one.variant.control for one in plan] == [False] * 4 + [True] * 2
    assert len({one.name for one in plan}) == 6 and plan[1].overrides == ["model.post_norm=true", "train.seed=5"]
    assert plan == planned(every, 2, 5, "a commit")
    assert not {one.name for one in plan} & {one.name for one in planned(every, 2, 5, "another")}
    assert name_of(Variant({"model.layer_pattern": "swa*2+mla*1"}), 0, "").startswith("layer-pattern-swa-2-mla-1-s0-")


@pytest.mark.parametrize(
    "value", ["swa*2+mla*1", "a, b", "it's", "", "true", "1e-3", True, None, 3, 0.001, ["a, b", "c"], [], {"x": 1.5}]
)
def test_values_reach_params_yaml_through_dvc_as_they_were_meant(tmp_path: Path, value: object) -> None:
    from dvc.utils.hydra import apply_overrides

    path = tmp_path / "params.yaml"
    path.write_text("tried:\n  value: before\n")
    apply_overrides(path, [f"tried.value={for_dvc(value)}"])
    assert YAML(typ="safe").load(path.read_text()) == {"tried": {"value": value}}


def millrace(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=root,
        env=variables(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


GRID = ("ablate", "model.post_norm=true", "--seeds", "2", "--name", "norms")


def test_a_killed_ablation_goes_on_and_ends_with_its_report(abl: Path) -> None:
    wait = abl / "behaviour" / "wait-evaluate"
    wait.touch()
    killed = millrace(abl, *GRID, "--jobs", "2")
    deadline = time.monotonic() + 180
    while not any(line.startswith("evaluate post-norm-true-s0") for line in ran(abl)):
        assert time.monotonic() < deadline and killed.poll() is None, killed.stdout and killed.stdout.read()
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    deadline = time.monotonic() + 60
    while left := [process for process in psutil.process_iter() if works_in(process, abl)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    wait.unlink()
    assert git(abl, "status", "--porcelain") == "" == git(abl, "stash", "list")
    commit = git(abl, "rev-parse", "HEAD")
    assert commit is not None
    done = set(experiments_on(abl, commit))
    assert all("-false-s0-" in name for name in done)  # as in the workspace: nothing to do, so done before the kill

    again = millrace(abl, *GRID, "--jobs", "2", "--report", "report")
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    assert "model.post_norm=true is different: worse, +0.5" in said and "Control: the baseline with other seeds" in said
    assert len(experiments_on(abl, commit)) == 6
    lines = ran(abl)
    assert sum(line.startswith("pack") for line in lines) == 1  # for all experiments, before them
    trained = [line for line in lines if line.startswith("train post-norm-true-s0")]
    assert len(trained) == 1  # its outputs were in the run cache when it was killed
    assert not any(line.startswith("export p") for line in lines)

    report = json.loads((abl / "report" / "report.json").read_text())
    bits = report["metrics"][0]
    assert bits["metric"] == "evaluate.bits_per_byte"
    assert [(row["variant"], row["n"], row["different"]) for row in bits["rows"]] == [
        ("model.post_norm=false", 2, False),
        ("model.post_norm=true", 2, True),
        ("model.post_norm=false (other seeds)", 2, False),
    ]
    shared = {one["stage"]: (one["ran"], one["taken"]) for one in report["shared"]}
    assert shared["pack"] == (0, 6)
    assert shared["train"] == (5, 1)  # that of the killed invocation counts; the workspace has the baseline's first
    page = (abl / "report" / "report.html").read_text()
    assert page.count("<polyline") == 6 and "http" not in page and "seeds cannot go below 0.5" in page
    markdown = (abl / "report" / "report.md").read_text()
    assert "train: tokens per s" in markdown and experiments_on(abl, commit).popitem()[1][:10] in markdown

    third = millrace(abl, *GRID)
    said, _ = third.communicate(timeout=180)
    assert "6 of 6 experiments are done already" in said and ran(abl) == lines
    assert not (abl / ".dvc/tmp/millrace/ablations/norms/desk").exists()
    assert (git(abl, "worktree", "list") or "").count("\n") == 0


def works_in(process: psutil.Process, root: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(root)
    except (psutil.Error, OSError):
        return False


def test_what_fails_is_named_what_is_shared_runs_once_and_what_cannot_be_compared_is_refused(abl: Path) -> None:
    """Seed 13 fails; another context length is another test text here, which two seeds need at the same time."""
    command(abl, "sed", "-i", "s/^  seed: 0 .*initial.*/  seed: 12/", "params.yaml")
    command(abl, "git", "commit", "--quiet", "--all", "--message", "seeds")
    process = millrace(abl, "ablate", "pack.context_length=512", "--seeds", "2", "-j", "2")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1, said
    assert (
        "pack.context_length=512: not compared, measured on other test text (eval_sha256 other, not abababab)" in said
    )
    assert "failed: " in said and "-s13-" in said
    folder = next((abl / ".dvc/tmp/millrace/ablations").glob("context-length-*/"))
    report = json.loads((folder / "report.json").read_text())
    assert len(report["failed"]) == 2 and "out of luck" in (folder / "report.md").read_text()
    assert report["metrics"][0]["rows"][1]["comparison"] is None
    packed = [line.split()[1] for line in ran(abl)[4:] if line.startswith("pack ")]
    assert [name[:22] for name in packed] == ["context-length-512-s12"]  # the other seed has waited for it


def test_nothing_runs_before_every_combination_is_valid(abl: Path) -> None:
    before = ran(abl)
    for grid, said in (
        (("pack.context_length=300",), "pack.context_length=300: train.batch_tokens: 4096 is no multiple"),
        (("model.mlp=swiglu,swigul",), "model.mlp=swigul: model.mlp: 'swigul' is unknown; did you mean swiglu?"),
        (("model.nothing=1",), "model.nothing: not in params.yaml"),
        (("pack.strategy=concat", "--target", "nothing"), "nothing"),
    ):
        process = millrace(abl, "ablate", *grid)
        out, _ = process.communicate(timeout=180)
        assert process.returncode == 2 and said in out
    (abl / "inputs" / "new.txt").write_text("new")
    out, _ = millrace(abl, "ablate", "model.post_norm=true").communicate(timeout=180)
    assert "inputs/new.txt: not known to git" in out and ran(abl) == before


def test_links_not_copies(abl: Path) -> None:
    """An output and its cache entry are one file, and an experiment's copy of the repository links to it as well."""
    shard = abl / "data" / "pack" / "shard.bin"
    entry = Revision.of(abl, "workspace").locked.files("pack", "outs")["data/pack/shard.bin"]["md5"]
    cached = abl / ".dvc" / "cache" / "files" / "md5" / entry[:2] / entry[2:]
    shard.unlink()
    dvc(abl, "checkout", "--quiet")
    assert shard.samefile(cached) and cached.stat().st_nlink >= 2
    (abl / "behaviour" / "wait-train").touch()
    process = millrace(abl, "ablate", "model.post_norm=true", "--seeds", "1", "--name", "links")
    try:
        deadline = time.monotonic() + 180
        while not (
            copies := list((abl / DESK / ".dvc/tmp/exps/standalone").glob("tmp*/data/pack/shard.bin"))
        ) or not any(line.startswith("train post-norm") for line in ran(abl)):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        assert all(copy.samefile(cached) for copy in copies)
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on" in said


def test_explain_agrees_after_an_ablation(abl: Path) -> None:
    assert reasons(abl, "train") == []
    command(abl, "sed", "-i", "s/post_norm: false/post_norm: true/", "params.yaml")
    assert [str(reason) for reason in reasons(abl, "train")] == ["param model.post_norm: false -> true"]
