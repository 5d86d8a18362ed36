"""The command `millrace report`: how the newest training is doing, or the page of results with speed and comparison.

    run 21ee4cba4cbbde06 is running; curves: .dvc/tmp/millrace/train/21ee4cba4cbbde06/monitor/curves.html
    step 120 tokens 491520 loss 3.2114 ..

Whether it runs is told by the lock that the stage holds on its folder, so a run that was killed is not
taken for a slow one. The live page is the work of pipeline/live.py, the comparison that of
pipeline/against.py.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from stages.errors import BadInput

SECONDS_BETWEEN = 0.5
LOG = "training.log"


@click.command()
@click.option("--watch", is_flag=True, help="Follow it until it ends: its log here, its curves on a live page.")
@click.option("--port", default=0, show_default="a free one", help="With --watch: the port of the page.")
@click.option("-n", "lines", default=10, show_default=True, help="So many of the last lines of its log.")
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Write the page of the workspace's results."
)
@click.option("--against", metavar="REV", help="With --html: compare with a commit, branch, tag or experiment.")
def report(watch: bool, port: int, lines: int, html: Path | None, against: str | None) -> None:
    """Shows how the newest training is doing, or writes the page of results.

    Without --html: the last lines of the log of the newest training. With --watch also what comes, and the address of
    a page in the browser whose curves grow; it can be asked from this machine alone (from another: ssh -L).

    With --html: data/evaluate/report.html with speed and memory, which differ from run to run and so are not on it;
    with --against REV also a comparison: the difference on the same test documents with its 95% interval, curves over
    each other, params, metrics, samples.

    \b
      millrace report                                       the newest training
      millrace report --watch                               and what comes, until it ends
      millrace report --html report.html --against main     these results, and how they differ
    """
    from stages.root import find_root

    if against and not html:
        raise BadInput("--against is a tab of the page; name its file: --html report.html")
    if html and watch:
        raise BadInput("--html is of a run that has ended, --watch of one that goes on; take one of them")
    if html:
        write_page(find_root(), html, against)
        return
    folder = newest_training(find_root())
    if not has_begun(folder):
        click.echo(f"run {folder.name} is starting: it has no step to show yet; its log will be {folder / LOG}")
        if watch:
            wait_for_log(folder)
        if not has_begun(folder):
            return
    state = "is running" if is_running(folder) else "has ended" if is_finished(folder) else "was interrupted"
    click.echo(f"run {folder.name} {state}; curves: {folder / 'monitor' / 'curves.html'}")
    whole, place = whole_lines(folder, 0)
    for line in whole[-lines:] if lines > 0 else []:
        click.echo(line)
    if watch and is_running(folder):
        from pipeline.live import served

        with served(folder, port, lambda: is_running(folder)) as server:
            click.echo(f"live page: {server.address}")
            for line in following_lines(folder, place):
                click.echo(line)


def write_page(root: Path, path: Path, against: str | None) -> None:
    """The page of the workspace's results with tabs for speed and, if it is named, another run.

    Raises:
        BadInput: there is no page, or no such run.
    """
    from stages.evaluate.report import with_tab

    source = root / "data" / "evaluate" / "report.html"
    if not source.exists():
        raise BadInput("data/evaluate/report.html: not there; `dvc repro evaluate` writes it, `dvc pull` fetches it")
    page, speed = source.read_text(encoding="utf-8"), speed_of(root / "data" / "train")
    try:
        page = with_tab(page, "speed", "Speed", *speed)
        if against:
            from pipeline.against import tab

            page = with_tab(page, "against", "Against", *tab(root, against))
    except ValueError as error:
        raise BadInput(f"data/evaluate/report.html: {error}; `dvc repro evaluate` writes it anew") from error
    write_for_person(path, page)


def write_for_person(path: Path, page: str) -> None:
    """Writes what was asked for by name, whole or not at all.

    Raises:
        BadInput: it cannot be written there.
    """
    beside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(page, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise BadInput(f"--html {path}: {error.strerror}; name another file") from error
    click.echo(f"written: {path}", err=True)


def speed_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The inside of the tab, and its charts."""
    from stages.evaluate.drawing import number, place, table
    from stages.evaluate.training_tab import speed_charts

    log, timing = folder / "training.log", folder / "timing.json"
    charts = speed_charts(log.read_text(encoding="utf-8").splitlines() if log.exists() else [])
    try:
        figures = json.loads(timing.read_text(encoding="utf-8")) if timing.exists() else {}
    except ValueError as error:
        raise BadInput(f"data/train/timing.json: {error}; `dvc checkout train` brings it back") from error
    rows = [[name.replace("_", " "), number(value)] for name, value in figures.items() if value is not None]
    words = "<p>Of the machine that trained, at the time; no two trainings agree.</p>"
    return f'{words}<div class="charts">{"".join(map(place, charts))}</div>{table([["", ""], *rows])}', charts


def newest_training(root: Path) -> Path:
    """The scratch folder of a training that starts and has no log yet, else of the one whose log was written last.

    Raises:
        BadInput: nothing was trained here.
    """
    from stages.entry import scratch_root  # pydantic: a tenth of a second of every `--help`
    from stages.execution import Execution
    from stages.params import ParamsFile

    execution = ParamsFile(root / "params.yaml").section("execution", Execution)
    base = Path(execution.scratch or scratch_root(root)) / "train"
    logs = sorted(base.glob(f"*/{LOG}"), key=lambda path: path.stat().st_mtime)
    worked_in = [lock.with_suffix("") for lock in base.glob("*.lock") if lock.name != "tasks.lock"]
    for folder in worked_in:
        if folder.is_dir() and not has_begun(folder) and is_running(folder):
            return folder
    if not logs:
        raise BadInput(f"no training in {base}; `dvc repro train` starts one")
    return logs[-1].parent


def has_begun(folder: Path) -> bool:
    """Whether there is a log and a table: before its first line a training loads, compiles and validates."""
    return (folder / LOG).exists() and (folder / "loss.csv").exists()


def wait_for_log(folder: Path) -> None:
    while is_running(folder) and not has_begun(folder):
        time.sleep(SECONDS_BETWEEN)


def is_running(folder: Path) -> bool:
    """Whether a process holds the lock of this scratch folder (stages/locks.py)."""
    with folder.with_name(f"{folder.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_finished(folder: Path) -> bool:
    return (folder / "metrics.json").exists()


def following_lines(folder: Path, place: int) -> Iterator[str]:
    """What is written to the log from this place on, until nobody works in the folder."""
    running = True
    while running:
        running = is_running(folder)
        lines, place = whole_lines(folder, place)
        yield from lines
        if running:
            time.sleep(SECONDS_BETWEEN)


def whole_lines(folder: Path, place: int) -> tuple[list[str], int]:
    """The lines of the log from this place on that are written to their ends, and the place behind them."""
    with (folder / LOG).open("rb") as file:
        file.seek(place)
        whole, end, _ = file.read().rpartition(b"\n")
    return whole.decode("utf-8").splitlines(), place + len(whole) + len(end)
