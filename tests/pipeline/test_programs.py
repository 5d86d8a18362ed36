"""pipeline.programs: lines are streamed, signals passed on, and nothing outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from pipeline.programs import STOPPED, Programs, ending_signals

ROOT = Path(__file__).parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def is_gone(process: int) -> bool:
    """Whether a process ends within 20 seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_lines_and_exit_code(tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import os, sys; print(os.getcwd()); print('é', os.environ['X'], file=sys.stderr); sys.exit(3)"
    environment = {**os.environ, "X": "1", "PYTHONUNBUFFERED": "1"}
    assert Programs().run(python(code), tmp_path, environment, lines.append) == 3
    assert lines == [str(tmp_path), "é 1"]


def test_lines_come_when_they_are_printed(tmp_path: Path) -> None:
    code = """
        import pathlib, time
        print('first', flush=True)
        while not pathlib.Path('seen').exists(): time.sleep(0.02)
    """
    assert Programs().run(python(code), tmp_path, os.environ, lambda line: (tmp_path / "seen").touch()) == 0


STUBBORN = """
    import os, signal, time
    def heard(number, frame):  # not by print, which the main program may be in just then
        os.write(1, f"{signal.Signals(number).name}\\n".encode())
    for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, heard)
    print('ready', flush=True)
    time.sleep(60)
    time.sleep(60)
    time.sleep(60)
"""


def test_each_signal_asks_harder(tmp_path: Path) -> None:
    programs, lines = Programs(), []

    def on_line(line: str) -> None:
        lines.append(line)
        programs.stop(signal.SIGTERM)  # whichever came, the program is asked as by Ctrl-C first

    assert programs.run(python(STUBBORN), tmp_path, os.environ, on_line) == -signal.SIGKILL
    assert lines == ["ready", "SIGINT", "SIGTERM"]
    assert programs.stopped_by == "SIGTERM"
    assert programs.run(python("print('no')"), tmp_path, os.environ, lines.append) == STOPPED
    assert "no" not in lines


def test_what_a_program_leaves_behind_is_ended(tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid)"
    lines: list[str] = []
    assert Programs().run(python(code), tmp_path, os.environ, lines.append) == 0
    assert is_gone(int(lines[0]))


def test_signals_are_ours_within_the_block_alone(tmp_path: Path) -> None:
    programs = Programs()
    before = signal.getsignal(signal.SIGINT)
    with programs.stop_on_signals():
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        assert programs.run(python("import time; time.sleep(60)"), tmp_path, os.environ, print) == -signal.SIGINT
        assert programs.stopped_by == "SIGINT"
    assert programs.stopped_by is None and signal.getsignal(signal.SIGINT) is before


def test_a_lost_terminal_ends_us_as_sigterm_does_but_not_under_nohup() -> None:
    assert signal.SIGHUP in ending_signals()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert ending_signals() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_kill_9_of_us_ends_the_program(tmp_path: Path) -> None:
    ours = f"""
        import os, pathlib, sys
        from pipeline.programs import Programs
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        folder, command = pathlib.Path({str(tmp_path)!r}), [sys.executable, "-c", code]
        Programs().run(command, folder, os.environ, lambda line: print(line, flush=True))
    """
    process = subprocess.Popen(python(ours), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    program = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert is_gone(program)


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_guard_ends_a_server_and_what_it_has_started(end: signal.Signals) -> None:
    server = """
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(os.getpid(), child.pid, flush=True)
        time.sleep(600)
    """
    ours = f"""
        import subprocess, time
        from pipeline.programs import guarded
        guard = subprocess.Popen(guarded({python(server)!r}), start_new_session=True)
        print(guard.pid, flush=True)
        time.sleep(600)
    """
    process = subprocess.Popen(python(ours), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    guard, *others = [int(number) for _ in range(2) for number in process.stdout.readline().split()]
    if end == signal.SIGKILL:
        process.kill()
    else:
        os.kill(guard, end)
    began = time.monotonic()
    assert all(is_gone(number) for number in [guard, *others])
    assert time.monotonic() - began < 5
    process.kill()
    process.wait()
