"""The Prefect flow `pretrain` over the graph of dvc.yaml.

Each stage is one task that runs `dvc repro --single-item STAGE`: DVC decides, Prefect schedules. Stages
that do not wait for each other run at the same time. A task ends in a state named Unchanged, Cached,
Completed, Failed or Stopped, or NotRun if it waits for one that failed.

`code` comes first and alone, since it judges every param. Then DVC is asked once for all stages that
have become stale; a stage that is not among them, and whose upstream did not run, needs no process of
its own. So a flow with nothing to do asks DVC twice and not once a stage.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from prefect import allow_failure, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from pipeline.graph import Graph, read_graph
from pipeline.programs import STOPPED, programs
from pipeline.reproduce import Reproduced, reproduce, stale_stages
from pipeline.server import prefect_api

GATE = "code"
BUSY_RETRIES = 60
BUSY_SECONDS = 10


def while_busy(task: Any, task_run: TaskRun, state: State) -> bool:
    """Only a stage whose files another DVC process works on is tried again, and none while we stop."""
    return state.name == "Busy" and programs.stopped_by is None


@task(
    retries=BUSY_RETRIES,
    retry_delay_seconds=BUSY_SECONDS,
    retry_condition_fn=while_busy,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(
    stage: str, directory: str, variables: dict[str, str], stale: bool, upstream: dict[str, Reproduced]
) -> State:
    """One stage; `upstream` holds what became of the stages that it waits for."""
    missing = [name for name, result in upstream.items() if not (isinstance(result, Reproduced) and result.done)]
    if missing:
        return Failed(name="NotRun", message=f"waits for {', '.join(missing)}", data=Reproduced("NotRun", 1))
    if not stale and all(result.outcome == "Unchanged" for result in upstream.values()):
        return Completed(name="Unchanged", data=Reproduced("Unchanged"))
    result = reproduce(stage, Path(directory), get_run_logger().info, variables)
    if result.done:
        return Completed(name=result.outcome, data=result)
    messages = {
        "Busy": "another DVC process works on its files",
        "Stopped": f"stopped by {programs.stopped_by or 'a signal'}; the same command goes on from here",
        "Failed": f"exited with {result.exit_code}",
    }
    return Failed(name=result.outcome, message=messages[result.outcome], data=result)


# as many threads as stages: one that waits for another holds its thread
at_once: Any = ThreadPoolTaskRunner()


@flow(name="pretrain", task_runner=at_once, persist_result=False)
def pretrain(
    targets: list[str] | None = None,
    only: bool = False,
    directory: str = ".",
    variables: dict[str, str] | None = None,
) -> State:
    """Runs `targets` and what they wait for, or every stage; with `only`, `code` and the targets.

    Args:
        targets: names of stages in dvc.yaml.
        only: leave out what the targets wait for.
        directory: the root of the repository, or of a copy of it.
        variables: what the environment of the stages gets beside our own.

    Returns:
        a completed state; a failed one, with the exit code of the first stage that failed; or a cancelled
        one after a signal.
    """
    graph = read_graph(Path(directory))
    chosen = graph.select(targets or [], only)
    with programs.stop_on_signals():
        states = _run_all(graph, chosen, directory, variables or {})
        return conclusion(chosen, states)


def _run_all(graph: Graph, chosen: list[str], directory: str, variables: dict[str, str]) -> dict[str, State]:
    """Submits the stages in order and waits for them; the states of those that were submitted."""
    tasks: dict[str, PrefectFuture] = {}

    def submit(stage: str, stale: bool, above: list[str]) -> None:
        named: Any = run_stage.with_options(name=stage, task_run_name=stage)
        # Prefect waits for these, and passes what became of them
        upstream = {name: allow_failure(tasks[name]) for name in above}
        tasks[stage] = named.submit(stage, directory, variables, stale, upstream)

    if GATE in chosen:
        submit(GATE, True, [])
        tasks[GATE].wait()
        if not tasks[GATE].state.is_completed():
            return {GATE: tasks[GATE].state}
    rest = [stage for stage in chosen if stage != GATE]
    stale = stale_stages(Path(directory)) if rest else None
    for stage in rest:
        above = sorted(graph.upstream[stage] & tasks.keys())
        if stale is not None and GATE in above:
            above.remove(GATE)  # what it has changed is in `stale`
        submit(stage, stale is None or stage in stale, above)
    for future in tasks.values():
        future.wait()
    return {stage: future.state for stage, future in tasks.items()}


def conclusion(chosen: list[str], states: dict[str, State]) -> State:
    """The state of the flow, with a line that tells what became of its stages."""
    not_run = [name for name in chosen if name not in states or states[name].name == "NotRun"]
    failed = [name for name, state in states.items() if not state.is_completed() and name not in not_run]
    if programs.stopped_by:
        message = f"stopped by {programs.stopped_by}; the same command goes on from here"
        return Cancelled(name="Stopped", message=message, data=Reproduced("Stopped", STOPPED))
    if failed:
        message = f"{failed[0]}: {states[failed[0]].message}"
        if not_run:
            message += f"; not run: {', '.join(not_run)}"
        return Failed(message=message, data=Reproduced("Failed", exit_code(states[failed[0]])))
    count = Counter(str(state.name).lower() for state in states.values())
    message = ", ".join(f"{number} {outcome}" for outcome, number in sorted(count.items()))
    return Completed(message=message, data=Reproduced("Completed"))


def exit_code(state: State) -> int:
    """The exit code of a stage or of the flow from its state."""
    result = state.result(raise_on_failure=False)
    return result.exit_code if isinstance(result, Reproduced) else 1


def run(targets: list[str], only: bool, directory: Path, variables: dict[str, str] | None = None) -> tuple[int, str]:
    """The flow with a Prefect API around it; its exit code, and the line that tells what happened."""
    with prefect_api():
        state = pretrain(targets, only, str(directory), variables, return_state=True)
        return exit_code(state), state.message or str(state.name)
