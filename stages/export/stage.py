"""Exports the best checkpoint in several forms, proves them, and registers them as one model.

                        ┌─► hf ────┐
    data/train/best ────┼─► onnx ──┴─► opened as a user would, in a process of its own ──┐
                        └─► int8, int4 ─► perplexity on the test rows ───────────────────┴─► MLflow

The architecture of hf follows from the params (stages/huggingface.py); one that transformers does not have goes
with its own code (own_code.py). The proof (check.py) compares logits, perplexity and greedy text on test documents;
the quantised variants (variants.py) may lose as much as their params say. Without all of it nothing is published or
registered. Registration (registry.py) needs MLflow, which may be away: the export is then whole all the same, and the
log says how to register it later. The folders depend on the checkpoint, the tokenizer and the figures alone.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.config import ModelConfig
from stages.checkpoint import model_config, problem_of, read_json
from stages.entry import Job, plain
from stages.errors import BadInput
from stages.export.card import Facts, model_card
from stages.export.check import Request
from stages.export.folder import copy_tokenizer, write_folder
from stages.export.gguf_file import write_gguf
from stages.export.onnx_decoder import FILE as ONNX_FILE
from stages.export.onnx_decoder import write_onnx
from stages.export.own_code import CLASS_NAME
from stages.export.params import FORMATS, ExportParams
from stages.export.proof import Proof
from stages.export.registry import publish
from stages.export.variants import Variant, decode_speeds, make_variants
from stages.files import file_sha256, write_json
from stages.huggingface_twins import twin_of
from stages.progress import say
from stages.tracking import open_run
from stages.wording import counted

NOT_ASKED_FOR = "Not asked for: `export.formats` in params.yaml lacks `{}`.\n"


def run(job: Job, export: ExportParams) -> None:
    """Writes a folder for each format, manifest.json, metrics.json and timing.json.

    Raises:
        BadInput: a damaged checkpoint.
        Misread: a GGUF file holds something else than the checkpoint.
        Mismatch: transformers or onnxruntime load a folder and compute something else.
        TooLossy: a quantised variant is worse than its param allows.
    """
    checkpoint = job.root / "data/train/best"
    if problem := problem_of(checkpoint):
        raise BadInput(f"{problem}; run `dvc checkout`, or `dvc repro train`")
    state = read_json(checkpoint, "state.json")
    with Proof() as proof, open_run(job, state["run"], {"export": plain(export)}) as tracked:
        facts = write_export(job, export, checkpoint, state)
        proof.begin(proof_request(job, export, checkpoint))
        variants = make_variants(job, export, checkpoint)
        compared = proof.figures()
        tell(facts, compared)
        card = model_card(export.registered_model, facts, variants)
        (job.staging / "hf" / "README.md").write_text(card, encoding="utf-8")
        metrics = write_metrics(job, export, facts, compared, variants)
        write_json(job.staging / "timing.json", decode_speeds(job.staging, checkpoint, variants) if variants else {})
        tracked.results({name: metrics[name] for name in metrics if not name.endswith(("bytes", "tokens"))})
        publish(job, export.registered_model, state["run"], job.staging, tracked)


def tell(facts: Facts, compared: dict[str, Any]) -> None:
    say(
        f"transformers loads it as {facts.class_name} ({facts.reason}): logits within "
        f"{compared['difference']:.1e} of ours over {counted(compared['tokens'], 'token')} of "
        f"{counted(compared['documents'], 'test document')}, perplexity and "
        f"{counted(compared['greedy_tokens'], 'greedy token')} equal"
    )
    if "onnx_difference" in compared:
        say(
            f"onnxruntime: logits within {compared['onnx_difference']:.1e} of ours, "
            f"{counted(compared['onnx_greedy_tokens'], 'greedy token')} through its caches equal"
        )


def write_export(job: Job, export: ExportParams, checkpoint: Path, state: dict[str, Any]) -> Facts:
    """Writes hf but for its card, onnx and gguf."""
    for name in FORMATS:  # dvc.yaml names all, and DVC warns of an empty folder
        (job.staging / name).mkdir()
        if name not in export.formats:
            (job.staging / name / "README.md").write_text(NOT_ASKED_FOR.format(name), encoding="utf-8")
    folder = job.staging / "hf"
    architecture, config = model_config(checkpoint)
    tokenizer = job.root / "data/tokenizer/tokenizer.json"
    if (found := file_sha256(tokenizer)) != config["tokenizer_sha256"]:
        raise BadInput(
            f"data/tokenizer/tokenizer.json: sha256 {found[:12]}, but the checkpoint was trained with "
            f"{config['tokenizer_sha256'][:12]}; run `dvc repro`"
        )
    sizes = config["vocab_size"], config["context_length"]
    token_ids = write_folder(folder, checkpoint, architecture, *sizes, tokenizer)
    if "onnx" in export.formats:
        write_onnx_folder(job.staging / "onnx", folder, checkpoint, architecture, sizes, token_ids)
    if "gguf" in export.formats:
        write_gguf(folder, job.staging / "gguf", export.gguf_types)

    def read(name: str) -> Any:
        return json.loads((job.root / "data" / name).read_text(encoding="utf-8"))

    twin = twin_of(architecture)
    return Facts(
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


def write_onnx_folder(
    folder: Path, hf: Path, checkpoint: Path, config: ModelConfig, sizes: tuple[int, int], token_ids: dict[str, int]
) -> None:
    """model.onnx, and the tokenizer beside it."""
    from safetensors.numpy import load_file

    weights = load_file(checkpoint / "model.safetensors")
    write_onnx(folder / ONNX_FILE, weights, config, *sizes, token_ids["eos_token_id"])
    copy_tokenizer(hf, folder)


def proof_request(job: Job, export: ExportParams, checkpoint: Path) -> Request:
    return Request(
        folder=str(job.staging / "hf"),
        onnx=str(job.staging / "onnx" / ONNX_FILE) if "onnx" in export.formats else "",
        checkpoint=str(checkpoint),
        tokenizer=str(job.root / "data/tokenizer/tokenizer.json"),
        rows=str(job.root / "data/pack/test"),
        documents=export.check_documents,
        new_tokens=export.check_tokens,
        max_difference=export.max_difference,
        threads=job.execution.threads,
    )


def write_metrics(
    job: Job, export: ExportParams, facts: Facts, compared: dict[str, Any], variants: Sequence[Variant]
) -> dict[str, Any]:
    """Writes manifest.json, the sha256 of every file, and metrics.json."""
    files = sorted(path for name in FORMATS for path in (job.staging / name).rglob("*") if path.is_file())
    described: list[dict[str, Any]] = [
        {"file": path.relative_to(job.staging).as_posix(), "bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for path in files
    ]
    manifest = {
        "version": 1,
        "architecture": facts.class_name,
        "reason": facts.reason,
        "variants": {one.name: dataclasses.asdict(one) for one in variants},
        "files": described,
    }
    write_json(job.staging / "manifest.json", manifest)
    metrics = {
        "hf_max_diff": float(f"{compared['difference']:.1e}"),
        "check_perplexity": round(compared["perplexity"], 3),
        "hf_tokens": compared["tokens"],
        "hf_greedy_tokens": compared["greedy_tokens"],
    }
    if "onnx_difference" in compared:
        metrics["onnx_max_diff"] = float(f"{compared['onnx_difference']:.1e}")
        metrics["onnx_greedy_tokens"] = compared["onnx_greedy_tokens"]
    for one in variants:
        metrics[f"{one.name}_perplexity_ratio"] = one.ratio
    for name in export.formats:
        metrics[f"{name}_bytes"] = sum(entry["bytes"] for entry in described if entry["file"].startswith(f"{name}/"))
    write_json(job.staging / "metrics.json", metrics)
    return metrics
