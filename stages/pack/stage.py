"""Packs the kept documents into rows of tokens with document boundaries, as Arrow shards.

Encoding, planning and writing are separate: encode.py turns text into one flat file of tokens per
split, plan.py decides from lengths alone which slots each document fills, shards.py writes the rows.
No token is lost or made up: the slots of all segments are the tokens of all documents, and the metrics
count the difference. leaks.py checks, by other means than dedup's, that no training document nearly
repeats a reserved one.
"""

from __future__ import annotations

import shutil

from stages.entry import Job, file_sha256, write_json
from stages.errors import BadInput
from stages.pack.encode import EncodedSplit, TokenizerFile, encode_splits
from stages.pack.leaks import THRESHOLD, Leak, find_leaks
from stages.pack.params import PackParams
from stages.pack.plan import PLANS
from stages.pack.shards import write_rows
from stages.progress import say
from stages.splits import SPLITS
from stages.tokens import token_dtype
from stages.vocabulary import END_OF_TEXT, PADDING, load_tokenizer


def run(job: Job, pack: PackParams) -> None:
    path = job.root / "data/tokenizer/tokenizer.json"
    tokenizer = load_tokenizer(path)
    vocab_size, end_of_text = tokenizer.get_vocab_size(), tokenizer.token_to_id(END_OF_TEXT)
    assert end_of_text is not None, "load_tokenizer has looked"
    n_workers = job.execution.n_workers()
    file = TokenizerFile(path, file_sha256(path), token_dtype(vocab_size))
    work = job.staging / "work"
    encoded = encode_splits(job.root, work, file, n_workers)
    for split in SPLITS:
        refuse_empty(split, encoded[split])
    leaks = find_leaks(job.root, work / "reserved", n_workers)
    warn_of(leaks)
    indices = {}
    needless_cuts = 0
    for split in SPLITS:
        plan = PLANS[pack.strategy](encoded[split].lengths, pack.context_length)
        needless_cuts += plan.needless_cuts
        indices[split] = write_rows(
            job.staging / split,
            encoded[split],
            plan,
            context_length=pack.context_length,
            vocab_size=vocab_size,
            shard_tokens=pack.shard_tokens,
            end_of_text=end_of_text,
            padding=tokenizer.token_to_id(PADDING) or 0,
            tokenizer_sha256=file.sha256,
        )
    shutil.rmtree(work)
    train = indices["train"]
    metrics = {
        **{f"tokens_{split}": indices[split]["tokens"] for split in SPLITS},
        "padding_ratio": train["padding"] / (train["rows"] * pack.context_length),
        "needless_cuts": needless_cuts,
        "dropped_tokens": sum(int(encoded[split].lengths.sum()) - indices[split]["tokens"] for split in SPLITS),
        "near_duplicates_across_splits": len(leaks),
        "eval_sha256": encoded["test"].text_sha256,
    }
    write_json(job.staging / "metrics.json", metrics)


def warn_of(leaks: list[Leak]) -> None:
    """Names the training documents that nearly repeat a reserved one: reserved text then measures memory too."""
    if leaks:
        first = ", ".join(f"{leak.training_id} ~ {leak.reserved_id} ({leak.jaccard:.2f})" for leak in leaks[:3])
        say(
            f"pack: warning: {len(leaks)} training documents nearly repeat a reserved one (Jaccard {THRESHOLD} or "
            f"more): {first}; is dedup.verify false, or dedup.threshold above {THRESHOLD}?"
        )


def refuse_empty(split: str, encoded: EncodedSplit) -> None:
    if not len(encoded.lengths):
        mend = "loosen clean or dedup" if split == "train" else f"raise split.{split} or take more documents"
        raise BadInput(f"the {split} split has no document; {mend} in params.yaml")
