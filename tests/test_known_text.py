"""The whole path against a known answer: a model that knows its documents by heart gives them back over HTTP."""

import importlib
import inspect
import shutil
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from pipeline.smoke import override_params
from serving.engine import Engine
from serving.reader import Reader
from serving.worker import Worker
from stages.entry import prepare_job
from stages.exported import open_export
from tests.serving.servers import Serving

REPOSITORY = Path(__file__).parents[1]
MODULES = (
    "argparse base64 bisect calendar cmd code codecs colorsys contextlib copy csv datetime dbm decimal difflib dis "
    "email enum fileinput fnmatch fractions functools getopt getpass"
).split()
SMALL = {
    "download": {"source": "files", "inputs": "texts"},
    "split": {"validation": 0.3, "test": 0.3},
    "clean": {"recipe": "none"},
    "tokenizer": {"vocab_size": 400, "extra_special_tokens": []},
    "pack": {"context_length": 128},
    "model": {"n_layers": 2, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 2},
    "train": {"max_steps": 140, "batch_tokens": 1024, "lr": 0.01, "eval_interval": 140, "validation_tokens": 1024},
    "export": {"formats": ["hf"]},  # what int8 loses on a model that knows nothing else is no question here
    "evaluate": {"bootstrap_samples": 100, "max_analysis_tokens": 256, "sample_tokens": 4},
    "execution": {"device": "cpu", "threads": 1, "workers": 1, "compile": False, "tracking": False},
}


def run_stages(root: Path, *names: str) -> None:
    for name in names:
        fingerprint = root / "data/code" / f"{name}.json"
        fingerprint.parent.mkdir(parents=True, exist_ok=True)
        fingerprint.write_text('{"digest": "", "modules": {}}')  # which code runs is not the question here
        run = importlib.import_module(f"stages.{name}.stage").run
        job = prepare_job(name, run, root)
        job.prepare()
        run(job, **job.sections)
        job.publish()


@pytest.mark.slow
def test_documents_learned_by_heart_come_back_over_http(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    override_params(tmp_path / "params.yaml", SMALL)
    (tmp_path / "texts").mkdir()
    for name in MODULES:
        text = inspect.getdoc(importlib.import_module(name)) or ""
        (tmp_path / "texts" / f"{name}.txt").write_text(" ".join(text.split())[:200])
    run_stages(tmp_path, "download", "clean", "dedup", "tokenizer", "pack", "train")
    shutil.rmtree(tmp_path / "data/train/best")  # the best on text that it has not seen is the one that knows nothing
    shutil.copytree(tmp_path / "data/train/last", tmp_path / "data/train/best")
    run_stages(tmp_path, "evaluate", "export")
    last_step = (tmp_path / "data/train/loss.csv").read_text().splitlines()[-1].split(",")
    assert float(last_step[2]) < 0.05, "the loss of the last batch"
    documents = training_documents(tmp_path)
    assert len(documents) >= 8
    exported = open_export(tmp_path / "data/export")
    worker = Worker(Engine(Reader(exported.model, 8, exported.context_length), exported.tokenizer))
    with Serving(exported, worker) as server, httpx.Client(base_url=server.url, timeout=60) as web:
        for text in documents:
            ids = exported.encode(text)
            known, rest = ids[:8], ids[8:]
            body = {"prompt": known, "temperature": 0, "max_tokens": len(rest) + 1}
            [choice] = web.post("/v1/completions", json=body).json()["choices"]
            assert exported.tokenizer.decode(known) + choice["text"] == text
            assert choice["finish_reason"] == "stop", "and it ends where the document ends"


def training_documents(root: Path) -> list[str]:
    kept = set(pq.read_table(root / "data/dedup/keep.parquet")["id"].to_pylist())
    rows = pq.read_table(root / "data/clean/documents").to_pylist()
    return [row["text"] for row in rows if row["id"] in kept and row["split"] == "train"]
