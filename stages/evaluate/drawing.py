"""Pieces of the page: charts as traces and layouts of plotly.js, places for them, and tables as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

FEW = 30


def chart(traces: list[dict[str, Any]], title: str, across: str, up: str, **layout: Any) -> dict[str, Any]:
    axes = {"xaxis": {"title": {"text": across}}, "yaxis": {"title": {"text": up}}}
    for name in ("xaxis", "yaxis"):
        axes[name] |= layout.pop(name, {})
    return {"traces": traces, "layout": {"title": {"text": title, "font": {"size": 14}}, **axes, **layout}}


def line(xs: list[Any], ys: list[Any], name: str, **more: Any) -> dict[str, Any]:
    """With markers where there are few points, as a single one is no line."""
    mode = "lines" if len(xs) > FEW else "lines+markers"
    return {"type": "scatter", "mode": mode, "x": xs, "y": ys, "name": name, **more}


def place(name: str, tall: bool = False, hidden: bool = False) -> str:
    """Where page.js draws the chart of this name."""
    return f'<div class="chart{" tall" if tall else ""}" id="{name}"{" hidden" if hidden else ""}></div>'


def table(rows: Sequence[Sequence[str]], text: bool = False) -> str:
    """A header, which is left out if it is empty, and lines; `text` sets the second column like text."""
    header, *body = rows
    head = f"<thead><tr>{_cells(header, 'th')}</tr></thead>" if any(header) else ""
    lines = "".join(f"<tr>{_cells(row, 'td', text)}</tr>" for row in body)
    return f'<div class="scroll"><table>{head}<tbody>{lines}</tbody></table></div>'


def _cells(cells: Iterable[str], tag: str, text: bool = False) -> str:
    kind = ' class="text"' if text else ""
    return "".join(f"<{tag}{kind}>{escape(str(cell))}</{tag}>" for cell in cells)


def number(value: object) -> str:
    """For people: four decimals, or thousands apart; nothing for None."""
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4f}"
    if isinstance(value, int | float):
        return f"{value:,.0f}"
    return "" if value is None else str(value)
