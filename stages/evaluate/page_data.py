"""What the page draws: charts as traces and layouts of plotly.js, maps of attention, the embedding.

    {"charts": {"loss": {"traces": [..], "layout": {..}}}, "maps": [..], "heads": [..], "embedding": {..}, ..}

Tokens are shown as text in which spaces and line ends can be seen: " the\\n" is "·the⏎".
"""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluate.attention import SCORES, Heads
from stages.evaluate.embeddings import Map
from stages.evaluate.funnel import Funnel, read_funnel
from stages.evaluate.token_bytes import TokenBytes

MOST_POINTS = 1500
VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that the stage has found.

    Attributes:
        metrics: of metrics.json. facts: lines of the opening, such as the model's size, by name.
        comparison: the model and the baselines, a header first. tables: the rows of plots/*.csv by name.
        samples: of samples.json. heads, maps: of attention. embedding: a map of it.
    """

    metrics: dict[str, Any]
    facts: dict[str, str]
    comparison: list[list[str]]
    tables: dict[str, list]
    samples: list[dict[str, Any]]
    heads: Heads
    maps: list[dict[str, Any]]
    embedding: Map
    table: TokenBytes


def page_data(folder: Path, findings: Findings) -> dict[str, Any]:
    """The JSON of the page. `folder` is `data`."""
    embedding = findings.embedding
    named = {*embedding.tokens, *(other for near in embedding.neighbours for other, _ in near)}
    texts = [
        dict(found, tokens=[visible(findings.table, token) for token in found["tokens"]]) for found in findings.maps
    ]
    for number, (found, sample) in enumerate(zip(texts, findings.samples, strict=False)):
        found["name"] = sample["prompt"].translate(VISIBLE)[:40] or f"text {number}, from nothing"
    heads = findings.heads.scores
    return {
        "charts": {
            **training_charts(folder / "train/loss.csv"),
            **result_charts(findings),
            **funnel_charts(read_funnel(folder)),
        },
        "maps": texts,
        "heads": heads,
        "kinds": {str(head["layer"]): head["kind"] for head in heads},
        "scores": [name for name in ("induction", *SCORES, "repeated", "ablation") if heads and name in heads[0]][1:],
        "similarity": {str(layer): rows for layer, rows in findings.heads.similarity.items()},
        "embedding": dataclasses.asdict(embedding),
        "vocabulary": {str(token): visible(findings.table, token) for token in sorted(named)},
    }


def visible(table: TokenBytes, token: int) -> str:
    """The text of a token with its spaces; end-of-text is [end], bytes that are no character are \\xNN."""
    if token == table.end_of_text:
        return "[end]"
    raw = table.text_bytes(np.array([token]))
    return raw.decode("utf-8", errors="backslashreplace").translate(VISIBLE) or f"#{token}"


def chart(traces: list[dict[str, Any]], title: str, across: str, up: str, **layout: Any) -> dict[str, Any]:
    axes = {"xaxis": {"title": {"text": across}}, "yaxis": {"title": {"text": up}}}
    for name in ("xaxis", "yaxis"):
        axes[name] |= layout.pop(name, {})
    return {"traces": traces, "layout": {"title": {"text": title, "font": {"size": 14}}, **axes, **layout}}


def line(xs: list[Any], ys: list[Any], name: str, **more: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "name": name, **more}


def training_charts(path: Path) -> dict[str, Any]:
    """Loss, learning rate and norm of the gradient by tokens, thinned to what a screen can show."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    every = math.ceil(len(rows) / MOST_POINTS) or 1

    def points(name: str) -> tuple[list[int], list[float]]:
        kept = [row for number, row in enumerate(rows) if number % every == 0 or name == "validation_loss"]
        kept = [row for row in kept if row.get(name)]
        return [int(row["tokens"]) for row in kept], [float(row[name]) for row in kept]

    loss = [
        line(*points("loss"), "each step", opacity=0.35, line={"width": 1}),
        line(*points("loss_smooth"), "smoothed", line={"width": 2}),
        line(*points("validation_loss"), "validation", mode="lines+markers", line={"width": 2, "dash": "dot"}),
    ]
    return {
        "tr-loss": chart(loss, "loss", "tokens", "nats a token"),
        "tr-lr": chart([line(*points("lr"), "lr")], "learning rate", "tokens", ""),
        "tr-norm": chart(
            [line(*points("grad_norm"), "grad_norm")], "norm of the gradient", "tokens", "", yaxis={"type": "log"}
        ),
    }


def result_charts(findings: Findings) -> dict[str, Any]:
    """Bits per byte beside the baselines', and where the loss is."""
    header, *rows = findings.comparison
    metrics = findings.metrics
    bits = {
        "type": "bar",
        "orientation": "h",
        "y": [row[0] for row in reversed(rows)],
        "x": [float(row[1]) for row in reversed(rows)],
        "hovertemplate": "%{y}: %{x:.3f} bits per byte<extra></extra>",
        "error_x": {
            "type": "data",
            "width": 0,
            "thickness": 3,
            "symmetric": False,
            "array": [metrics["bits_per_byte_high"] - float(r[1]) if r[2] else None for r in reversed(rows)],
            "arrayminus": [float(r[1]) - metrics["bits_per_byte_low"] if r[2] else None for r in reversed(rows)],
        },
    }
    shown = {"re-bits": chart([bits], "bits per byte, lower is better", header[1], "")}
    for name, table, across in (
        ("re-position", "loss_by_position", "tokens of context before the input"),
        ("re-frequency", "loss_by_frequency", "occurrences of the label in the training tokens"),
    ):
        points = findings.tables[table]
        hover = [f"from {value:,}: {loss:.3f} nats, {n:,} labels" for value, loss, n in points]
        trace = line(
            [value + 1 for value, _, _ in points], [loss for _, loss, _ in points], "loss", mode="lines+markers",
            text=hover, hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
        shown[name] = chart([trace], f"loss by {table[8:]}", f"{across}, plus one", "nats", xaxis={"type": "log"})
    documents = findings.tables["documents"]
    spots = {
        "type": "scatter", "mode": "markers", "x": [d[1] for d in documents], "y": [d[2] for d in documents],
        "text": [f"document {d[0]}: {d[1]:,} bytes, {d[2]:.3f}" for d in documents],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    shown["re-documents"] = chart([spots], "each test document", "bytes", "bits per byte", xaxis={"type": "log"})
    return shown


def funnel_charts(funnel: Funnel) -> dict[str, Any]:
    """Documents behind every stage, and why some went."""
    kept = {
        "type": "funnel", "y": [step.name for step in funnel.steps], "x": [step.documents for step in funnel.steps],
        "textinfo": "value+percent initial",
    }  # fmt: skip
    reasons = funnel.removed[::-1]
    gone = {"type": "bar", "orientation": "h", "y": [name for name, _ in reasons], "x": [n for _, n in reasons]}
    return {
        "da-funnel": chart([kept], "documents", "", ""),
        "da-removed": chart([gone], "why documents went", "documents", ""),
    }
