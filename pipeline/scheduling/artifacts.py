"""What a flow run leaves in Prefect's UI: the graph with its states, metrics, curves, and links to the run in MLflow.

    pretrain-graph      the stages in the colours of their states, each with its time and its reason
    pretrain-metrics    every number of the metrics files, stage by stage
    pretrain-curves     each plot of dvc.yaml that names x and y: the loss over tokens
    pretrain-links      the run in MLflow, the report of evaluate, the experiment

They are made at the end of a run from files that are there anyway, within a second, and nothing depends on
them: what cannot be made is named in one line of the log and left out.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.graph import Graph, Plot
from pipeline.reproduce import Reproduced, Workspace
from pipeline.scheduling.drawing import Box, curve_picture, data_address, graph_picture
from pipeline.scheduling.mlflow_link import links
from pipeline.scheduling.server import unreachable

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

Pages = Mapping[str, Callable[[], str]]


def publish(workspace: Workspace, graph: Graph, states: Mapping[str, State], complain: Callable[[str], None]) -> None:
    """Creates the artifacts of the present flow run; one that cannot be made costs a line."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.settings import PREFECT_API_URL

    if problem := unreachable(PREFECT_API_URL.value() or ""):
        complain(f"no artifacts: the Prefect server does not answer ({problem})")
        return
    root = workspace.directory
    pages: Pages = {
        "graph": lambda: graph_page(graph, states),
        "metrics": lambda: metrics_page(root, graph),
        "curves": lambda: curves_page(root, graph),
        "links": lambda: links(workspace),
    }
    for name, page in pages.items():
        try:
            if text := page():
                create_markdown_artifact(text, key=f"pretrain-{name}")
        except Exception as error:  # whatever it is, the stages are done
            complain(f"no artifact pretrain-{name}: {type(error).__name__}: {error}")


def graph_page(graph: Graph, states: Mapping[str, State]) -> str:
    """The picture, and the same as a table, with the reasons in full."""
    boxes = [box_of(name, states[name]) for name in graph.stages if name in states]
    upstream = {name: graph.upstream[name] & states.keys() for name in states}
    rows = [f"| {box.name} | {box.state} | {box.time} | {_cell(box.message)} |" for box in boxes]
    picture = data_address(graph_picture(boxes, upstream))
    return "\n".join([f"![the graph]({picture})", "", "| stage | state | time | reason |", "|-|-|-|-|", *rows])


def box_of(name: str, state: State) -> Box:
    result = state.result(raise_on_failure=False)
    seconds = result.seconds if isinstance(result, Reproduced) else 0
    return Box(name, str(state.name), f"{seconds:.1f} s" if seconds else "", state.message or "")


def metrics_page(root: Path, graph: Graph) -> str:
    """A table of all metrics; empty where there is none."""
    rows = []
    for stage in graph.stages.values():
        for path in stage.metrics:
            if (root / path).is_file():
                found = dict(numbers(json.loads((root / path).read_text(encoding="utf-8"))))
                rows += [f"| {stage.name} | {name} | {shown(value)} |" for name, value in found.items() if value]
    return "\n".join(["| stage | metric | value |", "|-|-|-:|", *rows, "", "Zeros are left out."]) if rows else ""


def numbers(values: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a metrics file, named by their keys from the outside in: `dropped.max_words`."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from numbers(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(values, (int, float)):
        yield prefix, values


def shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def curves_page(root: Path, graph: Graph) -> str:
    """The pictures of the plots that dvc.yaml describes by x and y."""
    plots = [plot for stage in graph.stages.values() for plot in stage.plots if (root / plot.path).is_file()]
    pictures = []
    for plot in plots:
        if lines := curves(root / plot.path, plot):
            address = data_address(curve_picture(plot.title, plot.x, lines))
            pictures.append(f"![{plot.title}]({address})\n\n{plot.path}")
    return "\n\n".join(pictures)


def curves(path: Path, plot: Plot) -> dict[str, list[tuple[float, float]]]:
    """The columns of a CSV whose name holds that of y, over x; cells that are empty or no finite number are skipped.

    Example: y is `loss`: the lines are loss, loss_smooth and validation_loss.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if plot.y in name and cell and math.isfinite(value := float(cell)):
                    lines.setdefault(name, []).append((float(row[plot.x]), value))
    return lines


def _cell(text: str) -> str:
    """Text that does not end the cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
