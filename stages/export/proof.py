"""Runs check.py in a process of its own, which opens the export as a user would.

    with Proof() as proof:              # starts importing torch and transformers
        ...                             # the folders are written in the meantime
        proof.begin(request)
        ...                             # other work, beside it
        figures = proof.figures()

The process has no network, and it is gone when the block ends, whatever happened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import stages
from stages.errors import Failed
from stages.export.check import Request

CHECK_MODULE = "stages.export.check"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "true"}


class Mismatch(Failed):
    """The export does not do what the checkpoint does."""


class Proof:
    """The other process."""

    def __enter__(self) -> Proof:
        code = Path(stages.__file__).parents[1]
        paths = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", CHECK_MODULE],
            cwd=code,
            env={**os.environ, **OFFLINE, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()

    def begin(self, request: Request) -> None:
        """Sends the request; the process begins to compare."""
        assert self._process.stdin is not None
        self._folder = request.folder
        with contextlib.suppress(BrokenPipeError):  # it has ended; `figures` says so
            self._process.stdin.write(json.dumps(dataclasses.asdict(request)) + "\n")
            self._process.stdin.flush()

    def figures(self) -> dict[str, Any]:
        """Waits for those of `check.check`.

        Raises:
            Mismatch: what differs, by name.
        """
        answer, _ = self._process.communicate()
        if self._process.returncode:
            raise Mismatch(f"{self._folder} could not be opened and compared; the error stands above")
        compared: dict[str, Any] = json.loads(answer.splitlines()[-1])  # code that travels with a model may print
        if compared["problems"]:
            raise Mismatch(f"data/export: {'; '.join(compared['problems'])}; nothing was published")
        return compared
