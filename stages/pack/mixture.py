"""How often each training document is read: sources in the proportions that one wants.

`pack.mixture` gives repeats per source; a source that it does not name is taken once. Whole repeats are
whole; a fraction takes the documents whose id hashes below it, so 0.3 is a part of what 0.5 takes, and
a document that comes or goes moves no other. Example:

    mixture: {wiki: 2.5, forum: 0.1}    wiki: each document twice, half of them a third time
                                        forum: one document of ten; everything else: once

Validation and test are never repeated nor thinned. Copies of a document are documents of their own in
the rows, and `contaminated` ones (decontaminate.py) are taken zero times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from stages.errors import BadInput
from stages.kept import Part
from stages.pack.params import PackParams

Copies = npt.NDArray[np.uint16]


def refuse_unknown_sources(parts: Iterable[Part], pack: PackParams) -> None:
    """Before anything is encoded.

    Raises:
        BadInput: the mixture names a source that no training document has.
    """
    if not pack.mixture:
        return
    known: set[str] = set()
    for part in parts:
        for batch in part.batches(["source", "split"]):
            known.update(pc.unique(batch["source"].filter(pc.equal(batch["split"], "train"))).to_pylist())
    if problem := pack.unknown_source(known):
        raise BadInput(f"params.yaml: pack.mixture: no training document has the source {problem}")


def copies_of(tables: Iterable[pa.Table], mixture: Mapping[str, float], contaminated: Set[str]) -> list[Copies]:
    """How often each document is taken, for each table of documents (id, source)."""
    return [_copies(table, mixture, contaminated) for table in tables]


def _copies(table: pa.Table, mixture: Mapping[str, float], contaminated: Set[str]) -> Copies:
    copies = np.ones(len(table), np.uint16)
    for source, repeats in mixture.items():
        rows = np.flatnonzero(pc.equal(table["source"], source).to_numpy())
        whole = int(repeats)
        copies[rows] = whole
        if repeats > whole:
            ids = table["id"].take(pa.array(rows)).to_pylist()
            copies[rows] += np.fromiter((fraction_of(name) < repeats - whole for name in ids), np.bool_, len(ids))
    if contaminated:
        copies[pc.is_in(table["id"], value_set=pa.array(sorted(contaminated), pa.string())).to_numpy()] = 0
    return copies


def fraction_of(name: str) -> float:
    """A document's place in [0, 1): the xxh3-64 of its id."""
    return xxhash.xxh3_64_intdigest(name.encode()) / 2**64
