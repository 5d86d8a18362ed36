"""Decides which documents go, from the pairs that match.

Documents are numbered by preference (reserved first, then longest, ties by hash of text, then id).
In that order each document is kept unless it matches one that is kept already, so a removal always
names a kept document that it was compared with. Example: A matches B, B matches C, A and C do not
match. Longest first A, B, C: B goes for A, C stays. Longest first B, A, C: both go for B.

A match with a reserved document is a leak: the training document goes in any case. Without
verification (`verify: false`) one training document of each connected component stays, as FineWeb
has it.
"""

from __future__ import annotations

from typing import NamedTuple

from stages.dedup.pairs import ExactJaccard, Match

EXACT, NEAR, LEAKED = "exact", "near", "leaked"


class Removal(NamedTuple):
    """Why a document goes: for which kept document, by which rule, how similar."""

    kept: int
    rule: str
    jaccard: float


class Components:
    """Connected components (union-find); the name of each is its smallest member."""

    def __init__(self, n: int):
        self.parent = list(range(n))

    def find(self, member: int) -> int:
        while self.parent[member] != member:
            self.parent[member] = self.parent[self.parent[member]]
            member = self.parent[member]
        return member

    def join(self, first: int, second: int) -> None:
        low, high = sorted((self.find(first), self.find(second)))
        self.parent[high] = low


def verified_removals(matches: list[Match], n_documents: int, n_reserved: int) -> dict[int, Removal]:
    """Each removed document with its removal, for matches that were verified.

    Every match is (preferred, other), so a document's fate is known before those it could remove.
    """
    preferred: dict[int, list[Match]] = {}
    for match in matches:
        preferred.setdefault(match.second, []).append(match)
    removals: dict[int, Removal] = {}
    for document in range(n_reserved, n_documents):
        kept = [match for match in preferred.get(document, []) if match.first not in removals]
        if kept:
            removals[document] = _removal(kept, n_reserved)
    return removals


def component_removals(
    matches: list[Match], n_documents: int, n_reserved: int, exact: ExactJaccard
) -> dict[int, Removal]:
    """As `verified_removals`, for candidates taken on trust.

    Leaks go first and connect nothing; of every component of the rest the preferred document stays.
    """
    removals: dict[int, Removal] = {}
    for match in matches:
        if match.first < n_reserved and match.second not in removals:
            removals[match.second] = Removal(match.first, LEAKED, match.jaccard)
    components = Components(n_documents)
    rest = [match for match in matches if match.first not in removals and match.second not in removals]
    for match in rest:
        components.join(match.first, match.second)
    for document in sorted({document for match in rest for document in (match.first, match.second)}):
        if (kept := components.find(document)) != document:
            removals[document] = Removal(kept, NEAR, exact(kept, document))
    return removals


def _removal(kept: list[Match], n_reserved: int) -> Removal:
    """By a reserved document if there is one, else by the most similar; ties to the preferred."""
    best = min(kept, key=lambda match: (match.first >= n_reserved, -match.jaccard, match.first))
    return Removal(best.first, LEAKED if best.first < n_reserved else NEAR, best.jaccard)
