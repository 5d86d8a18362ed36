"""pipeline.graph: dvc.yaml as stages and edges."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.graph import Graph, Stage, read_graph
from stages.errors import BadInput
from tests.pipeline.tiny_repository import dvc

ROOT = Path(__file__).parents[2]


def test_edges_follow_from_paths(repository: Path) -> None:
    graph = read_graph(repository)
    assert graph.upstream == {
        "code": set(),
        "left": {"code"},
        "right": {"code"},
        "join": {"left", "right"},  # out/left holds out/left/text
        "last": {"join"},
    }
    order = list(graph.stages)
    assert order[0] == "code" and order[-2:] == ["join", "last"]


def test_a_stage_has_its_files_and_params(repository: Path) -> None:
    stages = read_graph(repository).stages
    assert stages["left"] == Stage(
        "left",
        "one branch",
        "exec python stage.py left out/code inputs",
        deps=("out/code", "inputs"),
        outs=("out/left/text", "out/left/metrics.json"),
        metrics=("out/left/metrics.json",),
        params=("left",),
    )
    assert stages["right"].outs == ("out/right", "out/right.csv")


def test_the_edges_are_those_that_dvc_finds() -> None:
    graph = read_graph(ROOT)
    drawn = {
        tuple(line.split(" -> ")) for line in dvc(ROOT, "dag", "--dot").replace('"', "").splitlines() if "->" in line
    }
    ours = {(upstream, name) for name, above in graph.upstream.items() for upstream in above}
    assert ours == {(one.strip(), other.strip(" ;")) for one, other in drawn}
    assert list(graph.stages) == [
        "code", "download", "clean", "dedup", "tokenizer", "pack", "train", "evaluate", "export"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "only", "chosen"),
    [
        ([], False, ["code", "left", "right", "join", "last"]),
        (["left"], False, ["code", "left"]),
        (["join"], False, ["code", "left", "right", "join"]),
        (["join"], True, ["code", "join"]),
        (["last", "left"], True, ["code", "left", "last"]),
        (["code"], True, ["code"]),
    ],
)
def test_targets_bring_what_they_wait_for_unless_only(
    repository: Path, targets: list[str], only: bool, chosen: list[str]
) -> None:
    assert sorted(read_graph(repository).select(targets, only)) == sorted(chosen)


def test_an_unknown_target_has_a_nearest_name(repository: Path) -> None:
    with pytest.raises(BadInput, match=r"lats: no stage of dvc.yaml; did you mean last\?"):
        read_graph(repository).select(["lats"])
    with pytest.raises(BadInput, match="--only needs the name of a stage"):
        read_graph(repository).select([], only=True)


def test_a_graph_without_code_is_a_graph() -> None:
    graph = Graph([Stage("b", deps=("x/y",)), Stage("a", outs=("x",))])
    assert graph.select(["b"]) == ["a", "b"] and graph.select(["b"], only=True) == ["b"]


def test_a_circle_is_refused() -> None:
    with pytest.raises(BadInput, match="the stages wait for each other: "):
        Graph([Stage("a", deps=("x",), outs=("y",)), Stage("b", deps=("y",), outs=("x",))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages:\n  a:\n    foreach: [1]\n    do: {cmd: x}\n", "dvc.yaml: stages.a.foreach: not known to"),
        (
            "stages:\n  a:\n    cmd: x\n    deps: ['${nothing.here}']\n",
            r"\$\{nothing.here\} is not a key of params.yaml",
        ),
        ("stages: [a\n", "dvc.yaml: not a valid graph"),
        ("steps: {}\n", "dvc.yaml: not a valid graph"),
        ("", "dvc.yaml: not a valid graph"),
    ],
)
def test_what_cannot_be_read_is_refused(repository: Path, text: str, message: str) -> None:
    (repository / "dvc.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        read_graph(repository)


def test_the_stages_that_take_a_slot_are_those_that_lock_a_gpu() -> None:
    locking = {path.parent.name for path in ROOT.glob("stages/*/*.py") if "own_gpus(" in path.read_text("utf-8")}
    assert {name for name, stage in read_graph(ROOT).stages.items() if stage.gpu} == locking == {"train", "evaluate"}
