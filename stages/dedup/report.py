"""A page to look at: the largest clusters, and in what their documents differ.

Each removed document stands beside the kept one it was compared with. Words they share are plain,
words of one alone are marked. Long documents are shown from shortly before their first difference,
300 words of each: "(1,204 equal words)" stands for what is skipped. The page needs no other file.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path

from stages.dedup.decide import Removal

CLUSTERS = 20
REMOVALS_PER_CLUSTER = 3
WORDS_SHOWN = 300
WORDS_BEFORE = 20
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222; }
td { vertical-align: top; width: 50%; padding: .5rem; border: 1px solid #ddd; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; }
del { background: #fdd; text-decoration: none; } ins { background: #dfd; text-decoration: none; }
.id { font-family: monospace; color: #555; } .skipped { color: #888; }
"""


def write_report(
    path: Path,
    ids: list[str],
    members: dict[int, list[int]],
    removals: dict[int, Removal],
    text_of: Callable[[int], str],
) -> None:
    """Writes the page. `members`: the documents of each cluster of two or more, by its preferred one."""
    largest = sorted(members.items(), key=lambda item: (-len(item[1]), ids[item[0]]))[:CLUSTERS]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Clusters of duplicates</title>",
        f"<style>{STYLE}</style><h1>Clusters of duplicates</h1>",
        f"<p>{len(members)} clusters of two or more documents, {len(removals)} documents removed. "
        f"The {len(largest)} largest clusters follow; kept documents left, removed ones right.</p>",
    ]
    for number, (_, documents) in enumerate(largest, 1):
        removed = [document for document in documents if document in removals]
        parts.append(f"<h2>{number}. {len(documents)} documents, {len(removed)} removed</h2>")
        shown, others = removed[:REMOVALS_PER_CLUSTER], removed[REMOVALS_PER_CLUSTER:]
        parts += [_comparison(ids, removals[document], document, text_of) for document in shown]
        if others:
            names = ", ".join(html.escape(ids[document]) for document in others)
            parts.append(f"<details><summary>others removed</summary><p class=id>{names}</p></details>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _comparison(ids: list[str], removal: Removal, document: int, text_of: Callable[[int], str]) -> str:
    left, right = marked_differences(text_of(removal.kept), text_of(document))
    return (
        f"<p>rule {removal.rule}, Jaccard {removal.jaccard:.3f}</p><table>"
        f"<tr><td class=id>{html.escape(ids[removal.kept])}<td class=id>{html.escape(ids[document])}"
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
    text = html.escape(" ".join(words))
    return f"<{tag}>{text}</{tag}>" if text and tag else text
