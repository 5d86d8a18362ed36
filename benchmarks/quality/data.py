"""The rows that all runs read: documentation of installed packages and other texts, by the stages themselves.

download (twice: packages, then these as files beside the others), clean, dedup, tokenizer and pack run as programs in
a workspace of their own. OUT gets what `pack` wrote for train, validation and test, the tokenizer, and about.json:

    {"tokens_train": 17277786, "tokens_validation": 357418, .., "documents": 14997, "vocab_size": 8192}
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.quality.plan import Size

ROOT = Path(__file__).resolve().parents[2]
SPLITS = ("train", "validation", "test")


def write_data(out: Path, texts: list[Path], size: Size) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        for name in ("model", "stages", "dvc.yaml", "constraints.txt"):
            (workspace / name).symlink_to(ROOT / name)
        packages = workspace / "inputs" / "packages"
        packages.mkdir(parents=True)
        params = YAML().load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["split"].update(validation=size.reserved, test=size.reserved)
        params["download"].update(max_documents=size.max_documents, any_version=True)
        params["tokenizer"].update(vocab_size=size.vocab_size)
        params["pack"].update(context_length=size.context_length)
        run_stages(workspace, params, "code", "download")
        for path in sorted((workspace / "data/download/documents").glob("*.parquet")):
            shutil.copy(path, packages / path.name)
        for path in texts:
            (workspace / "inputs" / path.stem).mkdir()
            shutil.copy(path, workspace / "inputs" / path.stem / path.name)
        params["download"].update(source="files", max_documents=0)
        run_stages(workspace, params, "code", "download", "clean", "dedup", "tokenizer", "pack")
        gather(workspace / "data", out)


def run_stages(workspace: Path, params: Any, *stages: str) -> None:
    with (workspace / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    environment = {**os.environ, "MILLRACE_EXECUTION__TRACKING": "false"}
    for stage in stages:
        subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=workspace, env=environment, check=True)


def gather(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        shutil.rmtree(out / split, ignore_errors=True)
        shutil.copytree(data / "pack" / split, out / split)
    shutil.copy(data / "tokenizer" / "tokenizer.json", out / "tokenizer.json")
    packed, dedup, tokenizer = (
        json.loads((data / stage / "metrics.json").read_text(encoding="utf-8"))
        for stage in ("pack", "dedup", "tokenizer")
    )
    about = {f"tokens_{split}": packed[f"tokens_{split}"] for split in SPLITS}
    about |= {"documents": dedup["documents_out"], "leaked_removed": dedup["leaked_removed"]}
    about |= {name: tokenizer[name] for name in ("vocab_size", "bytes_per_token")}
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    n_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {n_bytes / 2**20:.1f} MiB, {about}", flush=True)
