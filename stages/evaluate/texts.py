"""Files of text that are named in params.yaml, to be evaluated beside the test split.

    texts:
      news: {path: inputs/news.jsonl, sha256: 9f2c.., column: text}

They serve where the test split would be another one: runs with other params of clean, or other corpora. DVC does
not watch them, so each is named with its sha256. What can be read is what `download` reads; text is taken as it
stands, without cleaning.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.errors import BadInput
from stages.evaluate.params import TextFile
from stages.evaluate.token_bytes import TokenBytes
from stages.sources import KINDS, SourceFile, read_file


def read_documents(root: Path, name: str, text: TextFile, table: TokenBytes) -> list[NDArray[np.int64]]:
    """Each document as labels t1 .. tn and end-of-text.

    Raises:
        BadInput: the file is not there, is not the one that its sha256 names, cannot be read, or has no text.
    """
    place = f"params.yaml: evaluate.texts.{name}"
    if problem := text.problem(root):
        raise BadInput(f"{place}: {problem}")
    source = SourceFile(root / text.path, Path(text.path).name)
    if source.kind is None:
        raise BadInput(f"{place}: {text.path}: of no kind that can be read; there are {', '.join(KINDS)}")
    encode = table.tokenizer.encode
    documents = [
        np.array([*encode(document.text, add_special_tokens=False).ids, table.end_of_text], np.int64)
        for document in read_file(source, text.column)
        if document.text
    ]
    if not documents:
        raise BadInput(f"{place}: {text.path}: has no text")
    return documents
