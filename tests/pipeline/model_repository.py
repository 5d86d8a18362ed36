"""A tiny repository whose stages train, evaluate and export in a few lines each, and register as the real ones do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline import environment
from tests.pipeline.tiny_repository import command

ROOT = Path(__file__).parents[2]

GRAPH = """
stages:
  train:
    cmd: exec python stages/work.py train
    deps: [stages/work.py]
    params: [train]
    outs: [data/train/best]
    metrics: [data/train/metrics.json]
    plots: [data/train/loss.csv]
  evaluate:
    cmd: exec python stages/work.py evaluate
    deps: [data/train/best]
    outs: [data/evaluate/plots]
    metrics: [data/evaluate/metrics.json]
  export:
    cmd: exec python stages/work.py export
    deps: [data/train/best, data/evaluate/metrics.json]
    params: [export]
    outs: [data/export/hf, data/export/manifest.json]
    metrics: [data/export/metrics.json]
"""

PARAMS = """\
train:
  lr: 3
export:
  registered_model: tiny
execution:
  tracking: true
"""

# The loss of document D is 1.5 + D / 10 + lr / 1000.
WORK = f"""
import json, os, sys
from pathlib import Path
sys.path[:] = [{str(ROOT)!r}, *(path for path in sys.path if not path.endswith("stages"))]
from ruamel.yaml import YAML
from stages.entry import Job
from stages.files import file_sha256, write_json
from stages.execution import Execution
name, data = sys.argv[1], Path("data")
lr = YAML(typ="safe").load(Path("params.yaml").read_text())["train"]["lr"]
job = Job(name, Path.cwd(), Execution(tracking=os.environ.get("TINY_TRACKING") != "off"))
job.prepare()
if name == "train":
    (job.staging / "best").mkdir()
    write_json(job.staging / "best" / "state.json", {{"run": f"lr-{{lr}}"}})
    write_json(job.staging / "metrics.json", {{"train_loss": 2.0}})
    (job.staging / "loss.csv").write_text("step,loss,validation_loss\\n0,5.0,5.0\\n5,4.0,\\n10,3.0,\\n")
elif name == "evaluate":
    losses = [1.5 + document / 10 + lr / 1000 for document in range(30)]
    (job.staging / "plots").mkdir()
    lines = [f"{{document}},100,{{loss}}" for document, loss in enumerate(losses)]
    (job.staging / "plots/documents.csv").write_text("\\n".join(["document,bytes,bits_per_byte", *lines]) + "\\n")
    value = sum(losses) / 30
    figures = {{"bits_per_byte": value, "bits_per_byte_low": value - 0.3, "bits_per_byte_high": value + 0.3}}
    write_json(job.staging / "metrics.json", {{**figures, "eval_sha256": "51aa"}})
else:
    from stages.export.registry import publish
    from stages.tracking import open_run
    state = json.loads((data / "train/best/state.json").read_text())
    (job.staging / "hf").mkdir()
    (job.staging / "hf" / "model.safetensors").write_text(f"weights {{lr}}")
    (job.staging / "hf" / "part").mkdir()
    (job.staging / "hf" / "part" / "é.py").write_text("")
    names = ("hf/model.safetensors", "hf/part/é.py")
    files = [{{"file": name, "sha256": file_sha256(job.staging / name)}} for name in names]
    write_json(job.staging / "manifest.json", {{"files": files}})
    write_json(job.staging / "metrics.json", {{}})
    with open_run(job, state["run"], {{}}) as run:
        publish(job, "tiny", state["run"], job.staging, run)
job.publish()
"""


def write_model_repository(root: Path) -> Path:
    files = {
        "dvc.yaml": GRAPH,
        "params.yaml": PARAMS,
        "stages/work.py": WORK,
        "data/.gitignore": "/*\n!.gitignore\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    command(root, "git", "init", "--quiet", "--initial-branch", "main")
    for key, value in {"user.name": "A Tester", "user.email": "tester@example.org"}.items():
        command(root, "git", "config", key, value)
    dvc(root, "init", "--quiet")
    command(root, "git", "add", "--all")
    command(root, "git", "commit", "--quiet", "--message", "first")
    return root


def set_lr(root: Path, lr: int) -> None:
    (root / "params.yaml").write_text(PARAMS.replace("lr: 3", f"lr: {lr}"))


def dvc(root: Path, *arguments: str, **variables: str) -> str:
    return command(root, sys.executable, "-m", "dvc", *arguments, **variables)


def start_millrace(root: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """The command `millrace`, as a user would start it."""
    env = environment.for_programs({"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "", **variables})
    program = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.Popen(program, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def millrace(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    process = start_millrace(root, *arguments, **variables)
    stdout, stderr = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)
