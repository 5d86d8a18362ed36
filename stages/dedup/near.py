"""Finds the documents most similar to a text, for `millrace data near`.

The text gets a signature like any document and is held against those of all documents, 448 bytes each, read
from the sketches that dedup left in scratch (made anew where they are gone). The best by that estimate are
then compared exactly. Example: near(Path("."), "The quick brown fox ...") gives

    [Neighbour(id="stdlib/textwrap.py", shard="00000.parquet", row=17, estimated=0.81, jaccard=0.79), ...]

A scan of all signatures takes about half a second for a million documents, and needs no index.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from stages.dedup.compare import count_common
from stages.dedup.minhash import Signatures, signatures_of
from stages.dedup.params import DedupParams
from stages.dedup.sketch import Sketches, read_batches, shingled_batch
from stages.dedup.stage import run, sketch_shards
from stages.entry import prepare_job
from stages.shingles import distinct

LEAST = 0.1
BLOCK = 1 << 14


class Neighbour(NamedTuple):
    """A document like the text: where it stands in data/clean/documents, and how similar it is."""

    id: str
    shard: str
    row: int
    estimated: float
    jaccard: float


def near(root: Path, text: str, limit: int = 10, least: float = LEAST) -> list[Neighbour]:
    """Up to `limit` documents of the workspace `root`, the most similar first.

    Args:
        least: smallest estimated Jaccard similarity of a document that is looked at.

    Raises:
        BadInput: params.yaml is wrong, or clean has not run.
    """
    job = prepare_job("dedup", run, root)
    dedup: DedupParams = job.sections["dedup"]
    with job.store_in_use():
        sketches = sketch_shards(job, dedup)
        shingled, _ = shingled_batch(pa.array([text]), dedup.ngram)
        query = signatures_of(shingled.shingles, shingled.ends, dedup.n_hashes)[0]
        positions, estimated = most_similar(sketches, query, limit, least)
        found = compared(sketches, positions, estimated, text, dedup.ngram)
    return sorted(found, key=lambda neighbour: (-neighbour.jaccard, -neighbour.estimated, neighbour.id))


def most_similar(sketches: Sketches, query: Signatures, limit: int, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions and estimates of the documents with the highest estimates; ties to the first position."""
    positions, estimated = np.empty(0, np.int64), np.empty(0)
    for shard in range(len(sketches.shards)):
        signatures = sketches.shard_signatures(shard)
        for start in range(0, len(signatures), BLOCK):
            here = (signatures[start : start + BLOCK] == query).mean(axis=1)
            rows = np.flatnonzero(here >= least)
            positions = np.concatenate((positions, sketches.starts[shard] + start + rows))
            estimated = np.concatenate((estimated, here[rows]))
            best = np.argsort(-estimated, kind="stable")[:limit]
            positions, estimated = positions[best], estimated[best]
    return positions, estimated


def compared(
    sketches: Sketches, positions: np.ndarray, estimated: np.ndarray, text: str, ngram: int
) -> list[Neighbour]:
    """The documents at these positions, compared with the text exactly."""
    found = []
    for shard, rows, places in sketches.by_shard(positions):
        ascending = np.argsort(rows)
        wanted = iter(zip(rows[ascending].tolist(), estimated[places[ascending]].tolist(), strict=True))
        for batch in read_batches(sketches.shards[shard], ["id", "text"], rows[ascending]):
            for id_, other in zip(batch.column("id"), batch.column("text"), strict=True):
                row, estimate = next(wanted)
                similarity = exact_jaccard(pa.array([text]), pa.array([other]), ngram)
                found.append(Neighbour(id_.as_py(), sketches.shards[shard].name, row, estimate, similarity))
    return found


def exact_jaccard(text: pa.Array, other: pa.Array, ngram: int) -> float:
    """The Jaccard similarity of two texts, each the only one of its array."""
    both = pa.concat_arrays([text.cast(pa.large_string()), other.cast(pa.large_string())])
    shingled, _ = shingled_batch(both, ngram)
    shingles, ends = distinct(shingled.shingles, shingled.ends)
    common = int(count_common(shingles, ends, np.array([0]), np.array([1]))[0])
    return common / (len(shingles) - common)
