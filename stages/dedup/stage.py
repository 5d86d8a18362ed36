"""Removes exact and near-duplicates, and whatever in the training text repeats reserved text.

    documents -> words -> exact hash            equal hash: exact duplicates
                       -> signature -> bands    equal band: candidates (`pairs.py`)
                                    -> exact Jaccard >= 0.75: matches -> who goes (`decide.py`)

Reserved documents (validation, test) are never removed. A training document that matches one is
always removed (rule `leaked`), also with `enabled: false`. Among training documents the longest in
bytes is kept, ties by the hash of the text, then by id; so the keep-list does not depend on the order
of documents, on shards or on workers. Texts are not copied: keep.parquet lists the ids that stay.
Signatures take 448 bytes a document, and the corpus is held in memory, in Arrow's form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from stages.dedup.decide import EXACT, LEAKED, NEAR, Components, Removal, component_removals, verified_removals
from stages.dedup.minhash import MinHasher, Signatures
from stages.dedup.pairs import Finder
from stages.dedup.params import DedupParams
from stages.dedup.report import write_report
from stages.documents import read_table
from stages.entry import Job, write_json
from stages.progress import progress, say
from stages.shingles import Shingles, exact_hash, jaccard, shingles_of, words_of
from stages.workers import batches, ordered_map

BATCH_CHARACTERS = 1 << 20
KEEP = pa.schema([("id", pa.string()), ("cluster", pa.string())])
REMOVALS = pa.schema([("id", pa.string()), ("kept_id", pa.string()), ("rule", pa.string()), ("jaccard", pa.float64())])


class Sketch(NamedTuple):
    """What comparing needs of one document."""

    size: int
    text_hash: bytes
    exact_hash: bytes
    signature: Signatures


class Corpus(NamedTuple):
    """Documents in order of preference, the first `n_reserved` of them reserved. Texts are read on demand."""

    ids: list[str]
    sketches: list[Sketch]
    n_reserved: int
    texts: pa.ChunkedArray
    rows: list[int]

    def text(self, document: int) -> str:
        return self.texts[self.rows[document]].as_py()


def run(job: Job, dedup: DedupParams) -> None:
    """Writes keep.parquet, removals.parquet (both by id), clusters.html and metrics.json."""
    corpus = read_corpus(job.root / "data" / "clean" / "documents", dedup, job.execution.n_workers())
    removals, clusters = find_duplicates(corpus, dedup)
    write_lists(job.staging, corpus, removals, clusters)
    members = {name: sorted(group) for name, group in group_by_cluster(clusters).items() if len(group) > 1}
    write_report(job.staging / "clusters.html", corpus.ids, members, removals, corpus.text)
    rules = Counter(removal.rule for removal in removals.values())
    metrics = {
        "documents_in": len(corpus.ids),
        "documents_out": len(corpus.ids) - len(removals),
        "exact_removed": rules[EXACT],
        "near_removed": rules[NEAR],
        "leaked_removed": rules[LEAKED],
        "clusters": len(members),
        "largest_cluster": max(map(len, members.values()), default=0),
    }
    write_json(job.staging / "metrics.json", metrics)
    say(f"dedup: removed {rules[EXACT]} exact, {rules[NEAR]} near, {rules[LEAKED]} leaked of {len(corpus.ids):,}")


def read_corpus(folder: Path, dedup: DedupParams, n_workers: int) -> Corpus:
    """All clean documents, sketched in worker processes and put in order of preference."""
    table = read_table(folder, ["id", "text", "split"])
    ids, splits, texts = table["id"].to_pylist(), table["split"].to_pylist(), table["text"]
    groups = batches((text.as_py() for text in texts), len, BATCH_CHARACTERS)
    sketches: list[Sketch] = []
    with progress("dedup", len(ids), "documents") as bar:
        for result in ordered_map(partial(sketch_batch, dedup=dedup), groups, n_workers):
            sketches += result
            bar.update(len(result))

    def preference(row: int) -> tuple[bool, int, bytes, str]:
        return (splits[row] == "train", -sketches[row].size, sketches[row].text_hash, ids[row])

    rows = sorted(range(len(ids)), key=preference)
    n_reserved = sum(split != "train" for split in splits)
    return Corpus([ids[row] for row in rows], [sketches[row] for row in rows], n_reserved, texts, rows)


def sketch_batch(texts: list[str], dedup: DedupParams) -> list[Sketch]:
    hasher = MinHasher(dedup.n_hashes)
    return [sketch(text, dedup.ngram, hasher) for text in texts]


def sketch(text: str, ngram: int, hasher: MinHasher) -> Sketch:
    words, data = words_of(text), text.encode()
    signature = hasher.signature(shingles_of(words, ngram))
    return Sketch(len(data), xxhash.xxh3_128_digest(data), exact_hash(words), signature)


def find_duplicates(corpus: Corpus, dedup: DedupParams) -> tuple[dict[int, Removal], Components]:
    """Who is removed and why, and the clusters of all documents."""
    removals, copies = exact_duplicates(corpus.sketches, corpus.n_reserved, dedup.enabled)
    compared = [document for document in range(len(corpus.ids)) if document not in removals]
    exact = ExactJaccards(corpus, compared, dedup.ngram)
    signatures = np.stack([corpus.sketches[document].signature for document in compared])
    matches = Finder(signatures, corpus.n_reserved, exact, dedup).matches()
    if dedup.verify:
        near = verified_removals(matches, len(compared), corpus.n_reserved)
    else:
        near = component_removals(matches, len(compared), corpus.n_reserved, exact)
    for document, removal in near.items():
        removals[compared[document]] = removal._replace(kept=compared[removal.kept])
    for copy, original in copies.items():
        if original in removals:  # a copy goes for the same kept document as its original
            removals[copy] = removals[original]
    pairs = [(compared[match.first], compared[match.second]) for match in matches]
    return removals, clusters_of(len(corpus.ids), pairs, removals)


def exact_duplicates(
    sketches: Sequence[Sketch], n_reserved: int, enabled: bool
) -> tuple[dict[int, Removal], dict[int, int]]:
    """Removals by equal exact hash, and for each removed copy of a training document that document."""
    first: dict[bytes, int] = {}
    removals: dict[int, Removal] = {}
    copies: dict[int, int] = {}
    for document, item in enumerate(sketches):
        original = first.setdefault(item.exact_hash, document)
        if document < n_reserved or original == document:
            continue
        if original < n_reserved:
            removals[document] = Removal(original, LEAKED, 1.0)
        elif enabled:
            removals[document] = Removal(original, EXACT, 1.0)
            copies[document] = original
    return removals, copies


class ExactJaccards:
    """The exact Jaccard similarity of compared documents; shingles are made when first needed."""

    def __init__(self, corpus: Corpus, compared: list[int], ngram: int):
        self.corpus, self.compared, self.ngram = corpus, compared, ngram
        self.shingles: dict[int, Shingles] = {}

    def __call__(self, first: int, second: int) -> float:
        return jaccard(self._shingles(first), self._shingles(second))

    def _shingles(self, number: int) -> Shingles:
        if number not in self.shingles:
            text = self.corpus.text(self.compared[number])
            self.shingles[number] = shingles_of(words_of(text), self.ngram)
        return self.shingles[number]


def clusters_of(n_documents: int, matches: list[tuple[int, int]], removals: dict[int, Removal]) -> Components:
    """Connected components of all matches, copies included."""
    clusters = Components(n_documents)
    for first, second in matches:
        clusters.join(first, second)
    for document, removal in removals.items():
        clusters.join(document, removal.kept)
    return clusters


def group_by_cluster(clusters: Components) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for document in range(len(clusters.parent)):
        groups.setdefault(clusters.find(document), []).append(document)
    return groups


def write_lists(folder: Path, corpus: Corpus, removals: dict[int, Removal], clusters: Components) -> None:
    """keep.parquet, whose cluster is the id of the cluster's preferred document, and removals.parquet."""
    ids = corpus.ids
    keep = [
        {"id": ids[document], "cluster": ids[clusters.find(document)]}
        for document in range(len(ids))
        if document not in removals
    ]
    removed = [
        {"id": ids[document], "kept_id": ids[removal.kept], "rule": removal.rule, "jaccard": removal.jaccard}
        for document, removal in removals.items()
    ]
    for name, rows, schema in (("keep", keep, KEEP), ("removals", removed, REMOVALS)):
        table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["id"]), schema)
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
