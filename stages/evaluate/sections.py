"""The sections of the page as HTML: tables and texts, and places for the charts that page.js draws.

Each function gives the inside of one tab. Text of the corpus and of the model is escaped wherever it enters.
"""

from __future__ import annotations

import hashlib
import json
from html import escape
from pathlib import Path
from typing import Any

from stages.evaluate.drawing import number, place, table
from stages.evaluate.funnel import Funnel, read_funnel
from stages.evaluate.page_data import VISIBLE, Findings
from stages.evaluate.training_tab import training, training_charts

FIGURES = (  # names in metrics.json, what they are
    ("test_loss", "loss on the test split, nats a token"),
    ("perplexity", "its exponential"),
    ("bits_per_byte", "bits per byte, context cut as training cuts it"),
    ("bits_per_byte_strided", "bits per byte with overlapping windows"),
    ("validation_loss", "loss on the validation split"),
    ("validation_bits_per_byte", "its bits per byte"),
    ("validation_bits_per_byte_strided", "the same with overlapping windows"),
    ("repeated_loss_first", "loss on random tokens"),
    ("repeated_loss_second", "loss on the same tokens when they come again"),
    ("generated_distinct_1", "different tokens / tokens that the model wrote"),
    ("generated_distinct_2", "the same for two in a row"),
    ("generated_distinct_3", "for three"),
    ("generated_repetition", "share of 4-grams that stood before in the same text"),
    ("generated_length", "mean tokens of a text"),
    ("generated_finished", "share of texts that the model ended itself"),
    ("generated_longest_match", "tokens of the longest piece that stands in the training text"),
    ("generated_memorised", "share of tokens in such pieces of 16 or more"),
)
SPEED = (
    "Speed and memory are no result: they stand in <code>data/train/timing.json</code>, and "
    "<code>millrace report --html FILE</code> writes this page with them."
)


def sections(folder: Path, findings: Findings) -> dict[str, tuple[str, str]]:
    """Title and HTML of each tab by its name. `folder` is `data`."""

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    return {
        "results": ("Results", results(findings)),
        "training": ("Training", training(read("train/metrics.json"), training_charts(folder / "train"), SPEED)),
        "data": ("Data", data(read_funnel(folder), read("pack/metrics.json"))),
        "tokenizer": ("Tokenizer", tokenizer(read("tokenizer/metrics.json"), read("tokenizer/report.json"))),
        "attention": ("Attention", attention(findings)),
        "embedding": ("Embedding", embedding(findings)),
        "samples": ("Samples", samples(findings.samples)),
        "provenance": ("Provenance", provenance(read, findings.metrics)),
    }


def results(findings: Findings) -> str:
    known = {name: words for name, words in FIGURES if name in findings.metrics}
    further = sorted(
        name for name in findings.metrics if name not in known and name.endswith(("_loss", "_byte", "_strided"))
    )
    rows = [[known.get(name, name.replace("_", " ")), number(findings.metrics[name])] for name in (*known, *further)]
    return (
        "<p>Fewer bits are better. Each baseline is charged for the same bytes, after reading the same training "
        "tokens; zstd learns from the test text as well while it goes, and may copy whole paragraphs.</p>"
        f"{table(findings.comparison)}{place('re-bits')}<h2>All figures</h2>{table([['', ''], *rows])}"
        f'<h2>Where the loss is</h2><div class="charts">{place("re-position")}{place("re-frequency")}'
        f"{place('re-documents')}</div><h2>By source</h2>"
        + table(
            [["source", "documents", "bytes", "bits per byte"]]
            + [[s, f"{d:,}", f"{b:,}", number(bits)] for s, d, b, bits in findings.tables["loss_by_source"]]
        )
    )


def data(funnel: Funnel, pack: dict[str, Any]) -> str:
    """Documents and bytes behind every stage, and what each removed."""
    steps = table(
        [["", "documents", "bytes", "tokens"], *([step.name, *map(number, step[1:])] for step in funnel.steps)]
    )
    splits = table([["", "documents", "bytes", "tokens"], *([s.name, *map(number, s[1:])] for s in funnel.splits)])
    removed = table([["why documents went", "documents"], *([name, number(n)] for name, n in funnel.removed)])
    others = {name: value for name, value in pack.items() if not name.startswith(("bytes_", "tokens_", "eval_"))}
    facts = [[name.replace("_", " "), number(value)] for name, value in others.items()]
    return (
        f'<div class="charts">{place("da-funnel")}{place("da-bytes")}{place("da-removed")}</div>{steps}'
        f"<h2>Splits</h2>{splits}<h2>Removed</h2>{removed}<h2>Rows of tokens</h2>{table([['', ''], *facts])}"
    )


def tokenizer(metrics: dict[str, Any], report: dict[str, Any]) -> str:
    rows = [[name.replace("_", " "), number(value)] for name, value in metrics.items()]
    tokenizers = report.get("tokenizers", {})
    named = {name: one.get("sources", {}) for name, one in tokenizers.items()}
    compared = [["source", *(name if name != "this" else "bytes per token" for name in named)]] + [
        [source, *(number(sources.get(source, {}).get("bytes_per_token")) for sources in named.values())]
        for source in dict.fromkeys(source for sources in named.values() for source in sources)
    ]
    longest = [["token", "id", "occurrences"]] + [
        [token["text"].translate(VISIBLE), str(token["id"]), f"{token['count']:,}"]
        for token in report.get("longest_tokens", [])[:25]
    ]
    return (
        f"{table([['', ''], *rows])}<h2>By source</h2>{table(compared)}<h2>Longest tokens</h2>{table(longest)}"
        '<p class="note">More in <code>data/tokenizer/report.html</code>.</p>'
    )


def attention(findings: Findings) -> str:
    """The explorer; an attention of one's own need not show what it looks at, and then there is none."""
    heads = findings.heads.scores
    if not heads:
        return "<p>No layer shows what it looks at: the attention of all of them is a class of one's own.</p>"
    names = list(heads[0])
    columns = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in names)
    rows = "".join(
        f'<tr data-layer="{head["layer"]}" data-head="{head["head"]}">'
        + "".join(f"<td>{escape(number(head.get(name, '')))}</td>" for name in names)
        + "</tr>"
        for head in heads
    )
    menus = "".join(
        f'<label>{title}<select id="at-{name}"></select></label>'
        for name, title in (("text", "text"), ("layer", "layer"), ("head", "head"))
    )
    return f"""<div class="controls">{menus}</div>
<div class="pair"><div>{place("at-map", tall=True)}
<div class="controls"><label>what this token looks at<select id="at-query"></select></label></div>
<div class="panel" id="at-answer" aria-live="polite"></div></div>
<div><div class="controls"><label>score<select id="at-score"></select></label></div>
{place("at-overview")}{place("at-similarity")}</div></div>
<h2>Heads</h2><p>Means over queries of test text: entropy in nats, distance in tokens, the rest probabilities (on the
first tokens of the document, on the token before, on what came after an earlier occurrence of the current token, on
that earlier occurrence). <b>repeated</b> is the induction score on random tokens that come twice; <b>ablation</b> the
rise of the loss without the head; <b>nearest</b> the head of the layer that looks most alike. A click on a line shows
its map; a click on a title sorts.</p>
<div class="scroll"><table class="sortable" id="at-table"><thead><tr>{columns}</tr></thead><tbody>{rows}</tbody></table>
</div>"""


def embedding(findings: Findings) -> str:
    if not findings.embedding.tokens:
        return "<p>No token was mapped: <code>evaluate.embedding_tokens</code> is 0.</p>"
    return f"""<p>The {len(findings.embedding.tokens)} most frequent tokens. t-SNE keeps neighbours together; distances
and directions on it mean nothing.</p>
<div class="controls"><label>map<select id="em-method"><option value="tsne">t-SNE</option>
<option value="pca">principal components</option></select></label>
<label>token<select id="em-token"></select></label></div>
<div class="pair">{place("em-map", tall=True)}<div><h2>Nearest by cosine</h2>
<div class="scroll"><table id="em-neighbours"><thead><tr><th>token</th><th>cosine</th></tr></thead><tbody></tbody>
</table></div></div></div>
{place("em-norms")}"""


def samples(written: list[dict[str, Any]]) -> str:
    texts = "".join(
        f"<pre><b>{escape(s['prompt'])}</b>{escape(s['continuation'])}{'' if s['finished'] else ' …'}</pre>"
        for s in written
    )
    return f"<p>The prompt stands out; the first text starts from nothing. Unchosen.</p>{texts}"


def provenance(read: Any, metrics: dict[str, Any]) -> str:
    """What the figures are of: hashes that are equal wherever the same was done, and the params of the training."""
    state, config, code = read("train/best/state.json"), read("train/best/config.json"), read("code/evaluate.json")
    source, origin = read("download/manifest.json"), read("train/best/run.json")
    rows = [
        ["test text (eval_sha256)", metrics["eval_sha256"]],
        ["training run", state["run"]],
        ["step", f"{state['step']:,}"],
        ["corpus", " ".join(filter(None, (source.get("source"), source.get("revision"))))],
        *([f"{name} (sha256)", digest] for name, digest in sorted(origin["data"].items())),
        ["weights (sha256)", read("train/best/manifest.json")["model.safetensors"]["sha256"]],
        ["code of training", code_digest(origin["code"])],
        ["code of this stage", code["digest"]],
        ["context length", f"{config['context_length']:,}"],
        ["vocabulary", f"{config['vocab_size']:,}"],
    ]
    # 0 and nothing: sizes that follow from others, and parts that are not there
    model = [[name, str(value)] for name, value in sorted(config["model"].items()) if value not in (0, "", None)]
    trained = [[name, json.dumps(value)] for name, value in sorted(origin["params"]["train"].items())]
    return (
        f"{table([['', ''], *rows], text=True)}<h2>Architecture</h2>{table([['', ''], *model], text=True)}"
        f"<h2>Training</h2>{table([['', ''], *trained], text=True)}"
    )


def code_digest(modules: dict[str, Any]) -> str:
    """One hash for the hashes of all functions that trained."""
    return hashlib.sha256(json.dumps(modules, sort_keys=True).encode()).hexdigest()[:16]
