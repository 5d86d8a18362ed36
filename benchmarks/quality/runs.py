"""Trains the points of the plan, by the product's own step, and appends a line to RUNS.jsonl for each that ends.

One process trains point after point on its GPU. The model is built, compiled and recorded as a CUDA graph once; a run
copies new first weights into it and gets optimizers of its own. Learning rates are numbers of the optimizers, not of
compiled code, so a run starts in a second. Two processes share a GPU: while Python starts the kernels of one's
optimizer step, the other's forward pass has the device.

A run that the deadline overtakes is given up, and what has ended is on the disk: the same command goes on from there.
Optional phases leave time for the finals.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from benchmarks.quality.plan import BUDGETS, PHASES, SEEDS, Point, Record, Size, finals, further, point_of, points_of

SPARE = 15.0  # seconds of the deadline that no run is begun in
TUNING_RUNS = 3 * 12 + 2 * (12 + 4)
FINAL_BUDGETS = len(SEEDS) * (1 + sum(BUDGETS))  # whole budgets of all finals

_trainer: Trainer | None = None  # of this process


class Trainer:
    """One model on one device, ready for any point."""

    def __init__(self, data: Path, size: Size, device: str):
        import torch

        from benchmarks.sides import Ours, Setting
        from stages.tokens import TokenRows

        if device != "cpu":
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(1)
        self.size, self.device = size, device
        self.rows = {split: TokenRows(data / split) for split in ("train", "validation", "test")}
        params = Point("adamw", {"warmup": 0.05}).params(size)
        vocab_size = self.rows["train"].vocab_size
        setting = Setting(
            size.model, vocab_size, size.context_length, size.micro_batch, params, device, packed=True
        )  # fmt: skip
        self.run = Ours(setting).run

    def train(self, point: Point, deadline: float) -> Record | None:
        """What became of it; None if the deadline came first."""
        import torch

        from stages.train.batches import Batches
        from stages.train.loop import launch_step

        started = time.time()
        params = self.begin(point)
        rows = self.rows["train"]
        rows_per_step = params.batch_tokens // rows.context_length
        if params.max_steps * rows_per_step > rows.n_rows:
            raise ValueError(f"{params.max_steps * rows_per_step} rows of {rows.n_rows}: more than one epoch")
        batches = Batches(rows, params.seed, rows_per_step, 0, 1, self.size.micro_batch, 0, self.device)
        figures = []
        try:
            for step in range(params.max_steps):
                if time.time() > deadline:
                    return None
                figures.append(launch_step(self.run, [], batches, step).figures)
        finally:
            batches.close()
        losses, norms = torch.stack(figures).T.tolist()
        finite = [loss for loss, norm in zip(losses, norms, strict=True) if math.isfinite(loss) and math.isfinite(norm)]
        trained = time.time() - started
        return {
            **dataclasses.asdict(point),
            "steps": params.max_steps, "tokens": params.max_steps * params.batch_tokens, "of_epoch":
            params.max_steps * rows_per_step / rows.n_rows, "first_loss": losses[0],
            "train_loss": statistics.mean(finite[-max(1, params.max_steps // 20) :]) if finite else None,
            "skipped": len(losses) - len(finite), "validation_loss": self.loss("validation"),
            "test_loss": self.loss("test"), "train_seconds": trained, "seconds": time.time() - started,
        }  # fmt: skip

    def begin(self, point: Point) -> Any:
        """First weights of the point's seed, and its optimizers."""
        import torch

        from model.decoder import Decoder
        from stages.train.optimizers import Optimizers

        params = point.params(self.size)
        fresh = Decoder(self.size.model, self.rows["train"].vocab_size, self.size.context_length)
        fresh.initialise(torch.Generator().manual_seed(params.seed))
        self.run.model.load_state_dict(fresh.state_dict())
        self.run.params, self.run.optimizers = params, Optimizers(self.run.model, params)
        return params

    def loss(self, split: str) -> float | None:
        """Nats a label over the split, but for some rows: passes of one size are compiled once."""
        from stages.perplexity import ROWS_PER_FORWARD, split_loss
        from stages.train.hooks import validation_row_ids
        from stages.train.objective import autocast

        rows, model = self.rows[split], self.run.model
        passes = min(rows.n_rows, self.size.measured // rows.context_length) // ROWS_PER_FORWARD
        row_ids = validation_row_ids(rows, passes * ROWS_PER_FORWARD * rows.context_length)
        model.eval()
        with autocast(self.device, self.size.precision):
            nats, labels = split_loss(model, rows, row_ids, self.device)
        model.train()
        return nats / labels if math.isfinite(nats) else None


def begin_process(data: Path, size: Size, devices: Queue[str]) -> None:
    global _trainer
    _trainer = Trainer(data, size, devices.get())


def train_point(point: Point, deadline: float) -> Record | None:
    assert _trainer is not None
    return _trainer.train(point, deadline)


class Plan:
    """The runs of a file, and the processes that add to them until the deadline."""

    def __init__(self, data: Path, runs: Path, size: Size, seconds: float, per_gpu: int, rate: float):
        import torch

        n_gpus = torch.cuda.device_count()
        self.devices = [f"cuda:{number}" for number in range(n_gpus) for _ in range(per_gpu)] or ["cpu"]
        self.data, self.runs, self.size, self.rate = data, runs, size, rate
        self.started = time.time()
        self.deadline = self.started + seconds
        self.spare = min(SPARE, seconds / 10)
        self.records = read_runs(runs)[1]
        if not runs.exists():
            name = torch.cuda.get_device_name() if n_gpus else "CPU"
            about = {**json.loads((data / "about.json").read_text(encoding="utf-8")), "torch": torch.__version__}
            about |= {"device": f"{n_gpus} x {name}, {per_gpu} processes each" if n_gpus else name}
            about |= {"model": dataclasses.asdict(size.model), "batch_tokens": size.batch_tokens}
            self.append({"about": about})
        whole = TUNING_RUNS + FINAL_BUDGETS - len(self.records)
        self.say(
            f"{len(self.records)} runs are there; about {whole:.0f} whole budgets of {size.tokens:,} tokens to go: "
            f"{self.expected(whole):.0f} s at {rate:,.0f} tokens/s in each of {len(self.devices)} processes, and "
            "first the compiling"
        )

    def train_all(self, only: Sequence[str] = ()) -> None:
        """All phases in turn; or, of `only`, further points alone."""
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")  # of each process
        context = multiprocessing.get_context("spawn")
        devices = context.Queue()
        for device in self.devices:
            devices.put(device)
        arguments = (self.data, self.size, devices)
        with concurrent.futures.ProcessPoolExecutor(len(self.devices), context, begin_process, arguments) as pool:
            if only:
                self.train_phase("further", [further(self.records, text) for text in only], pool, 0.0)
                return
            for phase in PHASES:
                reserve = 0.0 if phase == "final" else self.expected(FINAL_BUDGETS)
                self.train_phase(phase, points_of(phase, self.records), pool, reserve)

    def train_phase(
        self, phase: str, points: Sequence[Point], pool: concurrent.futures.Executor, reserve: float
    ) -> None:
        """The points that are missing, as long as there is time: `reserve` seconds are for what comes after."""
        done = {point_of(record).name for record in self.records}
        waiting = list({point.name: point for point in points if point.name not in done}.values())
        self.say(f"{phase}: {len(waiting)} of {len(points)} runs to train")
        running: dict[concurrent.futures.Future[Record | None], Point] = {}
        while waiting or running:
            while waiting and len(running) < len(self.devices):
                if time.time() + self.seconds_of(waiting[0].budget) + reserve + self.spare > self.deadline:
                    self.say(f"{phase}: no time for {len(waiting)} runs more")
                    waiting = []
                    break
                point = waiting.pop(0)
                running[pool.submit(train_point, point, self.deadline)] = point
            for future in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                self.take(future, running.pop(future), phase)

    def take(self, future: concurrent.futures.Future[Record | None], point: Point, phase: str) -> None:
        try:
            record = future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise
        except Exception as error:
            self.say(f"{point.name} FAILED {type(error).__name__} {str(error)[:300]}")
            return
        if record is None:
            self.say(f"{point.name} given up at the deadline")
            return
        record["phase"] = phase
        self.records.append(record)
        self.append(record)
        loss = "diverged" if record["validation_loss"] is None else f"{record['validation_loss']:.4f}"
        self.say(f"{loss}  {point.name}  ({record['seconds']:.1f} s, {record['skipped']} steps skipped)")

    def seconds_of(self, budget: float) -> float:
        """Of a run, by the last ones: the first of each process compiles."""
        if not self.records:
            return budget * self.size.tokens / self.rate
        return budget * statistics.median(record["seconds"] / record["budget"] for record in self.records[-16:])

    def expected(self, budgets: float) -> float:
        return self.seconds_of(1.0) * budgets / len(self.devices)

    def append(self, line: Record) -> None:
        with self.runs.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def say(self, message: str) -> None:
        print(f"[{time.time() - self.started:6.1f} s] {message}", flush=True)


def run_plan(
    data: Path, runs: Path, size: Size, seconds: float, per_gpu: int, rate: float, only: Sequence[str] = ()
) -> None:
    plan = Plan(data, runs, size, seconds, per_gpu, rate)
    plan.train_all(only)
    missing = len({point.name for point in finals(plan.records)} - {point_of(record).name for record in plan.records})
    plan.say(f"{runs}: {len(plan.records)} runs" + (f"; {missing} finals are missing" if missing else ""))


def read_runs(path: Path) -> tuple[Record, list[Record]]:
    """What the runs have in common, and the runs."""
    if not path.exists():
        return {}, []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return lines[0]["about"], lines[1:]
