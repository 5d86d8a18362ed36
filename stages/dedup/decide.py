"""Decides which documents go, from the pairs that match.

Documents are numbered by preference (order.py). In that order each document is kept unless it matches one
that is kept already, so a removal always names a kept document that it was compared with. Example: A matches
B, B matches C, A and C do not match. Longest first A, B, C: B goes for A, C stays. Longest first B, A, C:
both go for B.

A match with a reserved document is a leak: the training document goes in any case. Without
verification (`verify: false`) one training document of each connected component stays, as FineWeb
has it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.compiled import kernel

EXACT, NEAR, LEAKED = range(3)
RULES = ("exact", "near", "leaked")
Documents = npt.NDArray[np.int64]
Jaccards = npt.NDArray[np.float64]


class Removals(NamedTuple):
    """Why documents go, in ascending order of their numbers: for which kept document, by which rule, how similar."""

    documents: Documents
    kept: Documents
    rules: npt.NDArray[np.uint8]
    jaccards: Jaccards

    @classmethod
    def of(cls, documents: Documents, kept: Documents, rules: np.ndarray | int, jaccards: Jaccards) -> Removals:
        """In any order; one rule may stand for all."""
        order = np.argsort(documents, kind="stable")
        all_rules = np.broadcast_to(np.asarray(rules, np.uint8), len(documents))
        return cls(documents[order], kept[order], all_rules[order], jaccards[order])

    def find(self, documents: Documents) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Which of some documents are removed, and where in these arrays those stand."""
        places = np.minimum(np.searchsorted(self.documents, documents), max(len(self.documents) - 1, 0))
        if not len(self.documents):
            return np.zeros(len(documents), np.bool_), places
        return self.documents[places] == documents, places


class Components:
    """Connected components (union-find), 4 bytes a document; the name of each is its smallest member."""

    def __init__(self, n_documents: int):
        self.parent = np.arange(n_documents, dtype=np.uint32)

    def join(self, first: Documents, second: Documents) -> None:
        _join(self.parent, first, second)

    def names(self, documents: Documents) -> Documents:
        return _roots(self.parent, documents)


def verified_removals(first: Documents, second: Documents, jaccards: Jaccards, n_reserved: int) -> Removals:
    """Who goes, given the pairs that match; each is (preferred, other).

    A document's fate is known before those it could remove. Of the kept ones that it matches its removal names a
    reserved one if there is one, else the most similar; ties to the preferred.
    """
    order = np.lexsort((first, second))
    documents, groups = np.unique(second, return_inverse=True)
    matched = np.searchsorted(documents, first)  # where a first document's own fate stands
    matched[documents[np.minimum(matched, len(documents) - 1)] != first] = -1
    best = np.full(len(documents), -1, np.int64)
    _decide(order, groups, matched, first, jaccards, n_reserved, best)
    gone = np.flatnonzero(best >= 0)
    kept = first[best[gone]]
    rules = np.where(kept < n_reserved, LEAKED, NEAR)
    return Removals.of(documents[gone], kept, rules, jaccards[best[gone]])


def component_removals(first: Documents, second: Documents, n_documents: int, n_reserved: int) -> Removals:
    """As `verified_removals`, for candidates taken on trust, in ascending order; similarities are still unknown (0).

    Leaks go first and connect nothing; of every component of the rest the preferred document stays.
    """
    leak = first < n_reserved
    leaked, at = np.unique(second[leak], return_index=True)
    kept = first[leak][at]
    rest = ~leak & ~np.isin(first, leaked) & ~np.isin(second, leaked)
    components = Components(n_documents)
    components.join(first[rest], second[rest])
    members = np.unique(np.concatenate((first[rest], second[rest])))
    members = members[components.names(members) != members]
    documents = np.concatenate((leaked, members))
    rules = np.repeat(np.array([LEAKED, NEAR], np.uint8), [len(leaked), len(members)])
    return Removals.of(documents, np.concatenate((kept, components.names(members))), rules, np.zeros(len(documents)))


@kernel
def _decide(order, groups, matched, first, jaccards, n_reserved, best):  # type: ignore[no-untyped-def]
    """best[group] = the match for which the group's document goes, or -1."""
    for pair in order:
        if matched[pair] >= 0 and best[matched[pair]] >= 0:
            continue  # the other document goes itself
        group = groups[pair]
        if best[group] < 0:
            best[group] = pair
            continue
        reserved, best_reserved = first[pair] < n_reserved, first[best[group]] < n_reserved
        if reserved == best_reserved and jaccards[pair] > jaccards[best[group]]:
            best[group] = pair


@kernel
def _root(parent, document):  # type: ignore[no-untyped-def]
    while parent[document] != document:
        parent[document] = parent[parent[document]]
        document = np.int64(parent[document])
    return document


@kernel
def _join(parent, first, second):  # type: ignore[no-untyped-def]
    for pair in range(len(first)):
        one, other = _root(parent, first[pair]), _root(parent, second[pair])
        parent[max(one, other)] = min(one, other)


@kernel
def _roots(parent, documents):  # type: ignore[no-untyped-def]
    names = np.empty(len(documents), np.int64)
    for at in range(len(documents)):
        names[at] = _root(parent, documents[at])
    return names
