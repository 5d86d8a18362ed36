"""What the states of tasks say in Prefect: why a stage ran, where its result came from, what it waits for.

Unchanged   params, files and code are those of its last run
Cached      an equal run is in the cache; it was due because param model.post_norm: false -> true
Completed   because param model.post_norm: false -> true
WaitsForGPU waits for a slot of `gpu` since 20 s (1 of 1 taken)
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from pipeline.explain import reasons
from pipeline.reproduce import Outcome

SHOWN = 3  # reasons; the rest is counted


def why(root: Path, stage: str, changed: Sequence[str]) -> str:
    """Why a stage that is due is due, in a line; never an exception, since nothing depends on it.

    Args:
        changed: stages that it waits for and that have just run.
    """
    with contextlib.suppress(Exception):
        if found := [str(reason) for reason in reasons(root, stage)]:
            more = len(found) - SHOWN
            return "; ".join(found[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return f"{', '.join(changed)} ran" if changed else ""


def message_of(outcome: Outcome, reason: str = "", exit_code: int = 0, stopped_by: str | None = None) -> str:
    """The message of a task's last state."""
    because = f"because {reason}" if reason and reason != "forced" else reason
    match outcome:
        case "Unchanged":
            return "params, files and code are those of its last run"
        case "Cached":
            return "an equal run is in the cache" + (f"; it was due {because}" if because else "")
        case "Completed":
            return because or "it was due"
        case "Busy":
            return "another DVC process works on its files"
        case "Stopped":
            return f"stopped by {stopped_by or 'a signal'}; the same command goes on from here"
    return f"exited with {exit_code}"


def show_waiting(line: str) -> bool:
    """Shows in the UI that the present task waits, and for what; an empty line when it goes on.

    Returns False where the server does not know the task yet, which it does a little later.
    """
    from prefect import get_client
    from prefect.client.schemas.objects import State
    from prefect.context import TaskRunContext
    from prefect.states import Running

    context = TaskRunContext.get()
    if context is None:
        return True
    state: State = Running(name="WaitsForGPU", message=line) if line else Running()
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # a picture, not the work
        client.set_task_run_state(context.task_run.id, state, force=True)
        return True
    return False
