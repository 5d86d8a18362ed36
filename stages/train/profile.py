"""Traces `execution.profile` steps: where the time goes, kernel by kernel.

    monitor/trace.json    opens in chrome://tracing and ui.perfetto.dev: every operator and kernel on a time line
    monitor/kernels.csv   name, calls, self time in microseconds and its share, the most expensive first

The first steps compile and are left out. Only the first rank is traced. Tracing costs time, so the rate of
a profiled run is not its speed; with `profile: 0` there is no trace of it.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType

from stages.progress import say
from stages.tracking import Run
from stages.train.run import TrainingRun
from stages.train.step import Hook, StepResult
from stages.train.timing import WARM_UP_STEPS, is_gpu
from stages.wording import counted

SHOWN = 10


class Profile(Hook):
    """Comes first, so that validations and checkpoints behind the last traced step are not in the trace."""

    def __init__(self, tracked: Run):
        self.tracked = tracked
        self.profiler: torch.profiler.profile | None = None

    def start(self, run: TrainingRun) -> None:
        self.first = run.state.step + WARM_UP_STEPS
        self.last = self.first + run.execution.profile

    def needs(self, run: TrainingRun, step: int) -> bool:
        return bool(run.execution.profile) and step in (self.first, self.last)

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        if not run.ranks.first or not self.needs(run, run.state.step):
            return
        if run.state.step == self.first:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if is_gpu(run.ranks.device):
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.profiler = torch.profiler.profile(activities=activities)
            self.profiler.start()
        else:
            self.close(run)

    def close(self, run: TrainingRun) -> None:
        if self.profiler is not None:
            self.profiler.stop()
            self.write(self.profiler, run.folder / "monitor", run.state.step - self.first)
            self.profiler = None

    def write(self, profiler: torch.profiler.profile, folder: Path, n_steps: int) -> None:
        folder.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        kernels = kernel_table(profiler.key_averages())
        with (folder / "kernels.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("name", "calls", "self_us", "share"))
            writer.writerows(kernels)
        for name in ("trace.json", "kernels.csv"):
            self.tracked.artifact(folder / name, "profile")
        say(f"train: {counted(n_steps, 'step')} traced: {folder}/trace.json and kernels.csv; the most expensive:")
        for name, calls, microseconds, share in kernels[:SHOWN]:
            say(f"  {share:6.1%} {microseconds / 1e3:10.2f} ms {calls:6d} x {name[:90]}")


def kernel_table(averages: Any) -> list[tuple[str, int, float, float]]:
    """(name, calls, self microseconds, share): kernels of the GPU where there are any, else operators of the CPU."""
    on_gpu = [event for event in averages if event.device_type == DeviceType.CUDA]
    chosen = on_gpu or list(averages)
    rows = [
        (event.key, event.count, float(event.self_device_time_total if on_gpu else event.self_cpu_time_total))
        for event in chosen
    ]
    total = sum(row[2] for row in rows) or 1.0
    ordered = sorted(rows, key=lambda row: (-row[2], row[0]))
    return [(name, calls, round(spent, 1), round(spent / total, 5)) for name, calls, spent in ordered if spent]
