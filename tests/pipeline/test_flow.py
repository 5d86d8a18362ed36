"""pipeline.scheduling.flow: a real Prefect server, a real DVC, trivial stages."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pipeline.tiny_repository import dvc

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.slow]


@pytest.fixture
def states(repository: Path) -> Callable[..., dict[str, str]]:
    """Runs the flow in the tiny repository: the name of every stage's state, and `flow` with its exit code."""

    def run(*targets: str, only: bool = False, force: bool = False) -> dict[str, str]:
        from prefect import get_client

        from pipeline.scheduling import flow

        state = flow.pretrain(list(targets), only, force, directory=str(repository), return_state=True)
        with get_client(sync_client=True) as client:
            deadline = time.monotonic() + 30
            while True:  # the server hears of the stages a little later
                runs = client.read_task_runs()
                mine = [r for r in runs if r.flow_run_id == state.state_details.flow_run_id]
                found = {r.name: str(r.state_name) for r in mine}
                if not {"Running", "Pending"} & set(found.values()) or time.monotonic() > deadline:
                    break
                time.sleep(0.2)
        named = state.name if state.is_completed() or state.is_failed() else f"{state.name} {state.message}"
        return {**found, "flow": f"{named} {flow.exit_code(state)}"}

    return run


def names(*stages: str, of: str) -> dict[str, str]:
    return dict.fromkeys(stages, of)


ALL = ("code", "left", "right", "join", "last")


def test_stages_run_once_then_are_unchanged_and_come_back_from_the_cache(
    repository: Path, states: Callable[..., dict[str, str]], behave: Callable[..., None]
) -> None:
    behave("left", "meet right")  # each waits until the other is at work: the branches run at the same time
    behave("right", "meet left")
    assert states() == {**names(*ALL, of="Completed"), "flow": "Completed 0"}
    assert (repository / "out" / "last").read_text().startswith("last(join(")
    assert states() == {**names(*ALL, of="Unchanged"), "flow": "Completed 0"}

    params = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(params.replace("amount: 1", "amount: 2"))
    changed = {**names("code", "left", "join", "last", of="Completed"), "right": "Unchanged", "flow": "Completed 0"}
    assert states() == changed
    (repository / "params.yaml").write_text(params)
    assert states() == {name: "Cached" if state == "Completed" else state for name, state in changed.items()} | {
        "flow": "Completed 0"
    }
    assert dvc(repository, "status").strip() == "Data and pipelines are up to date."

    (repository / "source.txt").write_text("another")
    assert states("join", only=True) == {"code": "Completed", "join": "Unchanged", "flow": "Completed 0"}
    forced = {"code": "Completed", "join": "Completed", "flow": "Completed 0"}
    assert states("join", only=True, force=True) == forced


def test_a_failed_stage_keeps_its_code_and_what_waits_for_it_does_not_run(
    repository: Path, states: Callable[..., dict[str, str]], behave: Callable[..., None]
) -> None:
    behave("left", "fail 2")
    done = {"code": "Completed", "right": "Completed"}
    assert states() == {**done, "left": "Failed", "join": "NotRun", "last": "NotRun", "flow": "Failed 2"}
    assert not (repository / "out" / "join").exists()
    (repository / "source.txt").write_text("another")
    behave("code", "fail 3")
    assert states() == {"code": "Failed", "flow": "Failed 3"}


@pytest.fixture
def signal_when_there(repository: Path) -> Iterator[Callable[[str, int], None]]:
    """Sends this process a signal as soon as a stage is at work."""
    threads: list[threading.Thread] = []

    def send(stage: str, number: int) -> None:
        def wait_and_send() -> None:
            while not (repository / "behaviour" / f"{stage}.here").exists():
                time.sleep(0.05)
            os.kill(os.getpid(), number)

        threads.append(threading.Thread(target=wait_and_send, daemon=True))
        threads[-1].start()

    yield send
    for thread in threads:
        thread.join(timeout=10)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_stages_and_the_flow_says_so(
    states: Callable[..., dict[str, str]],
    behave: Callable[..., None],
    signal_when_there: Callable[[str, int], None],
    number: signal.Signals,
) -> None:
    behave("code", "wait")
    signal_when_there("code", number)
    end = f"Stopped stopped by {number.name}; the same command goes on from here 130"
    assert states() == {"code": "Stopped", "flow": end}
