"""Runs programs that end when we end, and streams their lines.

Two ways to end are covered. Ctrl-C, SIGTERM, or SIGHUP from a terminal that ends (nohup has it
ignored, and it stays so): the signal is passed on as SIGINT to the program's own process group, which
is how DVC leaves the decision to its stage, and we wait until the stage has saved what it must; a
second signal passes SIGTERM, a third SIGKILL. kill -9 of us: the program was started by way of this
very file, which asks Linux for a SIGTERM at the death of its parent. And what a program leaves behind
in its group when it ends is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

ESCALATION = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
STOPPED = 130
LEFT_BEHIND_SECONDS = 3
GUARD = "--guard"
GUARD_SECONDS = 2.5


class Programs:
    """What is running, so that it can be stopped together.

    Attributes:
        stopped_by: the name of the first signal that asked for the end, or None.
    """

    def __init__(self) -> None:
        self.stopped_by: str | None = None
        self._n_signals = 0
        self._groups: dict[int, bool] = {}  # by its number, whether there is work to save before it ends
        self._lock = threading.Lock()

    def run(
        self, command: Sequence[str], directory: Path, environment: Mapping[str, str], on_line: Callable[[str], None]
    ) -> int:
        """Runs a program to its end, each line of its output given to `on_line`.

        Returns:
            its exit code (minus the number of the signal that killed it), or 130 when we are stopping.
        """
        program = self._start(command, directory, environment, subprocess.STDOUT, saves=True)
        if program is None:
            return STOPPED
        reader = threading.Thread(target=_read, args=(program, on_line), daemon=True)
        reader.start()
        try:
            exit_code = program.wait()
            reader.join(timeout=LEFT_BEHIND_SECONDS)
            if reader.is_alive():  # a process that it has left behind still holds its output
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(program.pid, signal.SIGKILL)
                reader.join(timeout=LEFT_BEHIND_SECONDS)
            return exit_code
        finally:
            with self._lock:
                del self._groups[program.pid]

    def ask(
        self, command: Sequence[str], directory: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program that only looks to its end, and gives what it said; its exit code is as from `run`.

        The first signal reaches it as SIGTERM: it has nothing to save, and may wait where Python never hears of SIGINT.
        """
        program = self._start(command, directory, environment, subprocess.PIPE, saves=False)
        if program is None:
            return subprocess.CompletedProcess(command, STOPPED, "", "")
        try:
            said, errors = program.communicate()
            return subprocess.CompletedProcess(command, program.returncode, said, errors)
        finally:
            with self._lock:
                del self._groups[program.pid]

    def _start(
        self, command: Sequence[str], directory: Path, environment: Mapping[str, str], stderr: int, saves: bool
    ) -> subprocess.Popen[str] | None:
        """The program in a group of its own, which `stop` reaches from now on; None when we are stopping."""
        with self._lock:
            if self.stopped_by:
                return None
            program = subprocess.Popen(
                bound(command),
                cwd=directory,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
            self._groups[program.pid] = saves
            return program

    def stop(self, number: int) -> None:
        """Asks everything that runs to end; each further call asks harder."""
        self.stopped_by = self.stopped_by or signal.Signals(number).name
        for group, saves in list(self._groups.items()):
            passed_on = ESCALATION[min(self._n_signals + (not saves), len(ESCALATION) - 1)]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, passed_on)
        self._n_signals += 1

    def stopping(self) -> bool:
        """Whether a signal has asked for the end."""
        return self.stopped_by is not None

    @contextlib.contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """Within this block SIGINT, SIGTERM and SIGHUP call `stop` and nothing else; after it programs run again.

        In another than the main thread, where signals never arrive, it does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self.stop(number)

        before = {number: signal.signal(number, handle) for number in ending_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.stopped_by, self._n_signals = None, 0


programs = Programs()


def ending_signals() -> list[signal.Signals]:
    """The signals that ask a program to end; without SIGHUP where nohup has it ignored."""
    hung_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hung_up]


def _read(program: subprocess.Popen[str], on_line: Callable[[str], None]) -> None:
    assert program.stdout is not None
    for line in program.stdout:
        on_line(line.rstrip("\n"))


def bound(command: Sequence[str]) -> list[str]:
    """The command, started so that it gets SIGTERM when the thread that starts it dies."""
    return [sys.executable, "-S", __file__, str(os.getpid()), *command]


def guarded(command: Sequence[str]) -> list[str]:
    """The command, with a guard that ends it, and all it has started in its group, when we die or ask for it.

    For servers, which start processes of their own and take their time to end. To be started in a new session.
    """
    return [sys.executable, "-S", __file__, GUARD, str(os.getpid()), *command]


def _ask_for_signal(parent: int) -> None:
    """SIGTERM for this process when its parent dies; the request outlives exec."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(STOPPED)


class _Asked(Exception):
    """A signal asks the guard for the end."""


def _guard(command: list[str]) -> None:
    """Runs the command in this process group. At its end, or at a signal, nothing of the group is left."""

    def ask(number: int, frame: FrameType | None) -> None:
        raise _Asked

    program = None
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ask)
        program = subprocess.Popen(bound(command))
        program.wait()
    except _Asked:
        pass
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    if program:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(timeout=GUARD_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    if sys.argv[1] == GUARD:
        _ask_for_signal(int(sys.argv[2]))
        _guard(sys.argv[3:])
    _ask_for_signal(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
