"""The tab of the training: curves, probes of the layers, final figures.

It is made of what training writes, so it can be shown while that goes on (pipeline/live.py). `folder` is data/train, or
the scratch folder of a training: both have loss.csv, and probes.csv where there are probes. A last line that is not
written to its end yet is left out.

The smoothed loss is a centred mean with triangular weights over a twenty-fifth of the steps on either side, so it lies
on the curve and does not lag behind it, as a running mean does. At the ends the weights that are there count:

    losses 4 4 1 1, one step on either side, weights 1 2 1:  4.0  3.25  1.75  1.0
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.errors import BadInput
from stages.evaluate.drawing import chart, line, number, place, table

AGAIN = "run `dvc checkout train`, or `dvc repro train`"
MOST_POINTS = 1500
SMOOTHED_PART = 25
LARGEST_WINDOW = 1000
PROBES = {
    "activation_rms": "activations behind the layer, root mean square",
    "gradient_norm": "norm of the gradient by layer",
    "update_to_weight": "update / weights",
    "attention_logit_max": "largest attention logit",
    "dead_units": "dead units of the MLP",
}
LOGARITHMIC = ("activation_rms", "gradient_norm", "update_to_weight")
SPEEDS = {"tr-speed": "tokens a second", "tr-mfu": "MFU, %", "tr-memory": "most memory held, GiB"}
SPEED = re.compile(r"step (\d+) .*tokens/s (\d+)(?: mfu ([\d.]+)%)? memory ([\d.]+) GiB")
RAMP = ("#8957d6", "#3b7dd8", "#1b9c8a", "#55ab4b", "#c28f00")  # from the first layer to the last
OUTER = {"embedding": "#8b949e", "head": "#d1480f"}


def training_charts(folder: Path) -> dict[str, Any]:
    """Loss, learning rate and norm of the gradient by tokens, thinned to what a screen can show, and the probes."""
    rows = finished_rows(folder / "loss.csv")
    every = math.ceil(len(rows) / MOST_POINTS) or 1

    def points(name: str) -> tuple[list[int], list[float]]:
        kept = [row for number, row in enumerate(rows) if number % every == 0 or name == "validation_loss"]
        kept = [row for row in kept if is_finite(row.get(name))]
        return [int(row["tokens"]) for row in kept], [float(row[name]) for row in kept]

    stepped = [row for row in rows if is_finite(row["loss"])]
    reach = min(LARGEST_WINDOW, len(stepped) // SMOOTHED_PART)
    means = smoothed(np.array([float(row["loss"]) for row in stepped]), reach)
    tokens = [int(row["tokens"]) for row in stepped]
    calm = line(tokens[::every], means.round(6).tolist()[::every], f"smoothed over {2 * reach + 1} steps")
    loss = [
        line(*points("loss"), "each step", opacity=0.35 if reach else 1, line={"width": 1}),
        *([calm] if reach else []),
        line(*points("validation_loss"), "validation", mode="lines+markers", line={"width": 2, "dash": "dot"}),
    ]
    norm = [line(*points("grad_norm"), "grad_norm")]
    return {
        "tr-loss": chart(loss, "loss", "tokens", "nats a token"),
        "tr-lr": chart([line(*points("lr"), "lr")], "learning rate", "tokens", ""),
        "tr-norm": chart(norm, "norm of the gradient", "tokens", "", yaxis={"type": "log"}),
        **probe_charts(finished_rows(folder / "probes.csv")),
    }


def is_finite(text: str | None) -> bool:
    """Whether it is a number that a chart can show: a training that diverges writes inf and nan."""
    return bool(text) and math.isfinite(float(text or "nan"))


def finished_rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file that may be growing."""
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    return list(csv.DictReader(whole.splitlines()))


def check_curves(folder: Path, steps: int) -> None:
    """Of a training that has ended after so many steps.

    Raises:
        BadInput: a file is not there or ends too early.
    """
    for name in ("loss.csv", "probes.csv"):
        path = folder / name
        if not path.exists() or not path.read_bytes().endswith(b"\n"):
            problem = "ends in the middle of a line" if path.exists() else "is not there"
            raise BadInput(f"data/train/{name}: {problem}; {AGAIN}")
    last = next((row["step"] for row in reversed(finished_rows(folder / "loss.csv"))), "no step")
    if last != str(steps):
        raise BadInput(f"data/train/loss.csv: ends at {last}, the training at {steps}; {AGAIN}")


def smoothed(values: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """Means with weights that fall evenly to both sides, to zero behind `reach` neighbours."""
    if not len(values):
        return values
    weights = np.concatenate((np.arange(1, reach + 1), np.arange(reach + 1, 0, -1))).astype(float)
    middle = slice(reach, reach + len(values))
    sums, counts = (np.convolve(series, weights)[middle] for series in (values, np.ones(len(values))))
    return np.asarray(sums / counts)


def probe_charts(rows: Sequence[dict[str, str]]) -> dict[str, Any]:
    """A chart for each probe that found something, a line a layer; none without probes."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    inner = [layer for layer in layers if layer.isdigit()]
    charts = {}
    for name, title in PROBES.items():
        traces = []
        for layer in layers:
            found = [
                (int(row["step"]), float(row[name])) for row in rows if row["layer"] == layer and is_finite(row[name])
            ]
            if found:
                inside = layer.isdigit()
                colour = {"color": shade(int(layer), len(inner))} if inside else {"dash": "dot", "color": OUTER[layer]}
                steps, values = map(list, zip(*found, strict=True))
                words = f"layer {layer}" if inside else layer
                traces.append(line(steps, values, words, line={"width": 1.5, **colour}))
        if traces:
            scale = {"type": "log"} if name in LOGARITHMIC else {"rangemode": "nonnegative"}
            charts[f"tr-{name}"] = chart(traces, title, "step", "", yaxis=scale)
    return charts


def shade(layer: int, layers: int) -> str:
    """Neighbouring layers have neighbouring colours."""
    return RAMP[round(layer / max(1, layers - 1) * (len(RAMP) - 1))]


def speed_charts(log: Iterable[str]) -> dict[str, Any]:
    """Tokens a second, MFU where it is known, and memory, from the lines of training.log. They differ from run to
    run, and so are no part of what a stage publishes for others."""
    found = [match for text in log if (match := SPEED.match(text))]
    found = found[:: math.ceil(len(found) / MOST_POINTS) or 1]
    charts = {}
    for group, (name, title) in enumerate(SPEEDS.items(), start=2):
        points = [(int(match[1]), float(match[group])) for match in found if match[group]]
        if points:
            steps, values = map(list, zip(*points, strict=True))
            charts[name] = chart([line(steps, values, title)], title, "step", "", yaxis={"rangemode": "tozero"})
    return charts


def training(metrics: dict[str, Any], charts: Collection[str], note: str, shown: Container[str] | None = None) -> str:
    """The inside of the tab: places for the charts, and the final figures. Those that are not yet `shown` are hidden
    until they have something to show."""
    tiles = {
        name: place(name, tall=name == "tr-loss", hidden=shown is not None and name not in shown) for name in charts
    }
    loss = tiles.pop("tr-loss")
    figures = [[name.replace("_", " "), number(value)] for name, value in metrics.items() if value is not None]
    return (
        f'{loss}<div class="charts">{"".join(tiles.values())}</div>'
        f'<div id="tr-figures">{table([["", ""], *figures])}</div><p class="note">{note}</p>'
    )
