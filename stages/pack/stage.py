"""Packs the kept documents into rows of tokens with document boundaries, as Arrow shards.

    clean shards, keep-list ─► encode.py        flat files of tokens, one a shard and split
                               decontaminate.py which training documents share text with evaluation files
                               mixture.py       how often each training document is taken
                               plan.py          which slots of which row each document fills, from lengths alone
                               shards.py        rows, gathered from the flat files

No token is lost or made up: the slots of all segments are the tokens of all documents taken, and the
metrics count the difference. leaks.py checks, by other means than dedup's, that no training document
nearly repeats a reserved one. The corpus stays in files: memory is a few bytes a document and a shard
of rows a worker, and what was finished before a kill is not done again (stages/tasks.py).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.entry import Job
from stages.errors import BadInput
from stages.files import file_sha256, write_json
from stages.first_compile import tell_first_compile
from stages.kept import kept_parts
from stages.pack.decontaminate import find_contaminated
from stages.pack.encode import EncodedParts, TokenizerFile, encode_parts
from stages.pack.leaks import Leak, find_leaks
from stages.pack.mixture import Copies, copies_of, refuse_unknown_sources
from stages.pack.params import PackParams
from stages.pack.record import Record
from stages.pack.reserved import THRESHOLD
from stages.pack.shards import RowFormat, TokenDocuments, lay_out, write_rows
from stages.progress import say
from stages.splits import SPLITS, Split
from stages.tokens import token_dtype
from stages.vocabulary import load_tokenizer, roles_of
from stages.wording import counted

FEW_TOKENS = 10_000  # losses of tokens deviate by 2 to 3 nats, so a mean over these is known to 0.03 at best


def run(job: Job, pack: PackParams) -> None:
    """Writes train, validation and test, documents (what became of each), and metrics.json.

    Raises:
        BadInput: a split without a document, a mixture of sources that are not there, or an input that cannot be used.
    """
    tell_first_compile(job.stage, Path(__file__).parent)
    path = job.root / "data/tokenizer/tokenizer.json"
    tokenizer = load_tokenizer(path)
    vocab_size = tokenizer.get_vocab_size()
    dtype = token_dtype(vocab_size)
    file = TokenizerFile(path, file_sha256(path), dtype)
    work = job.staging / "work"
    parts = kept_parts(job.root / "data/clean/documents", job.root / "data/dedup/keep.parquet")
    refuse_unknown_sources(parts, pack)
    encoded = encode_parts(job, parts, file)
    contaminated = list(find_contaminated(job, parts, pack.decontaminate, pack.decontaminate_ngram, work / "ngrams"))
    leaks = find_leaks(job, parts)
    warn_of(leaks)
    record = Record(job.staging / "documents", contaminated, leaks)
    end_of_text, padding = (tokenizer.token_to_id(token) for token in roles_of(path))
    assert end_of_text is not None and padding is not None, "roles_of has looked"
    format = RowFormat(pack.strategy, pack.context_length, vocab_size, str(dtype), end_of_text, padding)
    metrics: dict[str, int | float | str] = {
        "contaminated_documents": len(record.contaminated),
        "near_duplicates_across_splits": len(leaks),
    }
    needless_cuts = dropped = 0
    for split in SPLITS:
        copies = training_copies(encoded, pack, record) if split == "train" else None
        sources = record.write(split, encoded, copies)
        layout = lay_out(work / split, taken(encoded, split, copies), format)
        described = {"tokenizer_sha256": file.sha256, "sources": sources}
        index = write_rows(job, job.staging / split, layout, pack.shard_tokens, **described)
        needless_cuts += layout.needless_cuts
        dropped += layout.n_tokens - index["tokens"]
        metrics[f"tokens_{split}"] = index["tokens"]
        warn_of_few(split, index["tokens"], index["rows"])
        metrics[f"bytes_{split}"] = sum(source["bytes"] for source in sources.values())
        if split == "train":
            metrics["padding_ratio"] = index["padding"] / (index["rows"] * pack.context_length)
            metrics |= {
                key: sum(source[key] for source in sources.values()) for key in ("repeated_tokens", "left_out_tokens")
            }
    shutil.rmtree(work)
    metrics |= {"needless_cuts": needless_cuts, "dropped_tokens": dropped, "eval_sha256": encoded.text_sha256()}
    write_json(job.staging / "metrics.json", metrics)


def training_copies(encoded: EncodedParts, pack: PackParams, record: Record) -> list[Copies]:
    """How often each training document is taken, for each part."""
    tables = encoded.documents("train", ["id", "source"])
    return copies_of(tables, pack.mixture, record.contaminated)


def taken(encoded: EncodedParts, split: Split, copies: Sequence[Copies] | None) -> TokenDocuments:
    """The documents of a split as often as they are taken.

    Raises:
        BadInput: there is none.
    """
    lengths = encoded.lengths(split)
    refuse_empty(split, len(lengths), 0)
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    digest = encoded.digest + split
    repeats = np.concatenate(copies or [np.ones(0, np.uint16)])
    if (repeats != 1).any():
        lengths, starts = np.repeat(lengths, repeats), np.repeat(starts, repeats)
        digest += hashlib.sha256(repeats.tobytes()).hexdigest()
        refuse_empty(split, len(lengths), len(repeats))
    return TokenDocuments(encoded.token_files(split), starts, lengths, digest)


def refuse_empty(split: Split, n_documents: int, n_left_out: int) -> None:
    if n_left_out and not n_documents:
        raise BadInput(
            f"pack.mixture and pack.decontaminate leave none of {counted(n_left_out, 'training document')}; loosen them"
        )
    if not n_documents:
        mend = "loosen clean or dedup" if split == "train" else f"raise split.{split} or take more documents"
        raise BadInput(f"the {split} split has no document; {mend} in params.yaml")


def warn_of_few(split: Split, n_tokens: int, n_rows: int) -> None:
    """Says so where a loss on a reserved split would be of chance more than of the model."""
    if split != "train" and n_tokens < FEW_TOKENS:
        there = f"{counted(n_tokens, 'token')} in {counted(n_rows, 'row')}"
        say(
            f"pack: warning: {there} are reserved for {split}, on which a loss is rough (some {FEW_TOKENS:,} are "
            f"better); raise split.{split} or take more text"
        )


def warn_of(leaks: list[Leak]) -> None:
    """Names the training documents that nearly repeat a reserved one: reserved text then measures memory too."""
    if leaks:
        first = ", ".join(f"{leak.training_id} ~ {leak.reserved_id} ({leak.jaccard:.2f})" for leak in leaks[:3])
        say(
            f"pack: warning: {counted(len(leaks), 'near-repeat')} of reserved documents in train (Jaccard {THRESHOLD} "
            f"or more): {first}; is dedup.verify false, or dedup.threshold above {THRESHOLD}?"
        )
