"""Pictures for Prefect's UI, as SVG: the graph with the states of its stages, and a curve from a CSV file.

Prefect's markdown shows images whose address is their content (`data:image/svg+xml;base64,...`), and no Mermaid. A
graph is drawn in rows, a stage below all that it waits for; an arrow that other arrows imply is left out:

    code -> clean, code -> train, clean -> train        is drawn as       code -> clean -> train
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 720
ROW, BOX, GAP = 74, 52, 16
FONT = "font-family='Inter, Helvetica, Arial, sans-serif'"
CHARACTER = 6.3  # pixels of a small letter, about
COLOURS = {
    "Completed": "#2e7d4f",
    "Cached": "#2b6cb0",
    "Unchanged": "#64707d",
    "Failed": "#b83232",
    "Stopped": "#b7791f",
    "NotRun": "#3a3f47",
}
LINES = ("#6fa8ff", "#ffb454", "#7bd88f")
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 40, 40
HEIGHT = 320
MOST_POINTS = 400


@dataclasses.dataclass(frozen=True)
class Box:
    """A stage in the picture: its name in bold, state and time beside it, the message below."""

    name: str
    state: str
    time: str = ""
    message: str = ""


def data_address(svg: str) -> str:
    """The picture as an address that holds it."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def graph_picture(boxes: Sequence[Box], upstream: Mapping[str, set[str]]) -> str:
    """The stages as boxes in the colours of their states.

    Args:
        boxes: every stage after those that it waits for.
        upstream: what each waits for.
    """
    rows = ranks([box.name for box in boxes], upstream)
    places: dict[str, tuple[float, float, float]] = {}  # left, top, width
    for rank in range(max(rows.values(), default=-1) + 1):
        inside = [name for name, row in rows.items() if row == rank]
        width = (WIDTH - GAP * (len(inside) + 1)) / len(inside)
        for place, name in enumerate(inside):
            places[name] = (GAP + place * (width + GAP), GAP + rank * ROW, width)
    arrows = [_arrow(places[before], places[name]) for name in rows for before in direct(name, upstream) & rows.keys()]
    drawn = [_box(box, *places[box.name]) for box in boxes]
    height = GAP + ROW * (max(rows.values(), default=0) + 1)
    return _svg(height, "".join(arrows + drawn))


def ranks(names: Sequence[str], upstream: Mapping[str, set[str]]) -> dict[str, int]:
    """The row of each: one below the lowest that it waits for."""
    rows: dict[str, int] = {}
    for name in names:
        rows[name] = max((rows[before] + 1 for before in upstream[name] if before in rows), default=0)
    return rows


def direct(name: str, upstream: Mapping[str, set[str]]) -> set[str]:
    """What a stage waits for, less what something else that it waits for waits for too."""
    implied: set[str] = set()
    waiting = list(upstream[name])
    while waiting:
        further = upstream[waiting.pop()] - implied
        implied |= further
        waiting += further
    return upstream[name] - implied


def _box(box: Box, left: float, top: float, width: float) -> str:
    letters = int((width - 24) / CHARACTER)
    below = box.message if len(box.message) <= letters else box.message[: letters - 1] + "…"
    beside = f"{box.state}, {box.time}" if box.time else box.state
    dash = " stroke-dasharray='5 4'" if box.state == "NotRun" else ""
    return (
        f"<rect x='{left:.1f}' y='{top}' width='{width:.1f}' height='{BOX}' rx='8' "
        f"fill='{COLOURS.get(box.state, '#64707d')}' stroke='#9aa4b0'{dash}/>"
        f"<text x='{left + 12:.1f}' y='{top + 22}' {FONT} font-size='15' font-weight='600' fill='#fff'>"
        f"{escape(box.name)}<tspan font-weight='400' font-size='13' dx='10'>{escape(beside)}</tspan></text>"
        f"<text x='{left + 12:.1f}' y='{top + 41}' {FONT} font-size='12' fill='#e6ebf0'>{escape(below)}</text>"
    )


def _arrow(start: tuple[float, float, float], end: tuple[float, float, float]) -> str:
    x, y = start[0] + start[2] / 2, start[1] + BOX
    to_x, to_y = end[0] + end[2] / 2, end[1]
    bend = (to_y - y) / 2
    return (
        f"<path d='M{x:.1f},{y} C{x:.1f},{y + bend:.1f} {to_x:.1f},{to_y - bend:.1f} {to_x:.1f},{to_y - 6}' "
        f"fill='none' stroke='#9aa4b0' stroke-width='1.5'/>"
        f"<path d='M{to_x - 4:.1f},{to_y - 7} L{to_x + 4:.1f},{to_y - 7} L{to_x:.1f},{to_y} Z' fill='#9aa4b0'/>"
    )


def curve_picture(title: str, x_name: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Lines over a common axis; one of few points gets dots as well.

    Args:
        lines: the points of each line by its name, in the order of x.
    """
    points = [point for line in lines.values() for point in line]
    low_x, high_x = _range([x for x, _ in points])
    low_y, high_y = _range([y for _, y in points])

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (
            LEFT + (point[0] - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (point[1] - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM),
        )

    drawn = [f"<text x='{LEFT}' y='22' {FONT} font-size='15' font-weight='600' fill='#fff'>{escape(title)}</text>"]
    for part in range(5):
        x, y = low_x + part * (high_x - low_x) / 4, low_y + part * (high_y - low_y) / 4
        drawn += [_beside_axis(y, place((x, y))[1]), _below_axis(x, place((x, y))[0])]
    drawn.append(
        f"<text x='{WIDTH - RIGHT}' y='{HEIGHT - 6}' {FONT} font-size='12' fill='#aab2bd' text-anchor='end'>"
        f"{escape(x_name)}</text>"
    )
    for number, (name, line) in enumerate(lines.items()):
        colour = LINES[number % len(LINES)]
        places = [place(point) for point in thinned(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.6'/>")
        if len(line) <= 40:
            drawn += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='2.6' fill='{colour}'/>" for x, y in places]
        drawn.append(
            f"<text x='{WIDTH - RIGHT}' y='{TOP + 4 + 17 * number}' {FONT} font-size='12' fill='{colour}' "
            f"text-anchor='end'>{escape(name)}</text>"
        )
    return _svg(HEIGHT, "".join(drawn))


def thinned(line: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many points: each the mean of equally many neighbours."""
    each = -(-len(line) // most)
    groups = [line[start : start + each] for start in range(0, len(line), each)] if each > 1 else [[p] for p in line]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _beside_axis(value: float, y: float) -> str:
    return (
        f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#454b54'/>"
        f"<text x='{LEFT - 8}' y='{y + 4:.1f}' {FONT} font-size='11' fill='#aab2bd' text-anchor='end'>"
        f"{value:.4g}</text>"
    )


def _below_axis(value: float, x: float) -> str:
    return (
        f"<text x='{x:.1f}' y='{HEIGHT - BOTTOM + 18}' {FONT} font-size='11' fill='#aab2bd' text-anchor='middle'>"
        f"{short(value)}</text>"
    )


def short(value: float) -> str:
    """`1030000` as `1.03M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _svg(height: float, inside: str) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height:.0f}' "
        f"viewBox='0 0 {WIDTH} {height:.0f}'><rect width='100%' height='100%' rx='10' fill='#23272e'/>{inside}</svg>"
    )
