"""The tab of the page that sets this run against another one: `millrace report --html FILE --against REV`.

It begins with what counts, the difference on the same test documents with its interval, as pipeline/compare.py finds
it; then curves over each other, each document at both its values, and the tables of what was given and what came out:

    this run less main: -0.0081 bits per byte (-0.47%), 95% interval -0.0112 to -0.0049, lower on 24 of the 29 ..
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline.compare import change, comparison, documents, in_words, said
from pipeline.revisions import WORKSPACE, Revision
from stages.errors import BadInput
from stages.evaluate.drawing import chart, line, place, table
from stages.evaluate.training_tab import is_finite

THIS = "this run"
LOSSES, PLOTS = "data/train/loss.csv", "data/evaluate/plots"
CURVES = (  # name of the chart, file, column across, column up, title; on logarithmic scales what spans magnitudes
    ("ag-loss", LOSSES, "tokens", "loss_smooth", "training loss, running mean", "linear"),
    ("ag-validation", LOSSES, "tokens", "validation_loss", "validation loss", "linear"),
    ("ag-position", f"{PLOTS}/loss_by_position.csv", "position", "loss", "test loss by position in context", "log"),
    ("ag-frequency", f"{PLOTS}/loss_by_frequency.csv", "frequency", "loss", "test loss by token frequency", "log"),
)


def tab(root: Path, name: str) -> tuple[str, dict[str, Any]]:
    """The inside of the tab, and its charts.

    Raises:
        BadInput: there is no such revision, or it has no results.
    """
    this, other = Revision.of(root, WORKSPACE), Revision.of(root, name)
    other.need_run()
    if other.json("data/evaluate/metrics.json") is None:
        raise BadInput(f"{name}: its data/evaluate/metrics.json is not in the cache; `dvc fetch` gets it from a remote")
    found = comparison(other, this)
    charts = curves(this, other)
    if not found["same_test_text"]:
        verdict = (
            "Measured on other test text or in another precision (eval_sha256, eval_precision): losses on it cannot be "
            "compared."
        )
        for chart_of_test in ("ag-position", "ag-frequency"):
            charts.pop(chart_of_test, None)
    elif not found["difference"]:
        verdict = "Measured on the same test text; the losses of its documents are not in the cache."
    else:
        verdict = (
            f"{THIS} less {name}: {in_words(found['difference'])} Another seed would move both: see millrace ablate."
        )
        charts["ag-documents"] = scatter(documents(other, this), name)
    places = "".join(map(place, charts))
    return f'<p>{escape(verdict)}</p><div class="charts">{places}</div>{tables(found, name)}', charts


def curves(this: Revision, other: Revision) -> dict[str, Any]:
    """Those that either has, over each other."""
    charts = {}
    for name, path, across, up, title, scale in CURVES:
        shift = 1 if scale == "log" else 0  # 0 has no logarithm
        traces = []
        for revision, words in ((this, THIS), (other, other.name)):
            rows = [row for row in revision.rows(path) if is_finite(row.get(up))]
            xs, ys = [int(row[across]) + shift for row in rows], [float(row[up]) for row in rows]
            if rows:
                traces.append(line(xs, ys, words))
        if traces:
            axis = across + (" + 1" if shift else "")
            charts[name] = chart(traces, title, axis, "nats a token", xaxis={"type": scale})
    return charts


def scatter(pairs: Sequence[tuple[int, float, float]], name: str) -> dict[str, Any]:
    """Each document at both its values; below the line it is better now."""
    values = [value for _, *both in pairs for value in both]
    ends = [min(values), max(values)]
    spots = {
        "type": "scatter", "mode": "markers", "name": "a document",
        "x": [theirs for _, theirs, _ in pairs], "y": [ours for *_, ours in pairs],
        "text": [f"{n_bytes:,} bytes: {ours - theirs:+.3f}" for n_bytes, theirs, ours in pairs],
        "hovertemplate": "%{text}<extra></extra>",
    }  # fmt: skip
    equal = line(ends, ends, "equal", mode="lines", line={"dash": "dot", "width": 1})
    return chart([spots, equal], "bits per byte of each test document", name, THIS)


def tables(found: Mapping[str, Any], name: str) -> str:
    """What was given and what came out, where it differs."""
    parts = []
    for title, key in (("Params", "params"), ("Metrics", "metrics"), ("Versions", "versions")):
        rows = [[label, said(a), said(b), change(a, b)] for label, (a, b) in found[key].items()]
        inside = table([["", name, THIS, "change"], *rows]) if rows else "<p>nothing differs</p>"
        parts.append(f"<h2>{title}</h2>{inside}")
    code = "; ".join(found["code"]) or "no function differs, or a fingerprint is not in the cache"
    parts.append(f"<h2>Code</h2><p>{escape(code)}</p>")
    written = [
        f"<p>{escape(who)}</p><pre><b>{escape(sample['prompt'])}</b>{escape(text)}</pre>"
        for sample in found["samples"]
        for who, text in ((name, sample["a"]), (THIS, sample["b"]))
        if sample["a"] != sample["b"]
    ]
    return "".join([*parts, "<h2>Samples</h2>" if written else "", *written])
