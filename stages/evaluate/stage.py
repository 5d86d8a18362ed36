"""Evaluates the best checkpoint: how good it is, what it has learned, what its heads do, what it writes.

Text that no stage trained on is charged in bits per byte, which does not depend on the tokenizer. The figure
means something beside others on the same bytes: n-grams and zstd after exactly the training tokens that the
model read (baselines.py). Around it stand an interval (losses.py), the same with overlapping windows
(strided.py), other texts, curves (curves.py), samples and what they repeat (generation.py), the heads
(attention.py, head_ablation.py, maps.py), the embedding (embeddings.py), and a page of it all (report.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stages.checkpoint import load_model, read_json
from stages.devices import own_gpus
from stages.entry import Job, plain
from stages.evaluate import curves
from stages.evaluate.attention import Heads, head_scores, repeated_tokens
from stages.evaluate.baselines import baselines
from stages.evaluate.embeddings import Map, embedding_map
from stages.evaluate.generation import longest_matches, quality
from stages.evaluate.head_ablation import head_ablations
from stages.evaluate.losses import LabelLosses, bits_per_byte, bootstrap_interval, label_losses
from stages.evaluate.maps import attention_maps
from stages.evaluate.page_data import Findings
from stages.evaluate.params import EvaluateParams
from stages.evaluate.reading import Text, bytes_of, read_text
from stages.evaluate.report import page
from stages.evaluate.samples import Sample, sample_texts
from stages.evaluate.scoring import Scorer, worth_compiling
from stages.evaluate.strided import document_nll
from stages.evaluate.training_tab import check_curves
from stages.files import write_json
from stages.progress import say
from stages.tracking import open_run

if TYPE_CHECKING:
    from model.decoder import Decoder

NAMES = {
    "bits_per_byte": "model",
    "baseline_token_trigram": "token trigram (Kneser-Ney)",
    "baseline_token_bigram": "token bigram (Kneser-Ney)",
    "baseline_token_unigram": "token unigram (Kneser-Ney)",
    "baseline_byte_trigram": "byte trigram (Kneser-Ney)",
    "baseline_zstd": "zstd -19, training text as dictionary",
}
PAGES = ("report.html", "plots", "samples.json", "attention.json")


def run(job: Job, evaluate: EvaluateParams) -> None:
    """Writes metrics.json, attention.json, samples.json, plots/*.csv and report.html.

    The baselines are fitted in a thread while torch is imported and the model runs.

    Raises:
        BadInput: there is no test text, text, model and tokenizer do not belong together, or a file is cut off.
    """
    best = job.root / "data/train/best"
    state = read_json(best, "state.json")
    check_curves(best.parent, read_json(best.parent, "metrics.json")["steps"])
    with (
        own_gpus(job),
        open_run(job, state["run"], {"evaluate": plain(evaluate)}) as tracked,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        text = read_text(job, state, evaluate)
        fitted = thread.submit(baselines, text.train, text.test, text.table)
        device = job.execution.torch_device()
        model = load_model(best, device)
        compiled = worth_compiling(job.execution, device, text.n_slots(evaluate.context_overlap))
        score = Scorer(model, device, evaluate.precision, compiled)
        losses = label_losses(score, text.rows, "test loss")
        seen = look_inside(model, text, evaluate, device)
        metrics = measure(score, text, losses, seen, fitted, evaluate)
        facts = {
            "Parameters": f"{sum(p.numel() for p in model.parameters()):,}",
            "training tokens": f"{state['tokens']:,}",
            "test documents": f"{len(text.documents):,}",
            "test bytes": f"{text.n_bytes.sum():,}",
        }
        write(job, text, losses, metrics, facts, seen)
        print_table(comparison(metrics))
        tracked.results({name: value for name, value in metrics.items() if isinstance(value, float)})
        for name in PAGES:
            tracked.artifact(job.staging / name, "evaluate")


@dataclasses.dataclass(frozen=True)
class Inside:
    """What the model writes and how it is made: its heads, maps of them, its embedding, what it wrote."""

    heads: Heads
    maps: list[dict[str, Any]]
    embedding: Map
    samples: list[Sample]
    written: list[Sample]


def look_inside(model: Decoder, text: Text, params: EvaluateParams, device: str) -> Inside:
    samples, written = sample_texts(model, text.table, text.rows.context_length, params)
    heads = head_scores(model, text.rows, params.max_analysis_tokens, device, params.seed)
    ablations = head_ablations(model, text.rows, params.max_ablation_tokens, device)
    for entry in heads.scores:
        if (entry["layer"], entry["head"]) in ablations:
            entry["ablation"] = ablations[entry["layer"], entry["head"]]
    texts = [
        [text.table.end_of_text, *sample.prompt_ids, *sample.ids][: text.rows.context_length] for sample in samples
    ]
    frequency = np.bincount(text.train.labels(), minlength=text.rows.vocab_size)
    weight = model.embedding.weight.detach()[: text.rows.vocab_size].float().cpu().numpy()
    embedding = embedding_map(weight, frequency, params.embedding_tokens, params.seed)
    return Inside(heads, attention_maps(model, texts, device), embedding, samples, written)


def measure(
    score: Scorer, text: Text, losses: LabelLosses, seen: Inside, fitted: Future[dict[str, float]],
    params: EvaluateParams,
) -> dict[str, Any]:  # fmt: skip
    """The content of metrics.json; figures rounded to six decimals."""
    by_document = losses.by_document()
    low, high = bootstrap_interval(by_document, text.n_bytes, params.bootstrap_samples, params.seed)
    loss = float(losses.nll.mean())
    figures = {
        "test_loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": bits_per_byte(by_document, text.n_bytes),
        "bits_per_byte_low": low,
        "bits_per_byte_high": high,
        **other_texts(score, text, params),
        **repetition_losses(score, text, params),
    }
    texts = [sample.ids for sample in seen.samples + seen.written]
    matches = longest_matches(texts, text.train_rows, text.seen)
    figures |= quality(texts, [sample.finished for sample in seen.samples + seen.written], matches)
    figures |= fitted.result()
    rounded: dict[str, Any] = {name: round(value, 6) for name, value in figures.items()}
    rounded["eval_precision"] = params.precision
    return rounded | {"eval_sha256": text_sha256(text.table.text_bytes(document) for document in text.documents)}


def other_texts(score: Scorer, text: Text, params: EvaluateParams) -> dict[str, float]:
    """Bits per byte with overlapping windows, and all figures of the validation split and of further files."""
    context, end_of_text = text.rows.context_length, text.table.end_of_text

    def nll(documents: list[NDArray[np.int64]], overlap: float, title: str) -> NDArray[np.float64]:
        return document_nll(score, documents, end_of_text, context, overlap, title)

    strided = nll(text.documents, params.context_overlap, "test loss, strided")
    figures = {"bits_per_byte_strided": bits_per_byte(strided, text.n_bytes)}
    for name, documents in {"validation": list(text.validation.documents()), **text.texts}.items():
        n_bytes, n_labels = bytes_of(documents, text.table), sum(map(len, documents))
        if name == "validation":
            plain_nll = label_losses(score, text.validation, "validation loss").by_document()
        else:
            plain_nll = nll(documents, 0.0, f"loss of {name}")
        loss = float(plain_nll.sum()) / n_labels
        figures |= {
            f"{name}_loss": loss,
            f"{name}_perplexity": math.exp(loss),
            f"{name}_bits_per_byte": bits_per_byte(plain_nll, n_bytes),
            f"{name}_bits_per_byte_strided": bits_per_byte(
                nll(documents, params.context_overlap, f"loss of {name}, strided"), n_bytes
            ),
        }
    return figures


def repetition_losses(score: Scorer, text: Text, params: EvaluateParams) -> dict[str, float]:
    """Loss on random tokens read for the first and for the second time: what copying from the context gains."""
    batch = repeated_tokens(text.rows.vocab_size, text.rows.context_length, params.seed)
    nll = score(batch)
    half = batch.inputs.shape[1] // 2
    # The last label of the first half is the first token of the second, which nothing foretells.
    return {
        "repeated_loss_first": float(nll[:, : half - 1].mean()) if half > 1 else 0.0,
        "repeated_loss_second": float(nll[:, half : 2 * half - 1].mean()) if half > 1 else 0.0,
    }


def text_sha256(documents: Iterable[bytes]) -> str:
    """Names the test text as pack does: sha256 of the sha256 of its documents, in order.

    It is computed from the tokens that were evaluated, decoded, so equal names prove that none was lost.
    """
    digest = hashlib.sha256()
    for document in documents:
        digest.update(hashlib.sha256(document).digest())
    return digest.hexdigest()


def comparison(metrics: dict[str, Any]) -> list[list[str]]:
    """A header, the model, and the baselines from the strongest on; last column: the model below each."""
    model = metrics["bits_per_byte"]
    order = sorted((metrics[key], key) for key in NAMES if key != "bits_per_byte")
    interval = f"{metrics['bits_per_byte_low']:.3f} to {metrics['bits_per_byte_high']:.3f}"
    rows = [["", "bits per byte", "95% interval", "the model against it"], ["model", f"{model:.3f}", interval, ""]]
    return rows + [[NAMES[key], f"{value:.3f}", "", f"{model / value - 1:+.1%}"] for value, key in order]


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for first, *rest in rows:
        say("  ".join([first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))]))


def write(
    job: Job, text: Text, losses: LabelLosses, metrics: dict[str, Any], facts: dict[str, str], seen: Inside
) -> None:
    """Leaves every output in staging."""
    plots = job.staging / "plots"
    plots.mkdir()
    tables: dict[str, list[Any]] = {
        "loss_by_position": curves.by_position(losses, text.rows.context_length),
        "loss_by_frequency": curves.by_frequency(losses, text.train.labels(), text.rows.vocab_size),
        "loss_by_source": curves.by_source(losses, text.n_bytes, text.sources),
        "documents": curves.by_document(losses, text.n_bytes),
    }
    for name, rows in tables.items():
        curves.write_csv(plots / f"{name}.csv", curves.HEADERS[name], rows)
    samples = [sample.as_json() for sample in seen.samples]
    write_json(job.staging / "attention.json", seen.heads.scores)
    write_json(job.staging / "samples.json", samples)
    findings = Findings(
        metrics, facts, comparison(metrics), tables, samples, seen.heads, seen.maps, seen.embedding, text.table
    )
    (job.staging / "report.html").write_text(page(job.root / "data", findings), encoding="utf-8")
    write_json(job.staging / "metrics.json", metrics)
