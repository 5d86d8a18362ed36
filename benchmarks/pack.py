"""Packing side by side with concatenate-and-chunk: documents cut, padding, tokens lost, documents a second.

    python -m benchmarks.make_corpus --bytes 160e6 --out /tmp/corpus/160mb
    python -m benchmarks.pack --corpus /tmp/corpus/160mb --contexts 2048 --repeat 5

Every method gets the same documents as tokens. `best_fit` and `concat` are ours; `group_texts` is what
training scripts commonly do, `datasets.map` over batches of 1,000 documents, whose last tokens are
dropped. Speeds are documents per CPU second of one core, the median of `--repeat`: planning alone
(lengths in, rows out), and rows written from the token files, shards and all. What comes out is counted in
the Arrow files, not taken from our metrics.

`least padding` is a bound for any method that cuts no document that fits and cuts the others into full
rows and a rest: a row with a piece longer than T - g, g up to T/2, has room only for pieces shorter than g.
Where the corpus has less text in such pieces than such rows have room, the difference is padding.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.entry import Job
from stages.execution import Execution
from stages.files import file_sha256
from stages.kept import kept_parts
from stages.pack.encode import EncodedParts, TokenizerFile, encode_parts
from stages.pack.plan import make_plan
from stages.pack.shards import RowFormat, TokenDocuments, lay_out, write_rows
from stages.tokens import token_dtype
from stages.vocabulary import load_tokenizer, roles_of

SHARD_TOKENS = 1 << 25
TOKENIZER_ROWS = 5000
GROUP = 1000


class Result(NamedTuple):
    """One method at one context length. Speeds are documents per CPU second; None: not a step of its own."""

    method: str
    context: int
    plan_speed: float | None
    write_speed: float
    cut: int
    fitting: int
    padding: float
    least_padding: float | None
    lost: int
    rows: int


def seconds(work: Callable[[], Any], repeat: int) -> float:
    """CPU seconds, median."""
    taken = []
    for _ in range(repeat):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def workspace(corpus: Path, root: Path, vocab_size: int) -> None:
    """data/ as pack finds it: the corpus as what clean wrote, all of it kept, and a tokenizer of its first rows."""
    from stages.tokenizer.params import TokenizerParams
    from stages.tokenizer.stage import run as run_tokenizer

    for folder, shards in ((root, None), (root / "small", TOKENIZER_ROWS)):
        (folder / "data/clean/documents").mkdir(parents=True)
        (folder / "data/dedup").mkdir()
        (folder / "data/tokenizer").mkdir()
        for path in sorted((corpus / "documents").glob("*.parquet"))[: 1 if shards else None]:
            if shards:
                pq.write_table(pq.read_table(path).slice(0, shards), folder / "data/clean/documents" / path.name)
            else:
                (folder / "data/clean/documents" / path.name).symlink_to(path.resolve())
        ids = pq.read_table(folder / "data/clean/documents", columns=["id"])["id"]
        pq.write_table(pa.table({"id": ids}), folder / "data/dedup/keep.parquet")
    job = Job("tokenizer", root / "small", Execution(workers=1))
    job.prepare()
    run_tokenizer(job, tokenizer=TokenizerParams(vocab_size=vocab_size))
    shutil.copy(job.staging / "tokenizer.json", root / "data/tokenizer/tokenizer.json")


def encode(root: Path, workers: int) -> tuple[Job, EncodedParts, RowFormat]:
    path = root / "data/tokenizer/tokenizer.json"
    tokenizer = load_tokenizer(path)
    vocab_size = tokenizer.get_vocab_size()
    file = TokenizerFile(path, file_sha256(path), token_dtype(vocab_size))
    job = Job("pack", root, Execution(workers=workers))
    encoded = encode_parts(job, kept_parts(root / "data/clean/documents", root / "data/dedup/keep.parquet"), file)
    end, padding = (tokenizer.token_to_id(token) for token in roles_of(path))
    return job, encoded, RowFormat("best_fit", 0, vocab_size, str(file.dtype), end or 0, padding or 0)


def ours(root: Path, encoded: EncodedParts, format: RowFormat, repeat: int) -> Result:
    """Plans and writes the training split; each repetition has an empty scratch."""
    lengths = encoded.lengths("train")
    starts = np.cumsum(lengths, dtype=np.int64) - lengths
    documents = TokenDocuments(encoded.token_files("train"), starts, lengths, encoded.digest)
    out = root / "out"

    def write() -> None:
        for folder in (out, root / "plan", root / "scratch"):
            shutil.rmtree(folder, ignore_errors=True)
        job = Job("pack", root, Execution(workers=1, scratch=str(root / "scratch")))
        write_rows(job, out, lay_out(root / "plan", documents, format), SHARD_TOKENS)

    make_plan(format.strategy, lengths, format.context_length)  # compiled
    planning = seconds(lambda: make_plan(format.strategy, lengths, format.context_length), repeat)
    writing = seconds(write, repeat)
    owners, slots, n_rows = [], 0, 0
    for shard in json.loads((out / "index.json").read_text())["shards"]:
        with pa.ipc.open_file(str(out / shard["file"])) as file:
            for number in range(file.num_record_batches):
                batch = file.get_batch(number)
                owners.append(batch.column("documents").flatten().to_numpy())
                slots += int(batch.column("lengths").flatten().to_numpy().sum())
                n_rows += batch.num_rows
    pieces = np.bincount(np.concatenate(owners), minlength=len(lengths))
    fits = lengths <= format.context_length
    return Result(
        f"millrace {format.strategy}",
        format.context_length,
        len(lengths) / planning,
        len(lengths) / writing,
        int((pieces[fits] > 1).sum()),
        int(fits.sum()),
        1 - slots / (n_rows * format.context_length),
        least_padding(lengths, format.context_length) if format.strategy == "best_fit" else None,
        int(lengths.sum(dtype=np.int64)) - slots,
        n_rows,
    )


def group_texts(root: Path, encoded: EncodedParts, context: int, repeat: int) -> Result:
    """The peer: the documents' ids end to end by batches, cut into rows, the rest of each batch dropped."""
    import datasets

    datasets.disable_progress_bars()
    lengths = encoded.lengths("train")
    tokens = np.concatenate([np.fromfile(path, encoded.dtype) for path in encoded.token_files("train")])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]), pa.int64())
    table = pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, pa.array(tokens))})
    documents = datasets.Dataset(table)

    def group(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        laid = [token for ids in batch["input_ids"] for token in ids]
        end = len(laid) // context * context
        return {"input_ids": [laid[start : start + context] for start in range(0, end, context)]}

    rows: list[int] = []

    def write() -> None:
        made = documents.map(group, batched=True, batch_size=GROUP, cache_file_name=str(root / "grouped.arrow"))
        rows.append(made.num_rows)
        (root / "grouped.arrow").unlink()

    writing = seconds(write, repeat)
    begins = np.concatenate([np.cumsum(part) - part for part in batches_of(lengths)])
    fits = lengths <= context
    is_cut = begins // context != (begins + lengths - 1) // context
    kept = sum(int(part.sum()) // context * context for part in batches_of(lengths))
    assert kept == rows[0] * context, "what we count is what it wrote"
    lost = int(lengths.sum(dtype=np.int64)) - kept
    cut = int((is_cut & fits).sum())
    return Result("group_texts", context, None, len(lengths) / writing, cut, int(fits.sum()), 0.0, None, lost, rows[0])


def least_padding(lengths: np.ndarray, context: int) -> float:
    """The bound of the module's docstring, at the g where it is highest, in whole rows."""
    counts = np.bincount(lengths % context, minlength=context).astype(np.int64)
    counts[0] = 0
    text = np.cumsum(counts * np.arange(context))  # in pieces of up to so many slots
    room = np.cumsum(np.concatenate([[0], counts[:0:-1] * np.arange(1, context)]))  # beside pieces of T - g or more
    half = slice(1, context // 2 + 1)
    unavoidable = max(int((room[half] - text[half]).max(initial=0)), 0)
    total = int(lengths.sum(dtype=np.int64))
    return 1 - total / (-(-(total + unavoidable) // context) * context)


def batches_of(lengths: np.ndarray) -> list[np.ndarray]:
    return [lengths[first : first + GROUP].astype(np.int64) for first in range(0, len(lengths), GROUP)]


def report(results: list[Result]) -> str:
    lines = [
        "| method | T | plan, documents/s | rows written, documents/s | needless cuts | padding | least padding "
        "| tokens lost | rows |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in results:
        plan = f"{each.plan_speed:,.0f}" if each.plan_speed else "-"
        share = f"{each.cut:,} ({each.cut / max(each.fitting, 1):.1%} of those that fit)"
        least = "-" if each.least_padding is None else f"{each.least_padding:.4%}"
        numbers = f"{each.padding:.4%} | {least} | {each.lost:,} | {each.rows:,}"
        lines.append(f"| {each.method} | {each.context:,} | {plan} | {each.write_speed:,.0f} | {share} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="what benchmarks.make_corpus wrote")
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048], help="slots in a row")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=0, help="for encoding, which is not measured")
    parser.add_argument("--without-peer", action="store_true", help="leave out datasets.map, which is slow")
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="millrace-pack-") as temporary:
        root = Path(temporary)
        workspace(arguments.corpus, root, arguments.vocab_size)
        _, encoded, format = encode(root, arguments.workers)
        lengths = encoded.lengths("train")
        for context in arguments.contexts:
            for strategy in ("best_fit", "concat"):
                wanted = format._replace(strategy=strategy, context_length=context)
                results.append(ours(root, encoded, wanted, arguments.repeat))
            if not arguments.without_peer:
                results.append(group_texts(root, encoded, context, arguments.repeat))
    n_slots, quantiles = int(lengths.sum(dtype=np.int64)), np.quantile(lengths, [0.1, 0.5, 0.9]).astype(int).tolist()
    print(f"{len(lengths):,} training documents, {n_slots:,} slots; length 10%, 50%, 90%: {quantiles}")
    print(report(results))
    if arguments.out:
        arguments.out.write_text(json.dumps([result._asdict() for result in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
