"""The command `millrace report`: how the newest training is doing, from what it leaves in its scratch folder.

    run 21ee4cba4cbbde06 is running; curves: .dvc/tmp/millrace/train/21ee4cba4cbbde06/monitor/curves.html
    step 120 tokens 491520 loss 3.2114 ..

Whether it runs is told by the lock that the stage holds on its folder, so a run that was killed is not
taken for a slow one.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

import click

from stages.errors import BadInput

SECONDS_BETWEEN = 0.5


@click.command()
@click.option("--watch", is_flag=True, help="Follow its log until it ends.")
@click.option("-n", "lines", default=10, show_default=True, help="So many of the last lines of its log.")
def report(watch: bool, lines: int) -> None:
    """Shows how the newest training is doing: the last lines of its log, and where its curves are.

    The page of curves needs no network and reloads itself while the training runs. A finished training has the same
    in data/train/monitor.

    \b
      millrace report                  the newest training
      millrace report --watch          and what comes, until it ends
    """
    from pipeline.root import find_root

    folder = newest_training(find_root())
    state = "is running" if is_running(folder) else "has ended" if is_finished(folder) else "was interrupted"
    click.echo(f"run {folder.name} {state}; curves: {folder / 'monitor' / 'curves.html'}")
    whole, place = whole_lines(folder, 0)
    for line in whole[-lines:] if lines > 0 else []:
        click.echo(line)
    if watch:
        for line in following_lines(folder, place):
            click.echo(line)


def newest_training(root: Path) -> Path:
    """The scratch folder of the training whose log was written last.

    Raises:
        BadInput: nothing was trained here.
    """
    from stages.entry import scratch_root  # pydantic: a tenth of a second of every `--help`
    from stages.execution import Execution
    from stages.params import ParamsFile

    execution = ParamsFile(root / "params.yaml").section("execution", Execution)
    base = Path(execution.scratch or scratch_root(root)) / "train"
    logs = sorted(base.glob("*/training.log"), key=lambda path: path.stat().st_mtime)
    if not logs:
        raise BadInput(f"no training in {base}; `dvc repro train` starts one")
    return logs[-1].parent


def is_running(folder: Path) -> bool:
    """Whether a process holds the lock of this scratch folder (stages/entry.py)."""
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
    with (folder / "training.log").open("rb") as file:
        file.seek(place)
        whole, end, _ = file.read().rpartition(b"\n")
    return whole.decode("utf-8").splitlines(), place + len(whole) + len(end)
