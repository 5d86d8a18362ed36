"""The concurrency limit `gpu` of a Prefect server: as many slots as there are GPUs to share.

A stage that runs on a GPU (`meta: {gpu: true}` in dvc.yaml, and execution.device not the CPU) holds one slot while
it runs; no other stage ever does, nor one that has nothing to do. Where the server has no limit of that name, or
there is no server, nothing is held: the lock of the device itself (stages/devices.py) still keeps two trainings
from one card.

A slot is lent for a minute (`LEASE_SECONDS`, the shortest that Prefect knows) and lent again every twenty seconds,
so that a flow that was killed gives its slot back by itself:

    12:00:00  flow A, training, is killed with kill -9; its lease was renewed at 11:59:50
    12:00:50  the lease ends; within a few seconds the server takes the slot back
    12:00:55  flow B, which has said every ten seconds what it waits for, goes on
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stages.devices import visible_devices
from stages.execution import Execution
from stages.params import ParamsFile

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

LIMIT = "gpu"
LEASE_SECONDS = 60
RENEW_SECONDS = 20
ASK_SECONDS = 1.0
SAY_SECONDS = 10.0
NO_FREE_SLOT = 423  # the status of such an answer


class Taken(Exception):
    """No slot is free now."""


def on_gpu(root: Path) -> bool:
    """Whether the stages that can use a GPU get one here: execution.device, or what there is."""
    device = ParamsFile(root / "params.yaml").section("execution", Execution).device
    return bool(visible_devices()) if device == "auto" else device == "cuda"


@contextlib.contextmanager
def gpu_slot(say: Callable[[str], None], show: Callable[[str], bool], stopping: Callable[[], bool]) -> Iterator[None]:
    """Holds a slot of `gpu` for the block, after waiting for one; holds none where there is no such limit.

    Args:
        say: gets a line when it has to wait, and every ten seconds while it does.
        show: gets the same, to be shown as the state of the task, again until it says that it was; an empty text
            when the waiting is over.
        stopping: whether to give up: the block then runs without a slot and must find out for itself.
    """
    from prefect import get_client

    with get_client(sync_client=True) as client:
        lease = _wait(client, say, show, stopping)
        if lease is None:
            yield
            return
        over = threading.Event()
        renewing = threading.Thread(target=_renew, args=(lease, over), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            with contextlib.suppress(Exception):  # a server that is away forgets the lease when it ends
                client.release_concurrency_slots_with_lease(lease)


def _wait(
    client: SyncPrefectClient, say: Callable[[str], None], show: Callable[[str], bool], stopping: Callable[[], bool]
) -> UUID | None:
    """The lease of a slot, as soon as there is one; None without a limit or a server, or when stopping."""
    began = time.monotonic()
    next_line, was_shown = began, True
    while not stopping():
        try:
            lease = _ask(client)
        except Taken:
            if (now := time.monotonic()) >= next_line:
                line = f"waits for a slot of `{LIMIT}` since {now - began:.0f} s ({_occupied(client)})"
                say(line)
                next_line, was_shown = now + SAY_SECONDS, False
            was_shown = was_shown or show(line)
            time.sleep(ASK_SECONDS)
            continue
        except Exception as error:  # any way in which a server can be away
            say(f"no slot of `{LIMIT}` can be had ({type(error).__name__}): goes on without one")
            lease = None
        if next_line > began:
            say(f"goes on after {time.monotonic() - began:.0f} s of waiting for `{LIMIT}`")
            show("")
        return lease
    return None


def _ask(client: SyncPrefectClient) -> UUID | None:
    """The lease of a slot; None where there is no such limit.

    Raises:
        Taken: all slots are in use.
    """
    from uuid import UUID

    from httpx import HTTPStatusError
    from prefect.client.schemas.objects import ConcurrencyLeaseHolder
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    holder = ConcurrencyLeaseHolder(type="task_run", id=context.task_run.id) if context else None
    try:
        answer = client.increment_concurrency_slots_with_lease(
            names=[LIMIT], slots=1, mode="concurrency", lease_duration=LEASE_SECONDS, holder=holder
        ).json()
    except HTTPStatusError as error:
        if error.response.status_code == NO_FREE_SLOT:
            raise Taken from None
        raise
    return UUID(answer["lease_id"]) if answer["limits"] else None


def _occupied(client: SyncPrefectClient) -> str:
    with contextlib.suppress(Exception):
        limit = client.read_global_concurrency_limit_by_name(LIMIT)
        return f"{limit.active_slots} of {limit.limit} taken"
    return "all taken"


def _renew(lease: UUID, over: threading.Event) -> None:
    """Keeps the lease until `over`. A server that does not answer is asked again: training is not stopped for it."""
    from prefect import get_client

    with get_client(sync_client=True) as client:
        while not over.wait(RENEW_SECONDS):
            with contextlib.suppress(Exception):
                client.renew_concurrency_lease(lease, LEASE_SECONDS)
