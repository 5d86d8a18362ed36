"""Pages for people, written once and rendered twice: Markdown for a repository, HTML that needs no network.

    Page("Ablation").text("Two variants.").table([["", "bits per byte"], ["baseline", "1.733"]])

Tables have their header first. A chart is drawn as SVG into the HTML; Markdown names it and leaves it out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, MARGIN = 900, 380, 56
COLOURS = ("#1f6feb", "#d1480f", "#1a7f37", "#8250df", "#b08800", "#bf3989", "#0e8a8a", "#6e4a2f", "#57606a", "#a40e26")
MOST_POINTS = 400

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --paper: #fff; --faint: #d5d9de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --paper: #14171b; --faint: #3a4149; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 70rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--faint); text-align: left; vertical-align: top;
  font-variant-numeric: tabular-nums; }
td pre { white-space: pre-wrap; margin: 0; max-width: 28rem; font-size: 13px; }
svg { max-width: 100%; height: auto; } text { fill: var(--ink); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--faint); } polyline { fill: none; stroke-width: 1.6; }
"""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points of one line, with its name in the legend; lines of equal group have one colour and one legend."""

    group: str
    points: Sequence[tuple[float, float]]


@dataclasses.dataclass
class Page:
    """What stands on a page, in its order; each part as Markdown and as HTML."""

    title: str
    parts: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def heading(self, text: str) -> Page:
        self.parts.append((f"## {text}", f"<h2>{escape(text)}</h2>"))
        return self

    def text(self, text: str, strong: bool = False) -> Page:
        self.parts.append((f"**{text}**" if strong else text, f"<p>{_strong(escape(text), strong)}</p>"))
        return self

    def table(self, rows: Sequence[Sequence[str]], preformatted: bool = False) -> Page:
        header, *body = rows
        lines = [f"| {' | '.join(map(_cell, row))} |" for row in (header, ["---"] * len(header), *body)]

        def cell(text: str) -> str:
            return f"<td><pre>{escape(text)}</pre></td>" if preformatted else f"<td>{escape(text)}</td>"

        head = "".join(f"<th>{escape(text)}</th>" for text in header)
        rest = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in body)
        self.parts.append(("\n".join(lines), f"<table><thead><tr>{head}</tr></thead><tbody>{rest}</tbody></table>"))
        return self

    def chart(self, title: str, across: str, curves: Sequence[Curve]) -> Page:
        if drawn := chart(title, across, [curve for curve in curves if len(curve.points) > 1]):
            self.parts.append((f"_{title}: see the HTML report._", f"<figure>{drawn}</figure>"))
        return self

    def markdown(self) -> str:
        return "\n\n".join([f"# {self.title}", *(markdown for markdown, _ in self.parts)]) + "\n"

    def html(self) -> str:
        body = "\n".join(html for _, html in self.parts)
        return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(self.title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(self.title)}</h1>
{body}
</body></html>
"""


def chart(title: str, across: str, curves: Sequence[Curve]) -> str:
    """All curves over each other as SVG, without the first tenth, which would flatten the rest; empty without any."""
    last = max((curve.points[-1][0] for curve in curves), default=0.0)
    seen = [Curve(c.group, _thinned([(x, y) for x, y in c.points if x >= last / 10])) for c in curves]
    seen = [curve for curve in seen if curve.points]
    if not seen:
        return ""
    xs, ys = ([point[axis] for curve in seen for point in curve.points] for axis in (0, 1))
    left, right, low, high = min(xs), max(max(xs), min(xs) + 1e-9), min(ys), max(max(ys), min(ys) + 1e-9)

    def place(x: float, y: float) -> str:
        px = MARGIN + (x - left) / (right - left) * (WIDTH - MARGIN - 12)
        py = HEIGHT - MARGIN - (y - low) / (high - low) * (HEIGHT - MARGIN - 40)
        return f"{px:.1f},{py:.1f}"

    groups = list(dict.fromkeys(curve.group for curve in seen))
    colour = {group: COLOURS[number % len(COLOURS)] for number, group in enumerate(groups)}
    parts = [f'<text x="{MARGIN}" y="18" font-weight="600">{escape(title)}</text>']
    for share in (0, 0.25, 0.5, 0.75, 1):
        value, x = low + share * (high - low), left + share * (right - left)
        px, py = place(x, value).split(",")
        parts.append(f'<line class="grid" x1="{MARGIN}" x2="{WIDTH - 12}" y1="{py}" y2="{py}"/>')
        parts.append(f'<text x="{MARGIN - 6}" y="{py}" text-anchor="end">{value:.3g}</text>')
        parts.append(f'<text x="{px}" y="{HEIGHT - MARGIN + 18}" text-anchor="middle">{x:,.3g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(across)}</text>')
    for curve in seen:
        points = " ".join(place(x, y) for x, y in curve.points)
        name = escape(curve.group)
        parts.append(f'<polyline stroke="{colour[curve.group]}" points="{points}"><title>{name}</title></polyline>')
    legend = "".join(f'<span style="color:{colour[group]}">&#9632;</span> {escape(group)} &nbsp; ' for group in groups)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{escape(title)}">'
    return f"{svg}{''.join(parts)}</svg><figcaption>{legend}</figcaption>"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    every = math.ceil(len(points) / MOST_POINTS)
    return points[:: every or 1]


def _strong(text: str, strong: bool) -> str:
    return f"<strong>{text}</strong>" if strong else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
