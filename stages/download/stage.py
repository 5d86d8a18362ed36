"""Gathers documents: from installed packages, from the user's files, or from the hub.

`python_docs` and `huggingface` write Parquet shards (id, text, source); `files` writes no copy. Each
writes manifest.json, which says what the corpus is: source, revision, packages with versions, and
every shard with rows, bytes of text and sha256. Its `revision` is the commit of a dataset, otherwise
a sha256 over the shards' hashes, so equal revisions are equal texts.

`max_documents` and `max_bytes` end the corpus before the first document that would pass them. What
is text and what is noise is `clean`'s to decide; here nothing is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.documents import READ_ONCE, ShardWriter
from stages.download import files, hub, hub_files, python_docs
from stages.download.params import DownloadParams
from stages.entry import Job
from stages.errors import BadInput
from stages.files import file_sha256, write_json
from stages.progress import progress, say
from stages.wording import counted

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string())])
MANIFEST_VERSION = 1


def run(job: Job, download: DownloadParams) -> None:
    """Writes documents/*.parquet (or leaves the folder empty) and manifest.json.

    Raises:
        BadInput: a source that cannot be used or read, or a corpus without a document.
    """
    folder = job.staging / "documents"
    folder.mkdir(parents=True)
    packages: dict[str, str] = {}
    if download.source == "files":
        shards = files.manifest_shards(job, download)
    elif download.source == "python_docs":
        found = python_docs.installed_packages(
            python_docs.read_pins(job.root / "constraints.txt"), download.any_version
        )
        packages = python_docs.package_versions(found)
        rows = python_docs.documents(python_docs.find_pages(found), job.execution.n_workers())
        shards = write_shards(folder, within_limits(rows, download))
    else:
        hub.check(download)
        if found_files := hub_files.find(download):
            shards = hub_files.take(job, folder, download, found_files)
        else:
            with progress("download", download.max_documents or None, "documents") as bar:
                shards = write_shards(folder, _counted(within_limits(hub.documents(download), download), bar))
    manifest = describe(download, packages, shards)
    write_json(job.staging / "manifest.json", manifest)
    say(f"download: {counted(manifest['documents'], 'document')}, {manifest['bytes'] / 1e6:.1f} MB of text")


def within_limits(rows: Iterable[dict[str, str]], download: DownloadParams) -> Iterator[dict[str, str]]:
    """The rows before the first one that would pass `max_documents` or `max_bytes`."""
    limits = files.Limits(download.max_documents, download.max_bytes)
    documents = n_bytes = 0
    for row in rows:
        documents, n_bytes = documents + 1, n_bytes + len(row["text"].encode())
        if not limits.allow(documents, n_bytes):
            return
        yield row
        if documents == limits.documents:
            return


def write_shards(folder: Path, rows: Iterable[dict[str, str]]) -> list[dict[str, Any]]:
    """Writes the rows and describes each shard."""
    writer = ShardWriter(folder, SCHEMA, READ_ONCE)
    for row in rows:
        writer.add(row)
    writer.close()
    shards = []
    for path in sorted(folder.glob("*.parquet")):
        texts = pq.read_table(path, columns=["text"])["text"]
        size = sum(len(text.as_buffer()) for text in texts)
        name = f"data/download/documents/{path.name}"
        shards.append({"file": name, "rows": len(texts), "bytes": size, "sha256": file_sha256(path)})
    return shards


def describe(download: DownloadParams, packages: dict[str, str], shards: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest.

    Raises:
        BadInput: the corpus is empty.
    """
    documents = sum(shard["rows"] for shard in shards)
    if not documents:
        limits = f"download.max_documents {download.max_documents} and download.max_bytes {download.max_bytes}"
        within = f" within {limits} (0 = no limit)" if download.max_documents or download.max_bytes else ""
        raise BadInput(f"the source {download.source} gave no document{within}; add some, or see download.source")
    hashes = "\n".join(shard["sha256"] for shard in shards)
    revision = download.revision if download.source == "huggingface" else hashlib.sha256(hashes.encode()).hexdigest()
    manifest: dict[str, Any] = {
        "version": MANIFEST_VERSION,
        "source": download.source,
        "revision": revision,
        "packages": packages,
        "documents": documents,
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
    }
    if download.source == "files":
        manifest["text_column"] = download.text_column
    if download.source == "huggingface":
        manifest["dataset"] = [download.dataset, download.dataset_config, download.dataset_split]
    return manifest


def _counted(rows: Iterable[dict[str, str]], bar: Any) -> Iterator[dict[str, str]]:
    for row in rows:
        bar.update()
        yield row
