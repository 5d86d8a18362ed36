"""training.log: one line for each thing worth telling, for people, and the same lines on the screen.

Every line begins with its step, so that a resumed run can drop what its checkpoint does not have, and
none stands twice. Example, resumed at step 100:

    step 100 tokens 409600 loss 3.2114 .. validation 3.3012 NEW BEST     kept
    step 110 tokens 450560 loss 3.1                                      half written: dropped
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stages.progress import say

PROBES = "probes.csv"  # stages/train/probes.py writes it; without probes it is this line alone
MEASURES = ("activation_rms", "gradient_norm", "update_to_weight", "attention_logit_max", "dead_units")
TABLES = ("loss.csv", PROBES)  # which a checkpoint holds, up to its step
HEADER = ",".join(("step", "layer", *MEASURES)) + "\n"


class Journal:
    """The file training.log of a run. Until it is opened, and on all ranks but the first, it takes no line."""

    def __init__(self, path: Path):
        self.path = path

    def open(self, step: int) -> None:
        """Goes on behind `step`, or begins anew at step 0."""
        if step == 0:
            self.path.write_text("")
        else:
            keep_lines(self.path, step, lambda line: line.split()[1])
        # line by line: the checkpoint of a step must not be on the disk before its line is
        self.file = self.path.open("a", buffering=1)

    def write(self, line: str) -> None:
        if hasattr(self, "file"):
            self.file.write(line + "\n")
            say(line)

    def close(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


def keep_lines(path: Path, last_step: int, step_of: Callable[[str], str]) -> None:
    """Drops the lines of steps after `last_step`, and a half-written last line; keeps a header."""
    kept = []
    for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith("\n"):
            continue
        number = step_of(line)
        if not number.isdigit() or int(number) <= last_step:
            kept.append(line)
    beside = path.with_suffix(".partial")
    beside.write_text("".join(kept))
    beside.replace(path)
