"""clean and dedup as real processes: killed by kill -9 at any moment, the same command ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.stages.dedup_corpus import changed, prose

REPOSITORY = Path(__file__).parents[2]
KILLS = 5
STAGE = "from stages import entry; from stages.{stage}.stage import run; entry.main(run)"
SMALL_PIECES = "from stages import pieces; pieces.ends_group = lambda name, size, mean: True; "
SMALL_PARTS = (
    "from stages.dedup import buckets, compare, lists; buckets.PART_ENTRIES = 300; compare.RANGE_PAIRS = 2048; "
    "compare.SAMPLE = 64; compare.CHUNK_PAIRS = 100; lists.PART_ROWS = 50; "
)
TELL_MEMORY = "import atexit; atexit.register(lambda: print(open('/proc/self/status').read())); "
PROGRAMS = {
    "download": TELL_MEMORY + STAGE.format(stage="download"),
    "clean": SMALL_PIECES + STAGE.format(stage="clean"),
    "dedup": SMALL_PARTS + STAGE.format(stage="dedup"),
}


def start(stage: str, root: Path, **options: int) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MILLRACE_EXECUTION__WORKERS": "2"}
    return subprocess.Popen([sys.executable, "-c", PROGRAMS[stage]], cwd=root, env=environment, **options)


def finish(stage: str, root: Path) -> float:
    """Runs a stage to its end; how long that took."""
    started = time.monotonic()
    assert start(stage, root).wait() == 0
    return time.monotonic() - started


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 files of documents, read by the stage download."""
    root = tmp_path_factory.mktemp("workspace")
    params = YAML().load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    params["download"]["source"] = "files"
    params["clean"]["recipe"] = "gopher"
    params["clean"]["min_stop_words"] = None
    params["split"] |= {"validation": 0.1, "test": 0.1}
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    for name in ("dvc.yaml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, root)
    for folder in ("inputs", "data/code", "data/download/documents"):
        (root / folder).mkdir(parents=True)
    for stage in PROGRAMS:
        (root / f"data/code/{stage}.json").write_text("{}")
    for number in range(40):
        texts = [changed(prose(number * 10 + row // 2, 150 + row), row % 2, row) for row in range(20)]
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        (root / f"inputs/{number:02}.jsonl").write_text("".join(lines))
    finish("download", root)
    (root / "data/download/documents").mkdir(exist_ok=True)
    return root


@pytest.mark.parametrize("stage", ["clean", "dedup"])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(
    workspace: Path, tmp_path: Path, stage: str
) -> None:
    if stage == "dedup" and not (workspace / "data/clean").exists():
        finish("clean", workspace)
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "data" / stage, ignore_errors=True)
    shutil.rmtree(tmp_path / ".dvc", ignore_errors=True)
    whole = finish(stage, workspace)
    expected = written(workspace / "data" / stage)
    moments = random.Random(stage)
    for _ in range(KILLS):
        process = start(stage, tmp_path)
        time.sleep(moments.uniform(0.4, 1.0) * whole)
        process.kill()
        process.wait()
        manifest = tmp_path / "data" / stage / "metrics.json"
        assert not manifest.exists() or written(tmp_path / "data" / stage) == expected, "metrics stand beside the rest"
    finish(stage, tmp_path)
    assert written(tmp_path / "data" / stage) == expected
    assert len(expected) >= 4 and not list(tmp_path.glob("data/*.partial"))


def test_an_endless_line_is_refused_in_one_line_before_it_fills_the_memory(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("data", "inputs", ".dvc"))
    (tmp_path / "inputs").mkdir()
    with (tmp_path / "inputs/long.jsonl").open("w") as file:
        file.write('{"text": "short"}\n{"text": "')
        for _ in range(200):
            file.write("word " * 200_000)
        file.write('"}\n')
    (tmp_path / "data/code").mkdir(parents=True)
    (tmp_path / "data/code/download.json").write_text("{}")
    process = start("download", tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    status, told = (output.decode() for output in process.communicate())
    assert process.returncode == 2
    complaint = [line for line in told.splitlines() if line.startswith("millrace: ")]
    assert len(complaint) == 1 and "long.jsonl: row 2: a document of more than 32 MB; cut it" in complaint[0]
    peak = int(status.partition("VmHWM:")[2].split()[0])
    assert peak < 400_000, "KB: of the line no more than the limit was held"
    assert not (tmp_path / "data/download/manifest.json").exists()
