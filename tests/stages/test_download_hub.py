"""The hub source: the pinned files of a split, each once, side by side, the same rows as `datasets` gives."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.download import hub_fetch, text_shards
from stages.download.files import Limits
from stages.download.hub_fetch import HubFile
from stages.download.hub_files import Taken
from stages.download.params import DownloadParams
from stages.download.stage import run
from stages.entry import Job
from stages.errors import BadInput
from stages.execution import Execution
from tests.stages.hub_server import COMMIT, NAME, HubServer, serving

ROOT = Path(__file__).parents[2]


def parquet(texts: list[str | None], column: str = "text") -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"url": ["x"] * len(texts), column: texts}), sink)
    return sink.getvalue()


def rows_of(file: int) -> list[str]:
    return [f"file {file} row {row}: héllo 日本" for row in range(100)]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """Five Parquet files of a hundred rows each, and one of another split."""
    with serving(monkeypatch, str(tmp_path / "cache")) as server:
        server.files = {f"data/train-{file:05d}-of-00005.parquet": parquet(rows_of(file)) for file in range(5)}
        server.files["data/test-00000-of-00001.parquet"] = parquet(["other"])
        server.git.add("data/train-00001-of-00005.parquet")
        yield server


def download(root: Path, workers: int = 1, **values: object) -> dict:
    params = DownloadParams(
        **{"source": "huggingface", "dataset": NAME, "dataset_config": "", "revision": COMMIT, **values}  # type: ignore[arg-type]
    )
    job = Job("download", root, Execution(workers=workers))
    job.prepare()
    run(job, download=params)
    job.publish()
    return json.loads((root / "data/download/manifest.json").read_text())


def table(root: Path) -> pa.Table:
    return pq.read_table(root / "data/download/documents")


def asked_files(hub: HubServer) -> list[str]:
    return sorted({asked.path.split("/")[-1][:11] for asked in hub.downloads})


def test_the_rows_are_those_that_datasets_streams(hub: HubServer, tmp_path: Path) -> None:
    manifest = download(tmp_path)
    found = table(tmp_path)
    streamed = datasets.load_dataset(NAME, split="train", revision=COMMIT, streaming=True)
    assert found["text"].to_pylist() == [row["text"] for row in streamed]
    assert found["id"][100].as_py() == "owner/name/data/train-00001-of-00005.parquet:1"
    assert set(found["source"].to_pylist()) == {NAME}
    assert manifest["documents"] == 500 and manifest["revision"] == COMMIT
    assert manifest["bytes"] == sum(len(text.encode()) for text in found["text"].to_pylist())
    assert [shard["rows"] for shard in manifest["shards"]] == [100] * 5
    for shard in manifest["shards"]:
        assert pq.read_metadata(tmp_path / shard["file"]).num_rows == shard["rows"]


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "data/download").rglob("*") if path.is_file()}


def test_bytes_depend_on_no_number_of_workers(hub: HubServer, tmp_path: Path) -> None:
    for workers, name in ((1, "one"), (5, "five")):
        (tmp_path / name).mkdir()
        download(tmp_path / name, workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "five")


def test_a_second_run_asks_for_no_file(hub: HubServer, tmp_path: Path) -> None:
    download(tmp_path)
    hub.downloads.clear()
    download(tmp_path)
    assert not hub.downloads


def test_large_files_become_shards_in_row_groups(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_shards, "SHARD_BYTES", 2000)
    monkeypatch.setattr(text_shards, "GROUP_BYTES", 500)
    monkeypatch.setattr(hub_fetch, "BATCH_ROWS", 7)
    manifest = download(tmp_path)
    assert [row for file in range(5) for row in rows_of(file)] == table(tmp_path)["text"].to_pylist()
    assert all(2000 <= shard["bytes"] < 2600 or shard["rows"] < 80 for shard in manifest["shards"])
    assert len(manifest["shards"]) == 10
    assert pq.read_metadata(tmp_path / manifest["shards"][0]["file"]).num_row_groups > 2


@pytest.mark.parametrize(
    ("limits", "documents", "files"),
    [
        ({"max_documents": 30}, 30, 1),
        ({"max_documents": 100}, 100, 1),
        ({"max_documents": 101}, 101, 2),
        ({"max_documents": 350}, 350, 4),
        ({"max_documents": 9999}, 500, 5),
        ({"max_bytes": 3300}, 118, 2),
        ({"max_bytes": 3300, "max_documents": 5}, 5, 1),
    ],
)
def test_limits_take_no_file_more_than_needed(
    hub: HubServer, tmp_path: Path, limits: dict[str, int], documents: int, files: int
) -> None:
    manifest = download(tmp_path, workers=4, **limits)
    everything = [row for file in range(5) for row in rows_of(file)]
    assert table(tmp_path)["text"].to_pylist() == everything[:documents]
    assert manifest["documents"] == documents and len(asked_files(hub)) == files
    if limit := limits.get("max_bytes", 0):
        assert manifest["bytes"] <= limit
        assert documents == 5 or manifest["bytes"] + len(everything[documents].encode()) > limit


def test_a_limit_that_is_loosened_takes_only_what_is_new(hub: HubServer, tmp_path: Path) -> None:
    download(tmp_path, max_documents=150)
    hub.downloads.clear()
    download(tmp_path)
    assert asked_files(hub) == ["train-00002", "train-00003", "train-00004"]


def test_files_that_surely_are_needed_come_side_by_side() -> None:
    files = [HubFile(str(number), 10, "") for number in range(20)]
    taken = Taken()
    assert taken.needed(files, Limits(1000, 0)) == 1, "how dense they are is not known"
    taken.add(files[0], [{"rows": 100, "bytes": 5000}])
    assert taken.needed(files[1:], Limits(1000, 0)) == 9
    assert taken.needed(files[1:], Limits(1000, 12_000)) == 2
    assert taken.needed(files[1:], Limits(0, 0)) == 19


def test_a_connection_that_ends_early_is_taken_up_where_it_was(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "data/train-00003-of-00005.parquet"
    hub.broken[path] = 1000
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 100)
    with pytest.raises(BadInput, match=rf"{path} of dataset owner/name at 0123456789ab: .*goes on with what"):
        download(tmp_path)
    assert any(asked.bytes.startswith("bytes=1000") for asked in hub.downloads), "tried again, for the rest of it"
    assert not (tmp_path / "data/download").exists()
    hub.broken.clear()
    hub.downloads.clear()
    download(tmp_path)
    assert [row for file in range(5) for row in rows_of(file)] == table(tmp_path)["text"].to_pylist()
    assert {asked.path for asked in hub.downloads} <= {path, "data/train-00004-of-00005.parquet"}


def test_a_file_that_is_not_the_announced_one_is_refused(hub: HubServer, tmp_path: Path) -> None:
    path = "data/train-00002-of-00005.parquet"
    hub.lies[path] = parquet(["something else"])
    with pytest.raises(BadInput, match=rf"owner/name/{path}: what came .* is not the file that the hub announced"):
        download(tmp_path)


def test_lines_of_json_compressed_or_not(hub: HubServer, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"ligne é {row}", "url": row}) + "\n\n" for row in range(3)).encode()
    hub.files = {"train/a.jsonl": lines, "train/b.json.gz": gzip.compress(lines), "train/c.json": b'[{"text": "x"}]'}
    hub.files["train/d.jsonl"] = b'{"text": null}\n'
    download(tmp_path)
    assert table(tmp_path)["text"].to_pylist() == [f"ligne é {row}" for row in range(3)] * 2 + ["x", ""]
    assert table(tmp_path)["id"].to_pylist()[1] == "owner/name/train/a.jsonl:3"


def test_files_of_another_kind_are_read_as_one_stream(hub: HubServer, tmp_path: Path) -> None:
    hub.files = {"train.txt": b"one line\nanother line\n"}
    download(tmp_path)
    assert table(tmp_path)["text"].to_pylist() == ["one line", "another line"]
    assert table(tmp_path)["id"].to_pylist()[0] == "owner/name/train:1"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset_split": "tset"}, "no split 'tset'; it has"),
        ({"text_column": "content"}, "data/train-00000-of-00005.parquet: no column 'content'; it has url, text"),
        ({"dataset": "owner/other"}, "dataset owner/other at 0123456789ab: .*; check the names, and the network"),
        ({"dataset_config": "fr"}, "dataset owner/name at 0123456789ab: .*fr"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(
    hub: HubServer, tmp_path: Path, values: dict[str, str], message: str
) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        download(tmp_path, **values)
    assert "\n" not in str(caught.value)


def test_killed_it_goes_on_with_the_missing_files(hub: HubServer, tmp_path: Path) -> None:
    path = "data/train-00003-of-00005.parquet"
    program = (
        "import sys; from pathlib import Path; from tests.stages import test_download_hub as t; "
        "t.download(Path(sys.argv[1]), workers=1)"
    )
    hub.broken[path] = 0
    stage = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, start_new_session=True)
    finished = tmp_path / ".dvc/tmp/millrace/download/tasks/hub"
    while stage.poll() is None and len([name for name in finished.glob("*") if not name.suffix]) < 4:
        time.sleep(0.02)
    os.killpg(stage.pid, signal.SIGKILL)
    assert stage.wait() == -signal.SIGKILL
    hub.broken.clear()
    hub.downloads.clear()
    download(tmp_path)
    assert [row for file in range(5) for row in rows_of(file)] == table(tmp_path)["text"].to_pylist()
    assert asked_files(hub) == ["train-00003"]
