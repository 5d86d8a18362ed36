"""report.html: one page that opens anywhere, with no request to outside, in dark and in light.

Equal inputs give equal bytes: it holds no time, host or path. Charts are inline SVG drawn here: two
short curves need no plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, MARGIN = 520, 240, 44
STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #ffffff; --faint: #d5d9de; --accent: #1f6feb; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --paper: #14171b; --faint: #3a4149; --accent: #6cb0ff; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--faint); }
th:first-child, td:first-child { text-align: left; }
pre { white-space: pre-wrap; border-left: 3px solid var(--faint); padding-left: .8rem; }
pre b { color: var(--accent); font-weight: 600; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--faint); } .curve { stroke: var(--accent); stroke-width: 2; fill: none; }
.dot { fill: var(--accent); } .charts { display: flex; flex-wrap: wrap; gap: 1rem; }
"""


def page(
    metrics: dict[str, Any],
    facts: dict[str, str],
    comparison: Sequence[Sequence[str]],
    curves: Sequence[tuple[str, str, list[tuple[int, float, int]]]],
    samples: list[dict],
    heads: list[dict],
) -> str:
    """The whole page.

    Args:
        facts: lines of the opening, such as the model's size, by name.
        comparison: the rows of `stage.comparison`, a header first.
        curves: title, name of the horizontal axis, and (value, mean loss, labels) of each point.
    """
    opening = " · ".join(f"{escape(name)} {escape(value)}" for name, value in facts.items())
    figures = "".join(f"<figure>{_chart(points, name, title)}</figure>" for title, name, points in curves)
    texts = "".join(
        f"<pre><b>{escape(s['prompt'])}</b>{escape(s['continuation'])}{'' if s['finished'] else ' …'}</pre>"
        for s in samples
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Evaluation</title><style>{STYLE}</style></head><body>
<h1>{metrics["bits_per_byte"]:.3f} bits per byte</h1>
<p>On test text that no stage trained on: 95% interval {metrics["bits_per_byte_low"]:.3f} to
{metrics["bits_per_byte_high"]:.3f}, test loss {metrics["test_loss"]:.3f} nats a token, perplexity
{metrics["perplexity"]:.1f}. {opening}.</p>
<h2>Against baselines</h2>
<p>Each is charged for the same bytes, after reading the same training tokens; lower is better.</p>
{_table(comparison)}
<h2>Where the loss is</h2><div class="charts">{figures}</div>
<h2>Samples</h2><p>The prompt stands out; the first text starts from nothing.</p>{texts}
<h2>Attention heads</h2>
{_heads(heads)}
</body></html>
"""


def _heads(heads: list[dict]) -> str:
    """A row per head; an attention of one's own need not show its probabilities, and then has none."""
    if not heads:
        return "<p>No layer shows its probabilities: the attention of all of them is a class of one's own without.</p>"
    columns = list(heads[0])
    return f"""<p>Means over queries of test text: entropy in nats, distance in tokens, the rest probabilities: on the
first position of the document's segment, on the token before, on what came after an earlier occurrence
of the current token, and on that earlier occurrence.</p>
{_table([columns, *([_number(head[name]) for name in columns] for head in heads)])}"""


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def _chart(points: list[tuple[int, float, int]], name: str, title: str) -> str:
    """A curve of loss over log2(1 + value), with a hover text for every point."""
    xs = [math.log2(1 + value) for value, _, _ in points]
    top = max(1.0, math.ceil(max(loss for _, loss, _ in points)))
    right = max(*xs, 1.0)

    def place(x: float, loss: float) -> tuple[float, float]:
        across = MARGIN + x / right * (WIDTH - 2 * MARGIN)
        return round(across, 1), round(HEIGHT - MARGIN - loss / top * (HEIGHT - 2 * MARGIN), 1)

    spots = [place(x, loss) for x, (_, loss, _) in zip(xs, points, strict=True)]
    dots = "".join(
        f'<circle class="dot" cx="{x}" cy="{y}" r="4">'
        f"<title>{escape(name)} {value:,}: {loss:.3f} nats, {n:,} labels</title></circle>"
        for (x, y), (value, loss, n) in zip(spots, points, strict=True)
    )
    grid = "".join(
        f'<line class="grid" x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y}" y2="{y}"/>'
        f'<text x="8" y="{y + 4}">{loss:.1f}</text>'
        for loss in (0.0, top / 2, top)
        for _, y in [place(0, loss)]
    )
    labels = "".join(
        f'<text x="{x}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{value:,}</text>'
        for (x, _), (value, _, _) in list(zip(spots, points, strict=True))[:: max(1, len(points) // 6)]
    )
    path = " ".join(f"{x},{y}" for x, y in spots)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{escape(title)}">'
        f'<text x="{MARGIN}" y="20">{escape(title)}</text>{grid}{labels}'
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(name)}</text>'
        f'<polyline class="curve" points="{path}"/>{dots}</svg>'
    )
