"""millrace report: the newest training, whether it runs, and its log as it grows."""

import fcntl
import json
import os
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import cli
from stages.errors import BadInput
from stages.evaluate.report import DATA, assembled

LINES = [f"step {step} loss {5 - step / 100:.2f}" for step in range(0, 300, 10)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scratch folder of a training, the newer one of two."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / "params.yaml").write_text("execution:\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    for age, name in enumerate(("newer", "older")):
        log = tmp_path / ".dvc/tmp/millrace/train" / name / "training.log"
        log.parent.mkdir(parents=True)
        log.with_name("loss.csv").write_text("step,tokens,loss,loss_smooth,lr,grad_norm,validation_loss\n")
        log.write_text("".join(f"{line}\n" for line in LINES[:20]))
        os.utime(log, (time.time() - 100 * age,) * 2)
    return tmp_path / ".dvc/tmp/millrace/train/newer"


def said(*arguments: str) -> list[str]:
    result = CliRunner().invoke(cli, ["report", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output.splitlines()


def test_it_shows_the_last_lines_of_the_newest_training_and_where_its_curves_are(folder: Path) -> None:
    first, *lines = said("-n", "3")
    assert first == f"run newer was interrupted; curves: {folder}/monitor/curves.html"
    assert lines == LINES[17:20]
    (folder / "metrics.json").write_text("{}")
    assert said("-n", "0") == [f"run newer has ended; curves: {folder}/monitor/curves.html"]


def test_it_follows_a_running_one_until_it_ends(folder: Path) -> None:
    lock = folder.with_name("newer.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def train() -> None:
        for line in LINES[20:]:
            with (folder / "training.log").open("a") as file:
                file.write(line[:5])
                file.flush()
                time.sleep(0.02)
                file.write(line[5:] + "\n")
        lock.close()

    thread = threading.Thread(target=train)
    thread.start()
    first, *lines = said("--watch", "-n", "20")
    thread.join()
    assert "is running" in first and lines[-len(LINES[20:]) :] == LINES[20:]
    assert len(lines) == len(set(lines))


def test_a_training_that_starts_is_told_and_waited_for(folder: Path) -> None:
    fresh = folder.with_name("fresh")
    fresh.mkdir()
    with fresh.with_name("fresh.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        starting = f"run fresh is starting: it has no step to show yet; its log will be {fresh}/training.log"
        assert said() == [starting]

        def begin() -> None:
            (fresh / "loss.csv").write_text("step,tokens\n")
            (fresh / "training.log").write_text("step 0 validation 8.3\n")
            threading.Timer(0.7, lock.close).start()

        threading.Timer(0.3, begin).start()
        lines = said("--watch")
    assert lines[0] == starting and lines[1].startswith("run fresh is running") and "step 0 validation 8.3" in lines
    assert said()[0].startswith("run newer") or said()[0].startswith("run fresh was interrupted")


def test_the_address_of_the_live_page_is_told_while_it_runs(folder: Path) -> None:
    with folder.with_name("newer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ending = threading.Timer(0.3, lock.close)
        ending.start()
        lines = said("--watch", "-n", "0")
        ending.join()
    assert lines[1].startswith("live page: http://127.0.0.1:")
    assert not any("live page" in line for line in said("--watch", "-n", "0")), "it has ended"


def test_the_page_of_results_gets_speed_and_memory(folder: Path) -> None:
    root = folder.parents[4]
    for name, content in {
        "data/evaluate/report.html": assembled(
            "Evaluation", "<h1>1.7</h1>", {"results": ("Results", "")}, {"charts": {}}
        ),
        "data/train/training.log": "step 10 loss 7.1 tokens/s 900 mfu 12.5% memory 0.8 GiB\n",
        "data/train/timing.json": '{"tokens_per_s": 912.5, "mfu": null}',
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    assert said("--html", "out/page.html") == ["written: out/page.html"]
    page = (root / "out/page.html").read_text()
    charts = json.loads(page.partition(DATA)[2].partition("</script>")[0])["charts"]
    assert {name: chart["traces"][0]["y"] for name, chart in charts.items()} == {
        "tr-speed": [900], "tr-mfu": [12.5], "tr-memory": [0.8],
    }  # fmt: skip
    assert 'data-name="speed"' in page and "912.5" in page and 'id="tr-mfu"' in page
    assert list((root / "out").iterdir()) == [root / "out/page.html"]
    made = root / "data/evaluate/report.html"
    made.write_text(made.read_text()[: len(made.read_text()) // 2])
    with pytest.raises(BadInput, match="report.html: it is cut off; `dvc repro evaluate` writes it anew"):
        said("--html", "out/page.html")
    made.write_text("<html>")
    with pytest.raises(BadInput, match="no page that tabs can be added to; `dvc repro evaluate` writes it anew"):
        said("--html", "out/page.html")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "main"], "--against is a tab of the page; name its file"),
        (["--html", "page.html", "--watch"], "take one of them"),
        (["--html", "page.html"], "data/evaluate/report.html: not there; `dvc repro evaluate` writes it"),
    ],
)
def test_what_cannot_be_shown_is_refused(folder: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        said(*arguments)


def test_without_a_training_it_says_how_to_start_one(folder: Path) -> None:
    for path in folder.parent.glob("*/training.log"):
        path.unlink()
    result = CliRunner().invoke(cli, ["report"])
    assert "no training in" in str(result.exception) and "`dvc repro train` starts one" in str(result.exception)
