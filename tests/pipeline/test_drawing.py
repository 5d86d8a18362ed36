"""pipeline.scheduling.drawing and pipeline.scheduling.artifacts: what the pages of a flow run show."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

from prefect.states import Completed, Failed

from pipeline.graph import Graph, Plot, Stage
from pipeline.reproduce import Reproduced
from pipeline.scheduling.artifacts import curves, curves_page, graph_page, metrics_page, numbers
from pipeline.scheduling.drawing import Box, curve_picture, direct, graph_picture, ranks, short, thinned

CHAIN = {"code": set(), "clean": {"code"}, "apart": {"code"}, "train": {"code", "clean"}}
PLOT = Plot("loss.csv", "tokens", "loss", "loss <b>")


def texts(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_a_stage_stands_below_what_it_waits_for_and_implied_arrows_are_left_out() -> None:
    assert ranks(list(CHAIN), CHAIN) == {"code": 0, "clean": 1, "apart": 1, "train": 2}
    assert direct("train", CHAIN) == {"clean"} and direct("clean", CHAIN) == {"code"}


def test_the_picture_of_the_graph_is_whole_whatever_the_messages_hold() -> None:
    long = "because <param> & more " * 20
    svg = graph_picture([Box("code", "Completed", "1.2 s", long), Box("clean", "NotRun")], CHAIN)
    assert texts(svg)[0] == "codeCompleted, 1.2 s" and texts(svg)[2] == "cleanNotRun"
    assert texts(svg)[1].startswith("because <param> & more") and texts(svg)[1].endswith("…")


def test_a_curve_has_its_names_and_at_most_so_many_points() -> None:
    line = [(float(x), 8.0 - x / 1000) for x in range(1000)]
    svg = curve_picture("loss <b>", "tokens", {"loss": line, "validation_loss": [(0.0, 8.0), (999.0, 7.0)]})
    assert {"loss <b>", "tokens", "loss", "validation_loss"} <= set(texts(svg))
    assert thinned(line, 400)[0] == (1.0, (8.0 + 7.999 + 7.998) / 3) and len(thinned(line, 400)) == 334
    assert [short(value) for value in (0.0, 512, 1_030_000, 2.5e9)] == ["0", "512", "1.03M", "2.5G"]
    assert curve_picture("one point", "x", {"y": [(1.0, 1.0)]})


def test_pages_come_from_the_files_of_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "loss.csv").write_text("tokens,loss,validation_loss,lr\n0,,8.5,1\n10,8.0,,1\n20,nan,7.5,1\n")
    (tmp_path / "metrics.json").write_text(
        json.dumps({"loss": 7.5, "dropped": {"short": 1200, "long": 0}, "name": "x"})
    )
    graph = Graph([Stage("train", metrics=("metrics.json", "missing.json"), plots=(PLOT,))])
    lines = {"validation_loss": [(0.0, 8.5), (20.0, 7.5)], "loss": [(10.0, 8.0)]}
    assert curves(tmp_path / "loss.csv", PLOT) == lines
    assert curves_page(tmp_path, graph).startswith("![loss <b>](data:image/svg+xml;base64,")
    rows = metrics_page(tmp_path, graph).split("\n")[2:4]
    assert rows == ["| train | loss | 7.5 |", "| train | dropped.short | 1,200 |"]
    assert curves_page(tmp_path, Graph([Stage("clean")])) == metrics_page(tmp_path, Graph([Stage("clean")])) == ""
    assert dict(numbers({"a": {"b": 1, "c": [2]}})) == {"a.b": 1}


def test_the_graph_page_says_the_reasons_in_full() -> None:
    graph = Graph([Stage("code", outs=("out",)), Stage("clean", deps=("out",)), Stage("not chosen")])
    states = {
        "clean": Failed(name="Failed", message="exited with 2 | pipe", data=Reproduced("Failed", 2, 3.0)),
        "code": Completed(name="Unchanged", message="as it was", data=Reproduced("Unchanged")),
    }
    page = graph_page(graph, states).split("\n")
    assert page[4:] == ["| code | Unchanged |  | as it was |", "| clean | Failed | 3.0 s | exited with 2 \\| pipe |"]
