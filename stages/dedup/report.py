"""A page to look at: the largest clusters, and in what their documents differ.

Each removed document stands beside the kept one it was compared with, with the similarity that the signatures
estimate and the exact one. Words they share are plain, words of one alone are marked. Of clusters of one size
those with such words come first, of documents too. Long documents are shown from shortly before their first
difference, 200 words of each: "(1,204 equal words)" stands for what is skipped. The page needs no other file,
and is small for any corpus: 20 clusters, 3 comparisons each.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.dedup.compare import Sets, estimated_jaccards, joined_pairs, text_of
from stages.dedup.decide import RULES, Components, Documents, Removals
from stages.dedup.order import ids_of, load_positions
from stages.dedup.sketch import Sketches, read_batches
from stages.wording import counted

CLUSTERS = 20
REMOVALS_PER_CLUSTER = 3
OTHERS_NAMED = 100
BYTES_READ = 1_000_000
WORDS_SHOWN = 200
WORDS_BEFORE = 20
CHARACTERS_OF_WORD = 200
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222; }
td { vertical-align: top; width: 50%; padding: .5rem; border: 1px solid #ddd; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
del { background: #fdd; text-decoration: none; } ins { background: #dfd; text-decoration: none; }
.id { font-family: monospace; color: #555; } .skipped { color: #888; }
"""


class Texts:
    """Ids, beginnings of texts, and what signatures say of pairs, of a few documents by number."""

    def __init__(self, sketches: Sketches, order: Path, sets: Sequence[Sets]):
        self.sketches, self.positions, self.sets = sketches, load_positions(order), sets
        self.found: dict[int, tuple[str, str]] = {}

    def read(self, documents: Documents) -> None:
        """Reads what `found` then has: from the sets that were made, else from the shards."""
        wanted = np.unique(documents)
        texts = {number: self._stored(number) for number in wanted.tolist()}
        missing = np.array([number for number, text in texts.items() if text is None], np.int64)
        for shard, rows, places in self.sketches.by_shard(self.positions[missing].astype(np.int64)):
            ascending = np.argsort(rows, kind="stable")
            numbers = iter(missing[places[ascending]].tolist())
            for batch in read_batches(self.sketches.shards[shard], ["text"], rows[ascending]):
                texts.update((next(numbers), beginning(text)) for text in batch.column("text"))
        for number, id_ in zip(wanted.tolist(), self.ids(wanted), strict=True):
            self.found[number] = (id_, (texts[number] or b"").decode("utf-8", "ignore"))

    def _stored(self, document: int) -> bytes | None:
        return next(filter(None, (text_of(sets, document, BYTES_READ) for sets in self.sets)), None)

    def ids(self, documents: Documents) -> list[str]:
        return ids_of(self.sketches, self.positions[documents].astype(np.int64)).to_pylist()

    def estimated(self, first: int, second: int) -> float:
        pair = joined_pairs(np.array([first]), np.array([second]))
        return float(estimated_jaccards(self.sketches, self.positions, pair)[0])


def write_report(path: Path, texts: Texts, removals: Removals, clusters: Components, clustered: Documents) -> None:
    """Writes the page. `clustered`: the documents of all clusters of two or more, ascending."""
    names, members, sizes = np.unique(clusters.names(clustered), return_inverse=True, return_counts=True)
    gone, places = removals.find(clustered)
    differing = np.zeros(len(names), np.bool_)
    differing[members[gone][removals.jaccards[places[gone]] < 1]] = True
    largest = np.lexsort((names, ~differing, -sizes))[:CLUSTERS]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Clusters of duplicates</title>",
        f"<style>{STYLE}</style><h1>Clusters of duplicates</h1>",
        f"<p>{counted(len(names), 'cluster')} of two or more documents, "
        f"{counted(len(removals.documents), 'document')} removed. "
        f"The largest follow ({len(largest):,}); kept documents left, removed ones right.</p>",
    ]
    removed = [_removed(removals, clustered[members == cluster]) for cluster in largest]
    shown = np.concatenate([*(places[:REMOVALS_PER_CLUSTER] for places in removed), np.empty(0, np.int64)])
    texts.read(np.concatenate((removals.kept[shown], removals.documents[shown])))
    for number, (cluster, places) in enumerate(zip(largest, removed, strict=True), 1):
        parts.append(f"<h2>{number}. {sizes[cluster]:,} documents, {len(places):,} removed</h2>")
        parts += [_comparison(texts, removals, place) for place in places[:REMOVALS_PER_CLUSTER]]
        others = removals.documents[places[REMOVALS_PER_CLUSTER:]]
        if len(others):
            ids = texts.ids(others[:OTHERS_NAMED])
            ids += [f"and {len(others) - OTHERS_NAMED:,} more"] if len(others) > OTHERS_NAMED else []
            named = ", ".join(map(html.escape, ids))
            parts.append(f"<details><summary>others removed</summary><p class=id>{named}</p></details>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def beginning(text: pa.StringScalar) -> bytes:
    """The first million bytes of a text, without making a Python string of all of it."""
    data = text.as_buffer()
    return bytes(data.slice(0, min(len(data), BYTES_READ)))


def _removed(removals: Removals, documents: Documents) -> np.ndarray:
    """Where the removals of these documents stand, those first in which there is a difference to see."""
    gone, places = removals.find(documents)
    places = places[gone]
    return places[np.argsort(removals.jaccards[places] == 1, kind="stable")]


def _comparison(texts: Texts, removals: Removals, place: int) -> str:
    kept, document = int(removals.kept[place]), int(removals.documents[place])
    (kept_id, kept_text), (document_id, text) = texts.found[kept], texts.found[document]
    left, right = marked_differences(kept_text, text)
    return (
        f"<p>rule {RULES[removals.rules[place]]}, Jaccard {removals.jaccards[place]:.3f}, "
        f"estimated {texts.estimated(kept, document):.3f}</p><table>"
        f"<tr><td class=id>{html.escape(kept_id)}<td class=id>{html.escape(document_id)}"
        f"<tr><td>{left}<td>{right}</table>"
    )


def marked_differences(first: str, second: str) -> tuple[str, str]:
    """Both texts as HTML, with `del` around words of the first alone and `ins` around those of the second."""
    a, b = first.split(), second.split()
    equal = next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    skipped = max(equal - WORDS_BEFORE, 0)
    a, b = a[skipped : skipped + WORDS_SHOWN], b[skipped : skipped + WORDS_SHOWN]
    note = f"<span class=skipped>({skipped:,} equal words)</span> " if skipped else ""
    left, right = [], []
    for operation, a_from, a_to, b_from, b_to in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        same = operation == "equal"
        left.append(_marked(a[a_from:a_to], "" if same else "del"))
        right.append(_marked(b[b_from:b_to], "" if same else "ins"))
    return note + " ".join(filter(None, left)), note + " ".join(filter(None, right))


def _marked(words: list[str], tag: str) -> str:
    text = html.escape(" ".join(word[:CHARACTERS_OF_WORD] for word in words))
    return f"<{tag}>{text}</{tag}>" if text and tag else text
