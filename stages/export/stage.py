"""Exports the best checkpoint as a folder that transformers loads, proves it, and registers it.

    data/train/best ──► data/export/hf ──► opened by transformers in a process of its own ──► MLflow

The architecture follows from the params (stages/huggingface.py); one that transformers does not have goes
with its own code (own_code.py). The proof (check.py) compares logits
and greedy text on test documents; without it nothing is published or registered. Registration
(registry.py) needs MLflow, which may be away: the export is then whole all the same, and the log says
how to register it later. The folder depends on the checkpoint, the tokenizer and the figures alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages.checkpoint import model_config, problem_of, read_json
from stages.entry import Job, file_sha256, plain, write_json
from stages.errors import BadInput
from stages.export.card import Facts, model_card
from stages.export.check import Request
from stages.export.folder import write_folder
from stages.export.own_code import CLASS_NAME
from stages.export.params import ExportParams
from stages.export.proof import Proof
from stages.export.registry import publish
from stages.huggingface_twins import twin_of
from stages.progress import say
from stages.tracking import open_run


def run(job: Job, export: ExportParams) -> None:
    """Writes hf/, manifest.json and metrics.json.

    Raises:
        BadInput: a damaged checkpoint.
        Mismatch: transformers loads the folder and computes something else.
    """
    checkpoint = job.root / "data/train/best"
    if problem := problem_of(checkpoint):
        raise BadInput(f"{problem}; run `dvc checkout`, or `dvc repro train`")
    state = read_json(checkpoint, "state.json")
    with Proof() as proof, open_run(job, state["run"], {"export": plain(export)}) as tracked:
        facts = write_export(job, export, checkpoint, state)
        compared = proof.compare(proof_request(job, export, checkpoint))
        say(
            f"transformers loads it as {facts.class_name} ({facts.reason}): logits within "
            f"{compared['difference']:.1e} of ours over {compared['tokens']:,} tokens of {compared['documents']} test "
            f"documents, {compared['greedy_tokens']} greedy tokens equal"
        )
        metrics = write_metrics(job, facts, compared)
        tracked.results({"hf_max_diff": metrics["hf_max_diff"]})
        publish(job, export.registered_model, state["run"], job.staging, tracked)


def write_export(job: Job, export: ExportParams, checkpoint: Path, state: dict[str, Any]) -> Facts:
    """Writes the folder with its card."""
    folder = job.staging / "hf"
    folder.mkdir()
    architecture, config = model_config(checkpoint)
    tokenizer = job.root / "data/tokenizer/tokenizer.json"
    if (found := file_sha256(tokenizer)) != config["tokenizer_sha256"]:
        raise BadInput(
            f"data/tokenizer/tokenizer.json: sha256 {found[:12]}, but the checkpoint was trained with "
            f"{config['tokenizer_sha256'][:12]}; run `dvc repro`"
        )
    write_folder(folder, checkpoint, architecture, config["vocab_size"], config["context_length"], tokenizer)

    def read(name: str) -> Any:
        return json.loads((job.root / "data" / name).read_text(encoding="utf-8"))

    twin = twin_of(architecture)
    facts = Facts(
        class_name=twin.class_name if twin else CLASS_NAME,
        reason=twin.reason if twin else "the lack of an architecture of transformers that computes the same",
        config=config,
        state=state,
        train=read("train/metrics.json"),
        pack=read("pack/metrics.json"),
        evaluate=read("evaluate/metrics.json"),
        samples=read("evaluate/samples.json"),
        model_sha256=file_sha256(folder / "model.safetensors"),
    )
    (folder / "README.md").write_text(model_card(export.registered_model, facts), encoding="utf-8")
    return facts


def proof_request(job: Job, export: ExportParams, checkpoint: Path) -> Request:
    return Request(
        folder=str(job.staging / "hf"),
        checkpoint=str(checkpoint),
        tokenizer=str(job.root / "data/tokenizer/tokenizer.json"),
        rows=str(job.root / "data/pack/test"),
        documents=export.check_documents,
        new_tokens=export.check_tokens,
        max_difference=export.max_difference,
        threads=job.execution.threads,
    )


def write_metrics(job: Job, facts: Facts, compared: dict[str, Any]) -> dict[str, Any]:
    """Writes manifest.json, the sha256 of every file, and metrics.json."""
    files = sorted(path for path in (job.staging / "hf").iterdir())
    manifest = {
        "version": 1,
        "architecture": facts.class_name,
        "reason": facts.reason,
        "files": [{"file": f"hf/{p.name}", "bytes": p.stat().st_size, "sha256": file_sha256(p)} for p in files],
    }
    write_json(job.staging / "manifest.json", manifest)
    metrics = {
        "hf_max_diff": compared["difference"],
        "hf_tokens": compared["tokens"],
        "hf_greedy_tokens": compared["greedy_tokens"],
        "hf_bytes": sum(path.stat().st_size for path in files),
    }
    write_json(job.staging / "metrics.json", metrics)
    return metrics
