"""The doors to the one graph, side by side: `dvc repro`, `dvc exp run`, `millrace run`, a deployment of `millrace up`.

    python -m benchmarks.doors                          # 10 minutes on two cores
    python -m benchmarks.doors --doors repro flow

Each door gets a clone of its own with a DVC cache of its own, the params of recipes/smoke.yaml and a training of some
seconds (`OVERRIDES`), and goes through the same five situations:

    fresh       an empty cache
    nothing     again, nothing changed
    cached      data/ and dvc.lock away, the run cache there
    killed      train with another seed; kill -9 of all but `millrace up` once there is a checkpoint; the same again
    cancelled   a third seed; SIGINT (a deployment: cancelled through the API); the same again

A row says how long each took and what DVC or the flow made of it, and how many processes were left five seconds after
the kill or the cancellation. At the end the outputs up to train, but for times and logs,
must have the same hashes at each seed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from pipeline import environment
from pipeline.dvc_program import dvc_command
from pipeline.smoke import copy_working_tree, override_params

ROOT = Path(__file__).parents[1]
DOORS = ("repro", "exp", "flow", "deployment")
OVERRIDES = {"train": {"max_steps": 400, "eval_interval": 400}, "execution": {"checkpoint_interval": 40}}
TRAIN = ("train",)
OF_THE_RUN = ("data/train/timing.json", "data/train/training.log", "data/train/monitor")  # times, which no stage reads
TO_TRAIN = ("code", "download", "clean", "dedup", "tokenizer", "pack", "train")
STATES = re.compile(r"(\d+) (unchanged|cached|completed|stopped|failed)")


class Door:
    """A clone, and one way to run its graph."""

    def __init__(self, name: str, root: Path):
        self.name, self.root, self.n_experiments = name, root, 0
        self.services: set[int] = set()
        self.port = self._free_port() if name == "deployment" else 0

    def _free_port(self) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return free.getsockname()[1]

    def command(self, targets: Sequence[str]) -> list[str]:
        python = [sys.executable, "-m"]
        if self.name == "repro":
            return [*dvc_command(self.root, "repro"), *targets]
        if self.name == "exp":
            self.n_experiments += 1
            return [*dvc_command(self.root, "exp", "run", "--name", f"run-{self.n_experiments}"), *targets]
        if self.name == "flow":
            return [*python, "pipeline.cli", "run", *targets]
        chosen = ["--param", f"targets={json.dumps(targets)}"] if targets else []
        return [*python, "prefect", "deployment", "run", "pretrain/cpu", "--watch", *chosen]

    def variables(self) -> dict[str, str]:
        api = {"PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api"} if self.port else {}
        return {"PYTHONPATH": str(self.root), **api}

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """For a deployment: `millrace up` in the clone, for as long as the block runs."""
        if not self.port:
            yield
            return
        command = [sys.executable, "-m", "pipeline.cli", "up", "--port", str(self.port), "--gpus", "0"]
        up = subprocess.Popen(
            [*command, "--mlflow-port", "0"],
            cwd=self.root,
            env=environment.for_programs({"PYTHONPATH": str(self.root)}),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert up.stdout
        for line in up.stdout:
            if "Ctrl-C stops" in line:
                break
        self.services = {process.pid for process in processes_in(self.root)}
        try:
            yield
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait()

    def start(self, targets: Sequence[str] = ()) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(targets),
            cwd=self.root,
            env=environment.for_programs(self.variables()),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, targets: Sequence[str] = ()) -> str:
        """Runs the graph, or what `targets` need, to its end; a line on time and outcome."""
        began = time.monotonic()
        output, _ = self.start(targets).communicate()
        return f"{time.monotonic() - began:.1f} s: {self.outcome(output)}"

    def outcome(self, output: str) -> str:
        if found := STATES.findall(output.split("Finished in state")[-1]):
            return ", ".join(" ".join(pair) for pair in found)
        counts = Counter(
            ran=output.count("Running stage '"),
            cached=output.count("is cached - skipping run"),
            unchanged=output.count("didn't change, skipping"),
        )
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count) or output.strip()[-300:]

    def left(self) -> list[psutil.Process]:
        """What works in the clone beside `millrace up` and its services."""
        return [process for process in processes_in(self.root) if process.pid not in self.services]

    def interrupted(self, kill: bool) -> str:
        """Trains until a checkpoint is there, kills or cancels, and asks for the same again."""
        scratch = self.root / ".dvc/tmp/millrace/train"
        shutil.rmtree(scratch, ignore_errors=True)
        process = self.start(TRAIN)
        while not any(int(path.name[5:]) for path in scratch.glob("*/step-????????")):
            if process.poll() is not None:
                raise SystemExit(f"{self.name}: ended before its training:\n{process.communicate()[0]}")
            time.sleep(0.02)
        if kill:
            for victim in self.left():
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
        elif self.name == "deployment":
            self.cancel()
        else:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C, which reaches the stage as well
        time.sleep(5)
        left = len(self.left()) - (process.poll() is None)  # `--watch` looks on until the state is told
        process.kill()
        process.communicate()
        steps = max((int(path.name[5:]) for path in scratch.glob("*/step-????????")), default=0)
        return f"{left} processes left after 5 s, checkpoint at step {steps}; again {self.run(['train'])}"

    def cancel(self) -> None:
        script = (
            "from prefect import get_client\n"
            "from prefect.states import Cancelling\n"
            "with get_client(sync_client=True) as client:\n"
            "    for run in client.read_flow_runs():\n"
            "        if run.state.is_running(): client.set_flow_run_state(run.id, Cancelling())\n"
        )
        variables = environment.for_programs(self.variables())
        subprocess.run([sys.executable, "-c", script], cwd=self.root, env=variables, check=True)

    def hashes(self) -> str:
        """One hash over what the stages made, by dvc.lock, without what tells of the run itself."""
        stages = YAML(typ="safe").load((self.root / "dvc.lock").read_text())["stages"]
        outs = {
            out["path"]: out["md5"]
            for name in TO_TRAIN
            for out in stages[name]["outs"]
            if out["path"] not in OF_THE_RUN
        }
        return hashlib.sha256(json.dumps(outs, sort_keys=True).encode()).hexdigest()[:12]

    def set_seed(self, seed: int) -> None:
        override_params(self.root / "params.yaml", {"train": {"seed": seed}})
        commit(self.root, f"seed {seed}")


def processes_in(root: Path) -> list[psutil.Process]:
    """Everything that works in `root` or deeper, but this process."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
            if alive and Path(process.cwd()).is_relative_to(root):
                found.append(process)
    return found


def git(root: Path, *arguments: str) -> None:
    names = ("-c", "user.name=doors", "-c", "user.email=doors@example.org")
    subprocess.run(["git", *names, *arguments], cwd=root, check=True, capture_output=True)


def commit(root: Path, message: str) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", message)


def clone(root: Path) -> Path:
    """The working tree as it is, with smoke params, under git and with a cache of its own."""
    copy_working_tree(ROOT, root)
    (root / "dvc.lock").unlink(missing_ok=True)
    for values in (YAML(typ="safe").load((root / "recipes/smoke.yaml").read_text()), OVERRIDES):
        override_params(root / "params.yaml", values)
    (root / ".dvc/config.local").unlink(missing_ok=True)
    git(root, "init", "-q")
    commit(root, "start")
    return root


def through(door: Door) -> Iterator[tuple[str, str]]:
    """Situation and what happened; after each seed the hash of the outputs."""
    yield "fresh", door.run()
    yield "hash of seed 0", door.hashes()
    commit(door.root, "ran")
    yield "nothing", door.run()
    shutil.rmtree(door.root / "data")
    git(door.root, "checkout", "--", ".")
    (door.root / "dvc.lock").unlink()
    yield "cached", door.run()
    for seed, kill in ((1, True), (2, False)):
        door.set_seed(seed)
        yield ("killed" if kill else "cancelled"), door.interrupted(kill)
        yield f"hash of seed {seed}", door.hashes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--doors", nargs="+", choices=DOORS, default=DOORS)
    arguments = parser.parse_args()
    print("python -m benchmarks.doors", *sys.argv[1:], f"  load {os.getloadavg()[0]:.1f} at the start")
    hashes: dict[str, set[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.doors:
            door = Door(name, clone(Path(folder) / name))
            with door.open():
                for situation, happened in through(door):
                    print(f"{name:11s} {situation:15s} {happened}", flush=True)
                    if situation.startswith("hash"):
                        hashes.setdefault(situation, set()).add(happened)
    same = all(len(found) == 1 for found in hashes.values())
    print("the same outputs through every door" if same else f"OUTPUTS DIFFER: {hashes}")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
