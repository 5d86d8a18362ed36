"""A packed row as people read it: its segments, each with its document, its slots and its text.

row 3 of train: 256 slots, 2 segments, 11 of padding
slots 0-199     document 17 (numpy/linalg.txt), its tokens 0-199, goes on in another row
<|endoftext|>Linear algebra functions ..
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.corpora.corpus import need
from stages.document_names import document_names
from stages.errors import BadInput
from stages.wording import counted


def row_facts(root: Path, split: str, row: int) -> dict[str, Any]:
    """A row: its slots, its segments in their order, and how many slots are padding.

    Raises:
        BadInput: pack has not run, or has no such row.
    """
    import numpy as np

    from stages.tokens import TokenRows
    from stages.vocabulary import load_tokenizer, roles_of

    rows = TokenRows(need(root, "pack") / split)
    if not 0 <= row < rows.n_rows:
        raise BadInput(f"row {row}: {split} has the rows 0 to {rows.n_rows - 1}")
    path = need(root, "tokenizer") / "tokenizer.json"
    tokenizer, end_of_text = load_tokenizer(path), roles_of(path).end_of_text
    batch = rows.batch(np.array([row]))
    documents, offsets = rows.origins(row)
    names = document_names(root, split, documents)
    segments = []
    for number, (document, offset) in enumerate(zip(documents, offsets, strict=True)):
        slots = np.flatnonzero(batch.segments[0] == number)
        ids = batch.inputs[0, slots].tolist()
        following = tokenizer.decode([int(batch.labels[0, slots[-1]])], skip_special_tokens=False)
        segments.append(
            {
                "first_slot": int(slots[0]),
                "last_slot": int(slots[-1]),
                "document": document,
                "id": names.get(document),
                "offset": offset,
                "text": tokenizer.decode(ids, skip_special_tokens=False),
                "next": following,
                "ends": following == end_of_text,
                "input_ids": ids,
            }
        )
    padding = int((batch.segments[0] < 0).sum())
    return {"split": split, "row": row, "slots": rows.context_length, "padding": padding, "segments": segments}


def shown(facts: dict[str, Any]) -> list[str]:
    """The row as lines."""
    lines = [
        f"row {facts['row']} of {facts['split']}: {counted(facts['slots'], 'slot')}, "
        f"{counted(len(facts['segments']), 'segment')}, {facts['padding']} of padding"
    ]
    for segment in facts["segments"]:
        slots = f"slots {segment['first_slot']}-{segment['last_slot']}"
        last = segment["offset"] + segment["last_slot"] - segment["first_slot"]
        ends = "ends here" if segment["ends"] else f"goes on with {segment['next']!r} in another row"
        where = f"document {segment['document']} ({segment['id']}), its slots {segment['offset']}-{last}, {ends}"
        lines += ["", f"── {slots}: {where}", segment["text"]]
    return lines
