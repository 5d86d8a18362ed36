"""Evaluates the best checkpoint on the test split, against baselines, and shows what it writes and sees.

Text that no stage trained on is charged in bits per byte, which does not depend on the tokenizer. The
figure means something beside others on the same bytes: n-grams and zstd after exactly the training
tokens that the model read (baselines.py). Around it stand an interval (losses.py), curves (curves.py),
samples (samples.py), the heads (attention.py) and a page of it all (report.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.checkpoint import load_model, model_config, read_json
from stages.devices import own_gpus
from stages.entry import Job, file_sha256, plain, write_json
from stages.errors import BadInput
from stages.evaluate import curves
from stages.evaluate.attention import head_scores
from stages.evaluate.baselines import baselines, rows_seen
from stages.evaluate.events import Events, events_of_documents, events_of_rows
from stages.evaluate.losses import LabelLosses, bits_per_byte, bootstrap_interval, label_losses
from stages.evaluate.params import EvaluateParams
from stages.evaluate.report import page
from stages.evaluate.samples import sample_texts
from stages.evaluate.token_bytes import TokenBytes
from stages.progress import say
from stages.tokens import TokenRows
from stages.tracking import open_run

NAMES = {
    "bits_per_byte": "model",
    "baseline_token_trigram": "token trigram (Kneser-Ney)",
    "baseline_token_bigram": "token bigram (Kneser-Ney)",
    "baseline_byte_trigram": "byte trigram (Kneser-Ney)",
    "baseline_zstd": "zstd -19, training text as dictionary",
}


@dataclasses.dataclass(frozen=True)
class Text:
    """What the model and the baselines are evaluated on, and what they were trained on.

    Attributes:
        rows: the test split; `documents` are its documents whole, `test` the same as events.
        n_bytes: UTF-8 bytes of every test document, int64 [D].
        train: the training text that the model read, as events.
    """

    rows: TokenRows
    table: TokenBytes
    documents: list[NDArray[np.int64]]
    n_bytes: NDArray[np.int64]
    test: Events
    train: Events


def run(job: Job, evaluate: EvaluateParams) -> None:
    """Writes metrics.json, attention.json, samples.json, plots/*.csv and report.html.

    The baselines are fitted in a thread while torch is imported and the model runs: 4 of 25 seconds.

    Raises:
        BadInput: there is no test text, or text, model and tokenizer do not belong together.
    """
    best = job.root / "data/train/best"
    state = read_json(best, "state.json")
    with (
        own_gpus(job),
        open_run(job, state["run"], {"evaluate": plain(evaluate)}) as tracked,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        text = read_text(job, state, evaluate)
        fitted = thread.submit(baselines, text.train, text.test, text.table)
        device = job.execution.torch_device()
        model = load_model(best, device)
        losses = label_losses(model, text.rows, device)
        heads = head_scores(model, text.rows, evaluate.max_analysis_tokens, device)
        samples = sample_texts(model, text.table, text.rows.context_length, evaluate)
        metrics = measure(text, losses, fitted.result(), evaluate)
        facts = {
            "Parameters": f"{sum(p.numel() for p in model.parameters()):,}",
            "training tokens": f"{state['tokens']:,}",
            "test documents": f"{len(text.documents):,}",
            "test bytes": f"{text.n_bytes.sum():,}",
        }
        write(job, text, losses, metrics, facts, heads, samples)
        print_table(comparison(metrics))
        tracked.results({name: value for name, value in metrics.items() if isinstance(value, float)})
        for name in ("report.html", "plots", "samples.json", "attention.json"):
            tracked.artifact(job.staging / name, "evaluate")


def read_text(job: Job, state: dict[str, Any], params: EvaluateParams) -> Text:
    """Reads the test split, and the training rows that the model had read at this state."""
    data = job.root / "data"
    rows, train_rows = TokenRows(data / "pack/test"), TokenRows(data / "pack/train")
    if not rows.n_rows:
        raise BadInput("data/pack/test: no document; raise split.test in params.yaml, or give more text")
    tokenizer, trained_with = data / "tokenizer/tokenizer.json", model_config(data / "train/best")[1]
    for place, of in (("pack/test", rows.index), ("pack/train", train_rows.index), ("train/best", trained_with)):
        if of["tokenizer_sha256"] != file_sha256(tokenizer):
            raise BadInput(f"data/{place}: made with another tokenizer than data/tokenizer has; run `dvc repro`")
    table = TokenBytes(tokenizer)
    n_read = state["step"] * state["rows_per_step"]
    seen, passes = rows_seen(train_rows, state["seed"], n_read, params.max_baseline_tokens)
    train = events_of_rows(train_rows, seen, table.end_of_text)
    say(
        f"baselines: trained on {train.is_event.sum():,} tokens in {len(seen):,} rows of the {train_rows.n_rows:,}; "
        f"the model read these {passes:.2f} times, n-grams count them once"
    )
    documents = list(rows.documents())
    n_bytes = np.array([table.n_bytes(document) for document in documents])
    test = events_of_documents(documents, table.end_of_text, rows.vocab_size)
    return Text(rows, table, documents, n_bytes, test, train)


def measure(text: Text, losses: LabelLosses, fitted: dict[str, float], params: EvaluateParams) -> dict[str, Any]:
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
        **fitted,
    }
    rounded: dict[str, Any] = {name: round(value, 6) for name, value in figures.items()}
    return rounded | {"eval_sha256": text_sha256(text.table.text_bytes(document) for document in text.documents)}


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
    job: Job,
    text: Text,
    losses: LabelLosses,
    metrics: dict[str, Any],
    facts: dict[str, str],
    heads: list[dict[str, Any]],
    samples: list[dict[str, Any]],
) -> None:
    """Leaves every output in staging."""
    plots = job.staging / "plots"
    plots.mkdir()
    by_position = curves.by_position(losses, text.rows.context_length)
    by_frequency = curves.by_frequency(losses, text.train.labels(), text.rows.vocab_size)
    by_document = curves.by_document(losses, text.n_bytes)
    curves.write_csv(plots / "loss_by_position.csv", ("position", "loss", "n"), by_position)
    curves.write_csv(plots / "loss_by_frequency.csv", ("frequency", "loss", "n"), by_frequency)
    curves.write_csv(plots / "documents.csv", ("document", "bytes", "bits_per_byte"), by_document)
    write_json(job.staging / "attention.json", heads)
    write_json(job.staging / "samples.json", samples)
    pictures = [
        ("Loss by position in context", "position", by_position),
        ("Loss by frequency of the token in training", "frequency", by_frequency),
    ]
    html = page(metrics, facts, comparison(metrics), pictures, samples, heads)
    (job.staging / "report.html").write_text(html, encoding="utf-8")
    write_json(job.staging / "metrics.json", metrics)
