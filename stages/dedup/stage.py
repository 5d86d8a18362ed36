"""Removes exact and near-duplicates, and whatever in the training text repeats reserved text.

    clean shards -> sketches (sketch.py)         signatures, bands, exact hash of every document
                 -> order (order.py)             documents numbered by preference
                 -> copies, candidates (buckets.py)  equal exact hash; equal band
                 -> matches (compare.py, stars.py)   estimated, then exact Jaccard >= 0.75
                 -> who goes (decide.py) -> keep.parquet, removals.parquet (lists.py), clusters.html (report.py)

Reserved documents (validation, test) are never removed. A training document that matches one is
always removed (rule `leaked`), also with `enabled: false`. Among training documents the longest in
bytes is kept, ties by the hash of the normalised text, then by id; so the keep-list does not depend on the
order of documents, on shards or on workers. Texts are not copied: keep.parquet lists the ids that stay.

Every step is tasks over files in scratch (stages/tasks.py). This process holds 12 bytes a document (numbers, positions,
clusters), and what the documents with duplicates need.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.dedup.buckets import BucketItem, Pairs, bands_together, n_parts_of, write_candidates, write_copies
from stages.dedup.compare import Sets, close_pairs, exact_jaccards, joined_pairs, split_pairs
from stages.dedup.decide import (
    EXACT,
    LEAKED,
    RULES,
    Components,
    Documents,
    Jaccards,
    Removals,
    component_removals,
    verified_removals,
)
from stages.dedup.lists import metadata_of, write_lists
from stages.dedup.order import NONE, load_positions, write_order
from stages.dedup.params import DedupParams
from stages.dedup.report import Texts, write_report
from stages.dedup.sketch import Sketches, SketchItem, write_sketch
from stages.dedup.stars import large_buckets, star_matches
from stages.documents import shard_paths
from stages.entry import Job
from stages.files import content_hash, write_json
from stages.first_compile import tell_first_compile
from stages.progress import say
from stages.shingles import normalisation_name
from stages.store import save_array
from stages.tasks import Task, results


class Corpus(NamedTuple):
    """All documents, sketched and numbered; the first `n_reserved` numbers are reserved documents.

    Attributes:
        order: the folder with their numbers and positions (order.py).
        sets: sets and texts of documents that were compared, for the page of clusters.
    """

    sketches: Sketches
    order: Path
    n_reserved: int
    sets: list[Sets]


def run(job: Job, dedup: DedupParams) -> None:
    """Writes keep.parquet, removals.parquet (both by id), clusters.html and metrics.json."""
    tell_first_compile(job.stage, Path(__file__).parent)
    corpus = read_corpus(job, dedup)
    copies = exact_copies(job, corpus, dedup)
    pairs, jaccards = find_matches(job, corpus, copies, dedup)
    removals = with_copies(decide(job, corpus, pairs, jaccards, dedup), copies)
    first, second = split_pairs(pairs)
    clusters = Components(len(corpus.sketches))
    clusters.join(first, second)
    clusters.join(removals.documents, removals.kept)
    clustered = np.unique(np.concatenate((first, second, removals.documents, removals.kept)))
    metadata = metadata_of({"normalisation": normalisation_name(), "ngram": dedup.ngram})
    write_lists(job.staging, corpus.sketches, corpus.order, removals, clusters, clustered, metadata)
    texts = Texts(corpus.sketches, corpus.order, corpus.sets)
    write_report(job.staging / "clusters.html", texts, removals, clusters, clustered)
    sizes = np.unique(clusters.names(clustered), return_counts=True)[1]
    counts = dict(zip(RULES, np.bincount(removals.rules, minlength=len(RULES)).tolist(), strict=True))
    metrics = {
        "documents_in": len(corpus.sketches),
        "documents_out": len(corpus.sketches) - len(removals.documents),
        **count_bytes(corpus, removals),
        **{f"{rule}_removed": count for rule, count in counts.items()},
        "clusters": len(sizes),
        "largest_cluster": int(sizes.max(initial=0)),
    }
    write_json(job.staging / "metrics.json", metrics)
    removed = ", ".join(f"{count} {rule}" for rule, count in counts.items())
    say(f"dedup: removed {removed} of {len(corpus.sketches):,}")


def count_bytes(corpus: Corpus, removals: Removals) -> dict[str, int]:
    """UTF-8 bytes of all documents, and of those that stay."""
    positions = load_positions(corpus.order)[removals.documents].astype(np.int64)
    sizes = [array.astype(np.int64) for array in corpus.sketches.arrays("sizes")]
    gone = sum(int(sizes[shard][rows].sum()) for shard, rows, _ in corpus.sketches.by_shard(positions))
    found = sum(int(array.sum()) for array in sizes)
    return {"bytes_in": found, "bytes_out": found - gone}


def read_corpus(job: Job, dedup: DedupParams) -> Corpus:
    """All clean documents, sketched, and put in order of preference."""
    sketches = sketch_shards(job, dedup)
    task = Task(job.key("order", [folder.name for folder in sketches.folders]), sketches)
    order = next(results(job, "order", write_order, [task], "orders"))
    n_reserved = sum(int(reserved.sum()) for reserved in sketches.arrays("reserved"))
    return Corpus(sketches, order, n_reserved, [])


def sketch_shards(job: Job, dedup: DedupParams) -> Sketches:
    """The sketches of the clean shards, made where they are missing."""
    shards = shard_paths(job.root / "data" / "clean" / "documents")
    items = [SketchItem.of(path, dedup) for path in shards]
    named = (normalisation_name(), dedup.ngram, dedup.bands, dedup.rows)
    tasks = [Task(job.key("sketch", content_hash(item.path), *named), item) for item in items]
    return Sketches(shards, list(results(job, "sketch", write_sketch, tasks)), dedup.n_hashes)


def exact_copies(job: Job, corpus: Corpus, dedup: DedupParams) -> Removals:
    """The training documents with the exact hash of a document that is preferred, and their removals."""
    folders = bucket_tasks(
        job, "copies", corpus, corpus.order / "numbers.npy", range(dedup.bands, dedup.bands + 1), dedup
    )
    found = np.concatenate([np.load(folder / "copies.npy") for folder in folders]).astype(np.int64)
    copies, originals = found[found[:, 0] >= corpus.n_reserved].T
    leaked = originals < corpus.n_reserved
    chosen = leaked | dedup.enabled
    rules = np.where(leaked, LEAKED, EXACT)[chosen]
    return Removals.of(copies[chosen], originals[chosen], rules, np.ones(len(rules)))


def find_matches(job: Job, corpus: Corpus, copies: Removals, dedup: DedupParams) -> tuple[Pairs, Jaccards]:
    """The pairs of duplicates among all documents but removed copies, ascending, and how similar they are.

    Without verification the similarities are all 0.
    """
    task = Task(job.key("compared", corpus.order.name, dedup.enabled), (corpus.order, copies.documents))
    compared = next(results(job, "compared", write_compared, [task], "lists")) / "numbers.npy"
    folders = bucket_tasks(job, "candidates", corpus, compared, range(dedup.bands), dedup)
    if not dedup.verify:
        parts = [np.load(folder / "pairs.npy") for folder in folders]
        pairs = np.unique(np.concatenate(parts))
        return pairs, np.zeros(len(pairs))

    def compare(pairs: Pairs) -> Jaccards:
        return exact_jaccards(job, corpus.sketches, corpus.order, pairs, dedup, corpus.sets)

    close = [np.load(path) for path in close_pairs(job, corpus.sketches, corpus.order, folders, dedup.precheck)]
    pairs = np.concatenate(close)
    jaccards = compare(pairs)
    near = jaccards >= dedup.threshold
    limits = (dedup.enabled, dedup.precheck, dedup.threshold)
    buckets = list(large_buckets(folders, corpus.n_reserved))
    more, more_jaccards = star_matches(job, corpus.sketches, corpus.order, buckets, compare, limits)
    pairs, at = np.unique(np.concatenate((pairs[near], more)), return_index=True)
    return pairs, np.concatenate((jaccards[near], more_jaccards))[at]


def bucket_tasks(job: Job, step: str, corpus: Corpus, numbers: Path, bands: range, dedup: DedupParams) -> list[Path]:
    """The folders of the reduces over these bands."""
    n_parts = n_parts_of(len(corpus.sketches))
    key = (numbers.parent.name, [folder.name for folder in corpus.sketches.folders], dedup.enabled, dedup.verify)
    tasks = []
    for group in bands_together(len(corpus.sketches), bands):
        for part in range(n_parts):
            item = BucketItem(
                corpus.sketches, group, part, n_parts, numbers, corpus.n_reserved, dedup.enabled, dedup.verify
            )
            tasks.append(Task(job.key(step, *key, list(group), part, n_parts), item))
    return list(results(job, step, write_copies if step == "copies" else write_candidates, tasks, "parts"))


def write_compared(item: tuple[Path, Documents], folder: Path) -> None:
    """The numbers by position again, `NONE` for the copies that are removed already."""
    order, removed = item
    numbers = np.load(order / "numbers.npy")
    gone = np.zeros(len(numbers), np.bool_)
    gone[removed] = True
    numbers[gone[numbers]] = NONE
    save_array(folder / "numbers.npy", numbers)


def decide(job: Job, corpus: Corpus, pairs: Pairs, jaccards: Jaccards, dedup: DedupParams) -> Removals:
    """Who goes as a near-duplicate, and for whom."""
    first, second = split_pairs(pairs)
    if dedup.verify:
        return verified_removals(first, second, jaccards, corpus.n_reserved)
    removals = component_removals(first, second, len(corpus.sketches), corpus.n_reserved)
    named = joined_pairs(removals.kept, removals.documents)
    order = np.argsort(named, kind="stable")
    removals.jaccards[order] = exact_jaccards(job, corpus.sketches, corpus.order, named[order], dedup, corpus.sets)
    return removals


def with_copies(near: Removals, copies: Removals) -> Removals:
    """All removals; a copy goes for the same kept document as its original."""
    gone, places = near.find(copies.kept)
    places = places[gone]
    kept, rules, jaccards = copies.kept.copy(), copies.rules.copy(), copies.jaccards.copy()
    kept[gone], rules[gone], jaccards[gone] = near.kept[places], near.rules[places], near.jaccards[places]
    return Removals.of(
        np.concatenate((near.documents, copies.documents)),
        np.concatenate((near.kept, kept)),
        np.concatenate((near.rules, rules)),
        np.concatenate((near.jaccards, jaccards)),
    )
