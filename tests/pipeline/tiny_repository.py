"""A tiny repository with five trivial stages under git and DVC, for the tests of the pipeline."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from pipeline import environment

# code -> left, right -> join -> last; `apart` waits for nothing but code
GRAPH = """
stages:
  code:
    cmd: exec python stage.py code source.txt
    deps: [source.txt, params.yaml]
    outs: [out/code]
  left:
    desc: one branch
    cmd: exec python stage.py left out/code inputs
    deps: [out/code, "${download.inputs}"]
    params: [left]
    outs: [out/left/text]
    metrics: [out/left/metrics.json]
  right:
    cmd: exec python stage.py right out/code
    deps: [out/code]
    outs: [out/right]
    plots:
      - out/right.csv: {x: a, y: b}
  join:
    cmd: exec python stage.py join out/left out/right
    deps: [out/left, out/right]
    outs: [out/join]
  last:
    cmd: exec python stage.py last out/join
    deps: [out/join]
    outs: [out/last]
"""

PARAMS = """\
# every knob
download:
  inputs: inputs  # a folder
left:
  amount: 1  # how often
"""

# `behaviour/NAME` tells a stage to fail with a code, or to meet another one: "meet right".
STAGE = """
import ctypes, os, signal, sys, time
from pathlib import Path
if hasattr(ctypes.CDLL(None), "prctl"):
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # at the death of the parent, as in stages/signals.py
name = sys.argv[1]
print(f"{name} at work in {os.environ.get('DVC_EXP_NAME', 'no experiment')}", flush=True)
wish = Path("behaviour", name)
command, *rest = wish.read_text().split() if wish.exists() else [""]
if command == "fail":
    sys.exit(int(rest[0]))
if command == "meet":
    here, there = Path("behaviour", f"{name}.here"), Path("behaviour", f"{rest[0]}.here")
    here.touch()
    deadline = time.monotonic() + 60
    while not there.exists():
        if time.monotonic() > deadline:
            sys.exit(f"{name}: {rest[0]} never came")
        time.sleep(0.05)
if command == "wait":
    Path("behaviour", f"{name}.here").touch()
    time.sleep(600)
texts = []
for given in map(Path, sys.argv[2:]):
    paths = sorted(given.rglob("*")) if given.is_dir() else [given]
    texts += [path.read_text() for path in paths if path.is_file()]
out = Path("out", name)
if name == "left":
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text("{}")
    out = out / "text"
if name == "right":
    Path("out/right.csv").write_text("a,b\\n1,2\\n")
out.write_text(f"{name}({', '.join(texts)})" + Path("params.yaml").read_text() * (name == "left"))
"""


def command(folder: Path, *arguments: str, **variables: str) -> str:
    """Runs a program in `folder` as the pipeline would, and returns what it said."""
    env = environment.for_programs({"GIT_CONFIG_GLOBAL": os.devnull, **variables})
    done = subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def dvc(folder: Path, *arguments: str) -> str:
    return command(folder, sys.executable, "-m", "dvc", "--wait-for-lock", *arguments)


def write_repository(root: Path) -> Path:
    files = {
        "dvc.yaml": GRAPH,
        "params.yaml": PARAMS,
        "stage.py": STAGE,
        "source.txt": "source",
        "inputs/a.txt": "a",
        "out/.gitignore": "/*\n!.gitignore\n",
        ".gitignore": "/behaviour/\n/large.bin\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(textwrap.dedent(text))
    (root / "behaviour").mkdir()
    command(root, "git", "init", "--quiet", "--initial-branch", "main")
    for key, value in {"user.name": "A Tester", "user.email": "tester@example.org"}.items():
        command(root, "git", "config", key, value)
    dvc(root, "init", "--quiet")
    dvc(root, "config", "core.analytics", "false")
    command(root, "git", "add", "--all")
    command(root, "git", "commit", "--quiet", "--message", "first")
    return root
