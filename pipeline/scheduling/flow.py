"""The Prefect flow `pretrain` over the graph of dvc.yaml.

Each stage is one task that runs `dvc repro --single-item STAGE`: DVC decides, Prefect schedules. Stages
that do not wait for each other run at the same time. A task ends in a state named Unchanged, Cached,
Completed, Failed or Stopped, or NotRun if it waits for one that failed; its message says why it ran.

DVC is asked once, before anything is started. A stage that it would skip, and whose upstream did not run, needs no
process of its own. `code`, which judges every param, runs first and alone where it has to, and then DVC is asked
again. So a flow with nothing to do asks DVC once and not once a stage:

    nothing to do                  dvc status
    train.lr changed               dvc status, repro code, dvc status, repro train, repro evaluate, repro export

`prefect.yaml` makes deployments of this flow, for workers on CPU and GPU machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

from prefect import allow_failure, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import Abort
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from pipeline.experiment import nested, worktree
from pipeline.graph import Graph, read_graph
from pipeline.programs import STOPPED, programs
from pipeline.reproduce import (
    Reproduced,
    Workspace,
    has_remote,
    inputs_came_out_equal,
    reproduce,
    stale_stages,
)
from pipeline.scheduling.artifacts import publish
from pipeline.scheduling.gpu_slot import gpu_slot, on_gpu
from pipeline.scheduling.server import prefect_api
from pipeline.scheduling.states import message_of, show_waiting, why
from stages.errors import BadInput
from stages.signals import die_with_parent

GATE = "code"
BUSY_RETRIES = 60
BUSY_SECONDS = 10
BAD_INPUT = 2


def while_busy(task: Any, task_run: TaskRun, state: State) -> bool:
    """Only a stage whose files another DVC process works on is tried again, and none while we stop."""
    return state.name == "Busy" and programs.stopped_by is None


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage in a run of the flow.

    Attributes:
        stale: whether DVC, asked before anything ran, would run it.
        made: those of its dependencies that other stages make.
        takes_slot: whether it runs on a GPU here.
    """

    stage: str
    stale: bool
    made: tuple[str, ...]
    takes_slot: bool


@task(
    retries=BUSY_RETRIES,
    retry_delay_seconds=BUSY_SECONDS,
    retry_condition_fn=while_busy,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def run_stage(step: Step, workspace: Workspace, upstream: dict[str, Reproduced]) -> State:
    """One stage; `upstream` holds what became of the stages that it waits for."""
    missing = [name for name, result in upstream.items() if not (isinstance(result, Reproduced) and result.done)]
    if missing:
        return Failed(name="NotRun", message=f"waits for {', '.join(missing)}", data=Reproduced("NotRun", 1))
    changed = [name for name, result in upstream.items() if result.outcome != "Unchanged"]
    if not step.stale and (not changed or inputs_came_out_equal(workspace.directory, step.stage, step.made)):
        return Completed(name="Unchanged", message=message_of("Unchanged"), data=Reproduced("Unchanged"))
    say = get_run_logger().info
    reason = "forced" if workspace.force else why(workspace.directory, step.stage, changed)
    held = gpu_slot(say, show_waiting, programs.stopping) if step.takes_slot else contextlib.nullcontext()
    with held:
        result = reproduce(step.stage, workspace, say)
    message = message_of(result.outcome, reason, result.exit_code, programs.stopped_by)
    ended = Completed if result.done else Failed
    return ended(name=result.outcome, message=message, data=result)


# How flows of this process have ended, for the time when no server can be told.
concluded: list[State] = []

# as many threads as stages: one that waits for another holds its thread
at_once: Any = ThreadPoolTaskRunner()


@flow(name="pretrain", task_runner=at_once, persist_result=False)
def pretrain(
    targets: list[str] | None = None,
    only: bool = False,
    force: bool = False,
    overrides: dict[str, Any] | None = None,
    remote: bool = False,
    directory: str = ".",
) -> State:
    """Runs `targets` and what they wait for, or every stage; with `only`, `code` and the targets.

    Args:
        targets: names of stages in dvc.yaml; none for all.
        only: leave out what the targets wait for.
        force: run the chosen stages also where nothing has changed.
        overrides: params for this run alone, such as {"model.post_norm": true}: it works in a git worktree beside
            the workspace, and its result is a DVC experiment.
        remote: where DVC has a default remote, take outputs from it before a stage and send them there after it.
        directory: the root of the repository, or of a copy of it.

    Returns:
        a completed state; a failed one, with the exit code of the first stage that failed; or a cancelled
        one after a signal.
    """
    by_worker = bool(os.environ.get("PREFECT__FLOW_RUN_ID"))
    if by_worker:
        die_with_parent()  # kill -9 of the worker must not leave us behind
        _outlive_output()
    root = Path(directory).resolve()
    with programs.stop_on_signals():
        try:
            workspace = Workspace(root, force=force, remote=remote and has_remote(root))
            if overrides:
                state = _run_beside(workspace, overrides, targets or [], only)
            else:
                state = _run(workspace, read_graph(root), targets or [], only)
        except BadInput as error:
            state = Failed(message=str(error), data=Reproduced("Failed", BAD_INPUT))
    concluded.append(state)
    if by_worker and not state.is_completed():
        # its state and message say everything: any other result would be logged as an unexpected exception
        state.data = Abort(state.message)
    return state


def _outlive_output() -> None:
    """Log lines that no worker reads any more are dropped, where rich would end the process."""
    for handler in logging.getLogger().handlers:
        if console := getattr(handler, "console", None):
            console.on_broken_pipe = lambda: None


def _run_beside(workspace: Workspace, overrides: dict[str, Any], targets: list[str], only: bool) -> State:
    """The same in a worktree with other params; what came out is kept as an experiment."""
    with worktree(workspace.directory, nested(overrides)) as experiment:
        graph = read_graph(experiment.folder)
        beside = Workspace(experiment.folder, experiment.variables, workspace.force, workspace.remote)
        state = _run(beside, graph, targets, only)
        if not state.is_completed():
            return state
        said = experiment.keep(graph, graph.select(targets, only))
    return Completed(message=f"{state.message}; {said}", data=Reproduced("Completed"))


def _run(workspace: Workspace, graph: Graph, targets: list[str], only: bool) -> State:
    chosen = graph.select(targets, only)
    states = _run_all(graph, chosen, workspace)
    state = conclusion(chosen, states)
    publish(workspace, graph, states, get_run_logger().warning)
    return state


def _run_all(graph: Graph, chosen: list[str], workspace: Workspace) -> dict[str, State]:
    """Submits the stages in order and waits for them; the states of those that were submitted."""
    tasks: dict[str, PrefectFuture] = {}
    gpu = on_gpu(workspace.directory)

    def submit(stage: str, above: list[str]) -> None:
        named: Any = run_stage.with_options(name=stage, task_run_name=stage)
        # Prefect waits for these, and passes what became of them
        upstream = {name: allow_failure(tasks[name]) for name in above}
        step = Step(stage, stale is None or stage in stale, graph.made(stage), gpu and graph.stages[stage].gpu)
        tasks[stage] = named.submit(step, workspace, upstream)

    stale = None if workspace.force else stale_stages(workspace.directory)
    if GATE in chosen:
        submit(GATE, [])
        tasks[GATE].wait()
        if not tasks[GATE].state.is_completed():
            return {GATE: tasks[GATE].state}
        if stale is not None and GATE in stale:
            stale = stale_stages(workspace.directory) if len(chosen) > 1 else set()
    for stage in chosen:
        if stage != GATE:
            above = sorted(graph.upstream[stage] & tasks.keys())
            if stale is not None and GATE in above:
                above.remove(GATE)  # what it has changed is in `stale`
            submit(stage, above)
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


def run(root: Path, server: str = "", **parameters: Any) -> tuple[int, str]:
    """The flow with a Prefect API around it; its exit code, and the line that tells what happened.

    Args:
        server: the address of a server to use where none is configured.
        parameters: those of `pretrain`, but for the directory.
    """
    concluded.clear()
    with prefect_api(server):
        try:
            state = pretrain(**parameters, directory=str(root), return_state=True)
            lost = ""
        except Exception as error:  # the server went away for longer than Prefect's client asks again, a minute
            if not concluded:
                raise
            state, lost = concluded[-1], f"; the Prefect server could not be told ({type(error).__name__})"
        return exit_code(state), (state.message or str(state.name)) + lost
