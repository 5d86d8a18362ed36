"""What the page draws: charts as traces and layouts of plotly.js, maps of attention, the embedding.

    {"charts": {"loss": {"traces": [..], "layout": {..}}}, "maps": [..], "heads": [..], "embedding": {..}, ..}

Tokens are shown as text in which spaces and line ends can be seen: " the\\n" is "·the⏎".
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluate.attention import SCORES, Heads
from stages.evaluate.drawing import chart, line
from stages.evaluate.embeddings import Map
from stages.evaluate.funnel import Funnel, read_funnel
from stages.evaluate.token_bytes import TokenBytes
from stages.evaluate.training_tab import training_charts

VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})
FUNNEL_TEXT = "%{value:,}<br>%{percentInitial:.1%}"


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
            **training_charts(folder / "train"),
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
    """Documents and bytes behind every stage, and why some documents went."""
    names = [step.name for step in funnel.steps]

    def kept(title: str, values: list[int]) -> dict[str, Any]:
        trace = {"type": "funnel", "y": names, "x": values, "texttemplate": FUNNEL_TEXT}
        return chart([trace], title, "", "")

    reasons = funnel.removed[::-1]
    gone = {"type": "bar", "orientation": "h", "y": [name for name, _ in reasons], "x": [n for _, n in reasons]}
    return {
        "da-funnel": kept("documents", [step.documents for step in funnel.steps]),
        "da-bytes": kept("bytes of text", [step.bytes for step in funnel.steps]),
        "da-removed": chart([gone], "why documents went", "documents", ""),
    }
