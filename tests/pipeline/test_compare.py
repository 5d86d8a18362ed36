"""pipeline.compare and pipeline.revisions: two runs side by side, read from git and the cache."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.against import tab
from pipeline.cli import cli
from pipeline.compare import comparison, documents, in_words, page
from pipeline.revisions import Revision, commit_of, experiments_on, git
from stages.errors import BadInput
from tests.pipeline.ablation_repository import variables
from tests.pipeline.tiny_repository import command, dvc

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two(template_of_ablations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commit `main` and the experiment `normed`; the workspace is as committed."""
    root = shutil.copytree(template_of_ablations, tmp_path_factory.mktemp("two") / "repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEHAVIOUR", variables(root)["BEHAVIOUR"])
        dvc(root, "exp", "run", "--quiet", "--temp", "--name", "normed", "-S", "model.post_norm=true", "evaluate")
    return root


def test_what_differs_between_an_experiment_and_its_commit(
    two: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two)
    cli.main(["compare", "main", "normed", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["params"] == {"model.post_norm": [False, True]} and found["same_test_text"]
    bits = found["metrics"]["evaluate.bits_per_byte"]
    assert bits[1] - bits[0] == pytest.approx(0.5, abs=0.02)
    assert found["samples"][0]["a"] == f" loss is {bits[0]:.3f}" and found["samples"][0]["prompt"] == "The"
    cli.main(["compare", "main", "normed", "--html", "page.html"], standalone_mode=False)
    text = (two / "page.html").read_text()
    assert text.count("<polyline") == 2 and "model.post_norm" in text and "<script" not in text
    cli.main(["compare", "main"], standalone_mode=False)
    assert "| model.post_norm" not in capsys.readouterr().out  # the workspace is as committed


def test_the_difference_is_taken_document_by_document(two: Path) -> None:
    main, normed = Revision.of(two, "main"), Revision.of(two, "normed")
    found = comparison(main, normed)["difference"]
    per_document = [b - a for _, a, b in documents(main, normed)]
    assert per_document == pytest.approx([per_document[1] + d for d in (-0.02, 0, 0.02)])
    assert found["bits_per_byte"] == pytest.approx((per_document[0] + 2 * per_document[1] + 3 * per_document[2]) / 6)
    assert 0 < found["low"] < found["bits_per_byte"] < found["high"]
    assert (found["lower"], found["documents"]) == (0, 3)
    assert (
        "lower on 0 of the 3 test documents: more than chance explains"
        in page(main, normed, comparison(main, normed)).markdown()
    )
    nothing = comparison(main, main)["difference"]
    assert (nothing["low"], nothing["high"]) == (0, 0) and "chance may explain it" in in_words(nothing)


def test_the_tab_of_the_report_sets_the_workspace_against_a_revision(two: Path) -> None:
    inside, charts = tab(two, "normed")
    assert inside.startswith("<p>this run less normed: -0.5") and "more than chance explains" in inside
    assert "model.post_norm" in inside and "<b>The</b> loss is 2." in inside
    assert list(charts) == ["ag-loss", "ag-documents"], "of what these runs have"
    assert [trace["name"] for trace in charts["ag-loss"]["traces"]] == ["this run", "normed"]
    spots = charts["ag-documents"]["traces"][0]
    assert all(theirs > ours for theirs, ours in zip(spots["x"], spots["y"], strict=True))
    with pytest.raises(BadInput, match="no-such: no commit, branch, tag or experiment"):
        tab(two, "no-such")


def test_a_revision_is_read_without_a_checkout(two: Path) -> None:
    one = Revision.of(two, "normed")
    assert (
        one.params["model"]["post_norm"] is True
        and one.commit == experiments_on(two, git(two, "rev-parse", "HEAD") or "")["normed"]
    )
    assert one.json("data/train/last/state.json")["run"] == "run-0"  # a file within a folder
    assert one.json("data/train/last/nothing.json") is None and one.rows("data/evaluate/nothing.csv") == []
    assert one.metrics()["train.tokens_per_s"] == 1000
    assert Revision.of(two, "workspace").metrics()["evaluate.eval_sha256"] == "ab" * 16
    with pytest.raises(BadInput, match="no-such: no commit, branch, tag or experiment"):
        commit_of(two, "no-such")


def test_a_commit_without_a_run_is_named_and_not_compared(
    abl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(abl)
    git(abl, "checkout", "--quiet", "-b", "clone")
    (abl / ".dvc/cache").rename(tmp_path / "cache")
    mend = "; after a run, `git add params.yaml dvc.lock` and `git commit` make it a baseline$"
    with pytest.raises(
        BadInput, match=f"^main: no run of yours is committed there .*`dvc fetch` may bring them.{mend}"
    ):
        cli.main(["compare", "main"], standalone_mode=False)
    git(abl, "rm", "--quiet", "--cached", "dvc.lock")
    git(abl, "commit", "--quiet", "-m", "before any run")
    with pytest.raises(BadInput, match=f"^clone: no run of yours is committed there{mend}"):
        cli.main(["compare", "clone"], standalone_mode=False)
    with pytest.raises(BadInput, match="clone: no run of yours"):
        tab(abl, "clone")
    shutil.rmtree(abl / "data")
    (abl / "dvc.lock").unlink()
    with pytest.raises(BadInput, match="workspace: no run here yet"):
        Revision.of(abl, "workspace").need_run()


def test_pins_and_test_text_that_differ_are_told(two: Path) -> None:
    (two / "constraints.txt").write_text("numpy==2.0  # a pin\n")
    one, other = Revision.of(two, "main"), Revision.of(two, "workspace")
    found = comparison(one, other)
    assert found["versions"] == {"numpy": ("not there", "2.0")} and found["same_test_text"]
    assert "other test text" in page(one, other, {**found, "same_test_text": False}).markdown()
    assert command(ROOT, sys.executable, "-c", "import pipeline.compare, sys; assert 'dvc' not in sys.modules") == ""
