"""Takes the files of a dataset on the hub, several at a time, each once.

A dataset at one commit is a list of files, with a size and a hash each. `find` asks the hub for those
of the split, in the order in which `datasets` reads them. Each is one task (stages/tasks.py): download,
compare with the hash, keep id, text and source as Parquet shards, drop the rest. Finished files stay in
scratch, so after a kill the same command takes the missing ones alone. A row's id names its file:
`owner/name/data/train-00000.parquet:17`.

With limits, only files are taken that are needed: the first alone, then as many at once as the densest
file so far says must be read. Files that hold other than Parquet, Arrow or JSON lines are left to the
iterator of hub.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.download.files import Limits
from stages.download.hub import unusable
from stages.download.hub_fetch import HubFile, fetch_file
from stages.download.params import DownloadParams
from stages.download.text_shards import TextShards
from stages.entry import Job
from stages.progress import progress, say
from stages.sources import SourceFile
from stages.store import link_file
from stages.tasks import Task, results

FILES_AT_ONCE = 4  # as a rule what is downloaded, not this machine, is what one waits for
READABLE = ("parquet", "arrow", "jsonl", "json")
PINNED = re.compile(r"\Ahf://datasets/(?P<name>[^@]+)@(?P<commit>[0-9a-f]{40})/(?P<path>.+)\Z")
INFOS_AT_ONCE = 500
BATCH_ROWS = 1000


def find(download: DownloadParams) -> list[HubFile] | None:
    """The files of the split in their order, or None where they cannot be read one by one.

    Raises:
        BadInput: the hub does not answer, or there is no such dataset, configuration or split.
    """
    import datasets
    from huggingface_hub import HfApi

    config = download.dataset_config or None
    with unusable(download):
        builder = datasets.load_dataset_builder(download.dataset, config, revision=download.revision)
        splits = {str(split): list(urls) for split, urls in (builder.config.data_files or {}).items()}
        if download.dataset_split not in splits and "[" not in download.dataset_split:
            raise ValueError(f"no split {download.dataset_split!r}; it has {', '.join(splits)}")
        matches = [PINNED.match(str(url)) for url in splits.get(download.dataset_split, [])]
        paths = [match["path"] for match in matches if match]
        kinds = {SourceFile(Path(path), path).kind for path in paths}
        plain = kinds <= set(READABLE) and getattr(builder.config, "field", None) is None
        if not paths or len(paths) < len(matches) or not plain:
            say("download: the files of this split cannot be taken one by one; reading them as one stream")
            return None
        infos: dict[str, Any] = {}
        for first in range(0, len(paths), INFOS_AT_ONCE):
            some = paths[first : first + INFOS_AT_ONCE]
            found = HfApi().get_paths_info(download.dataset, some, revision=download.revision, repo_type="dataset")
            infos.update({info.path: info for info in found})
    return [HubFile(path, infos[path].size, _digest(infos[path])) for path in paths]


def _digest(info: Any) -> str:
    return info.lfs.sha256 if info.lfs else info.blob_id


def take(job: Job, folder: Path, download: DownloadParams, files: Sequence[HubFile]) -> list[dict[str, Any]]:
    """Fills `folder` with shards of the files' rows, up to the limits, and describes each shard.

    Raises:
        BadInput: a file cannot be had, or read.
    """
    limits = Limits(download.max_documents, download.max_bytes)
    shards: list[dict[str, Any]] = []
    documents = n_bytes = 0
    for made in _fetched(job, download, files, limits):
        for shard in json.loads((made / "shards.json").read_text()):
            target = folder / f"{len(shards):05d}.parquet"
            source = made / shard["file"]
            if not limits.allow(documents + shard["rows"], n_bytes + shard["bytes"]):
                return shards + _cut(source, folder, len(shards), limits, documents, n_bytes)
            link_file(source, target)
            shards.append({**shard, "file": f"data/download/documents/{target.name}"})
            documents, n_bytes = documents + shard["rows"], n_bytes + shard["bytes"]
    return shards


def _fetched(job: Job, download: DownloadParams, files: Sequence[HubFile], limits: Limits) -> Iterator[Path]:
    """The folder of each file, in their order, with no file that the limits leave no room for."""
    described = [download.dataset, download.dataset_config, download.dataset_split, download.text_column]
    tasks = [Task(job.key("hub", described, file), file) for file in files]
    workers = max(job.execution.n_workers(), FILES_AT_ONCE)
    execution = job.execution.model_copy(update={"workers": workers})
    wide = Job(job.stage, job.root, execution, job.inputs, job.sections)
    fetch = partial(fetch_file, download=download)
    taken = Taken()
    first = 0
    total = None if limits.documents or limits.bytes else sum(file.size for file in files)
    with progress("download: from the hub", total, "B", scale=True) as bar:
        while first < len(files) and not taken.fills(limits):
            last = first + taken.needed(files[first:], limits)
            for file, folder in zip(
                files[first:last], results(wide, "hub", fetch, tasks[first:last], "files"), strict=True
            ):
                taken.add(file, json.loads((folder / "shards.json").read_text()))
                yield folder
                bar.update(file.size)
            first = last


class Taken:
    """What the files so far held, and how dense the densest of them was."""

    def __init__(self) -> None:
        self.counts = {"rows": 0, "bytes": 0}
        self.density = {"rows": 0.0, "bytes": 0.0}

    def add(self, file: HubFile, shards: list[dict[str, Any]]) -> None:
        for name in self.counts:
            own = sum(shard[name] for shard in shards)
            self.counts[name] += own
            self.density[name] = max(self.density[name], own / max(file.size, 1))

    def fills(self, limits: Limits) -> bool:
        """Whether nothing fits any more."""
        return self.counts["rows"] >= (limits.documents or 1 << 62) or self.counts["bytes"] >= (limits.bytes or 1 << 62)

    def needed(self, files: Sequence[HubFile], limits: Limits) -> int:
        """How many of the next files are read for certain, if none is denser than the densest so far."""
        wanted = {"rows": limits.documents, "bytes": limits.bytes}
        counts = [len(files)]
        for name, limit in wanted.items():
            if limit:
                left, count = float(limit - self.counts[name]), 0
                while count < len(files) and (count == 0 or left > 0):
                    left -= self.density[name] * files[count].size if self.density[name] else left
                    count += 1
                counts.append(count)
        return min(counts)


def _cut(source: Path, folder: Path, number: int, limits: Limits, documents: int, n_bytes: int) -> list[dict[str, Any]]:
    """The first rows of a shard, those that the limits allow."""
    shards = TextShards(folder, number)
    for batch in pq.ParquetFile(source).iter_batches(batch_size=BATCH_ROWS):
        rows = 0
        for size in (len(text.as_buffer()) for text in batch["text"]):
            if not limits.allow(documents + 1, n_bytes + size):
                break
            documents, n_bytes, rows = documents + 1, n_bytes + size, rows + 1
        if rows:
            shards.add(batch.slice(0, rows))
        if rows < batch.num_rows:
            break
    shards.finish()
    return [{**shard, "file": f"data/download/documents/{shard['file']}"} for shard in shards.described]
