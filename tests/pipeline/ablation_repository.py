"""A repository with the params of Millrace and four stages that write what ablations read, without any work.

Losses depend on params and seed: post_norm makes them worse by far more than seeds do, qk_norm by nothing. Each
stage adds a line to behaviour/ran of the repository, so that tests can count what ran.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.pipeline.tiny_repository import command, dvc

ROOT = Path(__file__).parents[2]

GRAPH = """
stages:
  pack:
    cmd: exec python stage.py pack
    deps: [stage.py]
    params: [dedup, pack]
    outs: [data/pack/shard.bin]
    metrics: [data/pack/metrics.json]
  train:
    cmd: exec python stage.py train
    deps: [stage.py, data/pack/shard.bin]
    params: [model, train]
    outs: [data/train/last, data/train/loss.csv, data/train/timing.json]
    metrics: [data/train/metrics.json]
  evaluate:
    cmd: exec python stage.py evaluate
    deps: [data/train/last, data/pack/shard.bin]
    params: [evaluate]
    outs: [data/evaluate/samples.json, data/evaluate/plots]
    metrics: [data/evaluate/metrics.json]
  export:
    cmd: exec python stage.py export
    deps: [data/train/last]
    outs: [data/export/note]
"""

STAGE = """
import ctypes, json, os, random, signal, sys, time
from pathlib import Path
import yaml
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # end with the parent, as stages do
stage, behaviour = sys.argv[1], Path(os.environ.get("BEHAVIOUR", "behaviour"))
params = yaml.safe_load(Path("params.yaml").read_text())
with (behaviour / "ran").open("a") as log:
    log.write(f"{stage} {os.environ.get('DVC_EXP_NAME', '')}\\n")
if (behaviour / f"wait-{stage}").exists():
    time.sleep(600)
out = Path("data", stage)
out.mkdir(parents=True, exist_ok=True)
def write(name, value):
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text(value if isinstance(value, str) else json.dumps(value))
seed, model = params["train"]["seed"], params["model"]
loss = 2 + 0.5 * model["post_norm"] + random.Random(seed).gauss(0, 0.01)
loss += random.Random(f"{seed}{model['qk_norm']}{model['post_norm']}").gauss(0, 0.002)
text = "other" if params["pack"]["context_length"] != 256 else "ab" * 16
if stage == "pack":
    write("shard.bin", text * 1000)
    write("metrics.json", {"eval_sha256": text, "tokens_train": 100})
if stage == "train":
    if seed == 13:
        sys.exit("millrace: train: out of luck")
    write("last/state.json", {"run": f"run-{seed}", "loss": loss})
    write("loss.csv", "step,tokens,loss,loss_smooth\\n" + "".join(f"{i},{i * 10},{8 - i},{8 - i}\\n" for i in range(6)))
    write("timing.json", {"tokens_per_s": 1000 + seed, "peak_bytes": 5_000_000, "seconds": 1.0})
    write("metrics.json", {"best_validation_loss": loss * 1.4})
if stage == "evaluate":
    loss = json.loads(Path("data/train/last/state.json").read_text())["loss"]
    write("metrics.json", {"bits_per_byte": loss, "test_loss": loss * 1.4, "eval_sha256": text})
    write("samples.json", [{"prompt": "The", "continuation": f" loss is {loss:.3f}", "finished": True, "tokens": 4}])
    rows = [f"{i},{100 * i},{loss + (i - 2) * (0.1 + 0.02 * model['post_norm'])}\\n" for i in (1, 2, 3)]
    write("plots/documents.csv", "document,bytes,bits_per_byte\\n" + "".join(rows))
if stage == "export":
    write("note", "exported")
"""


def write_repository(root: Path) -> Path:
    """Committed, with everything run once for params.yaml as it is."""
    root.mkdir(parents=True)
    shutil.copy(ROOT / "params.yaml", root)
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "stage.py").write_text(STAGE)
    (root / ".gitignore").write_text("/behaviour/\n")
    (root / "data").mkdir()
    (root / "data" / ".gitignore").write_text("/*\n!.gitignore\n")
    (root / "inputs").mkdir()
    (root / "inputs" / "a.txt").write_text("a")
    (root / "behaviour").mkdir()
    command(root, "git", "init", "--quiet", "--initial-branch", "main")
    for key, value in {"user.name": "A Tester", "user.email": "tester@example.org"}.items():
        command(root, "git", "config", key, value)
    dvc(root, "init", "--quiet")
    for key, value in {"core.analytics": "false", "core.autostage": "false", "cache.type": "hardlink,symlink"}.items():
        dvc(root, "config", key, value)
    dvc(root, "repro", "--quiet")
    command(root, "git", "add", "--all")
    command(root, "git", "commit", "--quiet", "--message", "first")
    return root


def ran(root: Path) -> list[str]:
    """`stage experiment` of everything that ran so far."""
    path = root / "behaviour" / "ran"
    return path.read_text().splitlines() if path.exists() else []


def variables(root: Path) -> dict[str, str]:
    """For `millrace` in this repository: no GPUs, this code, and stages that behave as behaviour/ says."""
    here = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "BEHAVIOUR": str(root / "behaviour")}
    return {**os.environ, **here}
