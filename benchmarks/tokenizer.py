"""Tokenizer side by side with its peers: training and encoding, in CPU seconds, with their results compared.

    python -m benchmarks.make_corpus --bytes 500e6 --out /tmp/corpus/500mb --texts FOLDER
    python -m benchmarks.tokenizer /tmp/corpus/500mb --peers /path/to/venv/bin/python --repeat 5

The other Python must have tokenizers, tiktoken and rustbpe; without `--peers` Hugging Face tokenizers of
this Python are the only peer. Every run is a process of its own, with one thread. CPU seconds, of children
too, are those of the work with its reading of Parquet; imports, and the compiling of kernels, come before.
Memory is the peak of the largest process. Training takes the whole corpus: the merges of millrace and of
Hugging Face must be equal (rustbpe breaks ties its own way). Encoding: the ids of millrace, of Hugging
Face and of tiktoken (an Encoding of the same merges and pattern) must be equal; the peers encode about
the first `--slow-bytes`, and rates are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

KEEP = "keep.parquet"
SPECIAL = ["<|endoftext|>", "<|pad|>"]
WARM_TEXT = "The first call compiles, or builds a table: 12345 words, don't they? été 中文\n"


def training_columns(corpus: Path, limit: float) -> Iterator[pa.Array]:
    """Batches of the training texts, up to so many bytes."""
    read = 0
    for path in sorted((corpus / "documents").glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024, columns=["text", "split"]):
            texts = batch.filter(pa.compute.equal(batch.column("split"), "train")).column("text")
            yield texts
            read += texts.nbytes
            if read >= limit:
                return


def training_texts(corpus: Path, limit: float) -> Iterator[str]:
    for column in training_columns(corpus, limit):
        yield from column.to_pylist()


def pattern(max_digits: int = 3) -> str:
    """Our split pattern; spelled out, because the peers' Python lacks our packages."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1," + str(max_digits) + "}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )


# Each program: reads the corpus, works, and returns (bytes, what can be compared). `warm` comes first.


def train_millrace(options: argparse.Namespace) -> Callable[[], Any]:
    from stages.entry import Job
    from stages.execution import Execution
    from stages.kept import kept_parts
    from stages.pretoken_rules import GPT4, Rule
    from stages.tokenizer.count import count_texts, count_words
    from stages.tokenizer.train import from_counts

    rule = Rule(GPT4, 3)
    from_counts(count_texts(pa.array([WARM_TEXT] * 2, pa.large_string()), rule), rule, SPECIAL, 300, 1)

    def work() -> Any:
        with tempfile.TemporaryDirectory() as name:
            job = Job("tokenizer", Path(name), Execution(workers=options.workers))
            shards = kept_parts(options.documents, options.corpus / KEEP)
            tokenizer = from_counts(count_words(job, shards, rule), rule, SPECIAL, options.vocab_size, 2)
            tokenizer.save(str(options.out))
        return merges_digest(json.loads(tokenizer.to_str())["model"]["merges"])

    return work


def write_keep_list(corpus: Path) -> None:
    """What dedup leaves beside the documents of a corpus: here all of them."""
    paths = sorted((corpus / "documents").glob("*.parquet"))
    pq.write_table(pa.concat_tables([pq.read_table(path, columns=["id"]) for path in paths]), corpus / KEEP)


def train_huggingface(options: argparse.Namespace) -> Callable[[], Any]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    def work() -> Any:
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(pattern()), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        trainer = trainers.BpeTrainer(
            vocab_size=options.vocab_size,
            min_frequency=2,
            special_tokens=SPECIAL,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(training_texts(options.corpus, options.bytes), trainer)
        return merges_digest(json.loads(tokenizer.to_str())["model"]["merges"])

    return work


def train_rustbpe(options: argparse.Namespace) -> Callable[[], Any]:
    import rustbpe

    def work() -> Any:
        tokenizer = rustbpe.Tokenizer()
        texts = training_texts(options.corpus, options.bytes)
        tokenizer.train_from_iterator(texts, options.vocab_size - len(SPECIAL), pattern=pattern())
        return "its own order of ties"

    return work


def encode_millrace(options: argparse.Namespace) -> Callable[[], Any]:
    from tokenizers import Tokenizer

    from stages.encoding import Encoder
    from stages.utf8 import text_buffers

    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    tokenizer.encode_special_tokens = True
    Encoder(tokenizer)([WARM_TEXT])
    encoder = Encoder(tokenizer)
    return lambda: ids_digest(
        encoder.encode_buffers(*text_buffers(column))[0] for column in training_columns(*of(options))
    )


def encode_huggingface(options: argparse.Namespace) -> Callable[[], Any]:
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    tokenizer.encode_special_tokens = True

    def encode(column: pa.Array) -> Any:
        encoded = tokenizer.encode_batch_fast(column.to_pylist(), add_special_tokens=False)
        return np.concatenate([np.asarray(one.ids, np.uint32) for one in encoded])

    return lambda: ids_digest(map(encode, training_columns(*of(options))))


def encode_tiktoken(options: argparse.Namespace) -> Callable[[], Any]:
    import numpy as np
    import tiktoken

    described = json.loads(options.tokenizer.read_text())["model"]
    byte_of = byte_characters()
    ranks = {bytes(byte_of[c] for c in token): n for token, n in described["vocab"].items() if token not in SPECIAL}
    encoding = tiktoken.Encoding("ours", pat_str=pattern(), mergeable_ranks=ranks, special_tokens={})
    encoding.encode_ordinary(WARM_TEXT)

    def encode(column: pa.Array) -> Any:
        encoded = encoding.encode_ordinary_batch(column.to_pylist(), num_threads=1)
        return np.concatenate([np.asarray(ids, np.uint32) for ids in encoded])

    return lambda: ids_digest(map(encode, training_columns(*of(options))))


def byte_characters() -> dict[str, int]:
    """GPT-2's table, from character to byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return {chr(byte) if byte in printable else chr(next(others)): byte for byte in range(256)}


def of(options: argparse.Namespace) -> tuple[Path, float]:
    return options.corpus, options.bytes


def merges_digest(merges: list[Any]) -> str:
    return hashlib.sha256(json.dumps(merges).encode()).hexdigest()[:16]


def ids_digest(arrays: Iterator[Any]) -> str:
    """A hash of all ids, and their number."""
    state = hashlib.sha256()
    n_tokens = 0
    for array in arrays:
        n_tokens += len(array)
        state.update(array.tobytes())
    return f"{n_tokens} ids {state.hexdigest()[:16]}"


PROGRAMS: dict[str, Callable[[argparse.Namespace], Callable[[], Any]]] = {
    "train millrace": train_millrace,
    "train huggingface": train_huggingface,
    "train rustbpe": train_rustbpe,
    "encode millrace": encode_millrace,
    "encode huggingface": encode_huggingface,
    "encode tiktoken": encode_tiktoken,
}


def run_here(name: str, options: argparse.Namespace) -> None:
    """One measurement, as one line of JSON."""
    work = PROGRAMS[name](options)
    before, started = cpu_seconds(), time.perf_counter()
    result = work()
    seconds, wall = cpu_seconds() - before, time.perf_counter() - started
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(
        json.dumps(
            {
                "cpu_s": seconds,
                "wall_s": wall,
                "bytes": sum(map(len_of, training_columns(*of(options)))),
                "peak_mb": peak / 1e3,
                "result": result,
            }
        )
    )


def len_of(column: pa.Array) -> int:
    return pa.compute.sum(pa.compute.binary_length(column)).as_py() or 0


def cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def measured(name: str, python: str, arguments: argparse.Namespace, size: float) -> dict[str, Any]:
    """The median of several processes."""
    command = [python, __file__, str(arguments.corpus), "--program", name, "--bytes", str(size)]
    command += ["--vocab-size", str(arguments.vocab_size), "--tokenizer", str(arguments.tokenizer)]
    command += ["--out", str(arguments.out), "--workers", str(arguments.workers)]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": root}
    runs = []
    for _ in range(arguments.repeat):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "?"}
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    assert len({run["result"] for run in runs}) == 1, f"{name}: other results in other runs"
    return {**runs[0], **{key: statistics.median(run[key] for run in runs) for key in ("cpu_s", "wall_s", "peak_mb")}}


def compare(task: str, arguments: argparse.Namespace) -> None:
    """Prints a table of one task: rates, memory, ratios, and whether results are equal."""
    peers = {"train": ["huggingface", "rustbpe"], "encode": ["huggingface", "tiktoken"]}[task]
    sizes = [arguments.bytes if task == "encode" else float("inf")]
    if task == "encode" and arguments.slow_bytes < arguments.bytes:
        sizes.append(arguments.slow_bytes)
    ours = {size: measured(f"{task} millrace", sys.executable, arguments, size) for size in sizes}
    size = sizes[-1]
    print(f"\n{task}: {arguments.corpus}, vocabulary {arguments.vocab_size}, median of {arguments.repeat}")
    print(f"{'':12} {'MB':>7} {'CPU s':>8} {'MB/CPU s':>9} {'peak MB':>8} {'ours is':>9}  result")
    for one in ours.values():
        print_row("millrace", one, None, "")
    for peer in peers:
        python = arguments.peers or sys.executable
        found = measured(f"{task} {peer}", python, arguments, size)
        equal = "" if peer == "rustbpe" else "equal" if found.get("result") == ours[size].get("result") else "DIFFERENT"
        print_row(peer, found, ours[sizes[0]], equal)


def print_row(name: str, run: dict[str, Any], ours: dict[str, Any] | None, note: str) -> None:
    if "failed" in run:
        print(f"{name:12} {run['failed']}")
        return
    rate = run["bytes"] / run["cpu_s"] / 1e6
    ratio = f"{ours['bytes'] / ours['cpu_s'] / 1e6 / rate:8.1f}x" if ours and "cpu_s" in ours else ""
    row = f"{name:12} {run['bytes'] / 1e6:7.1f} {run['cpu_s']:8.2f} {rate:9.2f} {run['peak_mb']:8.0f} {ratio:>9}"
    print(f"{row}  {note} {run['result']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="a folder of benchmarks.make_corpus")
    parser.add_argument("--peers", default="", help="a Python with tokenizers, tiktoken and rustbpe")
    parser.add_argument("--task", choices=["train", "encode", "both"], default="both")
    parser.add_argument(
        "--bytes", type=float, default=float("inf"), help="of text, at most; training takes whole corpora"
    )
    parser.add_argument("--slow-bytes", type=float, default=float("inf"), help="encoding: as much for the peers")
    parser.add_argument("--vocab-size", type=int, default=32000)
    parser.add_argument("--workers", type=int, default=1, help="processes of millrace's counting")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--tokenizer", type=Path, help="encoding: a tokenizer.json; else the one that training made")
    parser.add_argument("--out", type=Path, help="where training writes its tokenizer.json")
    parser.add_argument("--program", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.documents = arguments.corpus / "documents"
    arguments.out = arguments.out or arguments.corpus / "tokenizer.json"
    arguments.tokenizer = arguments.tokenizer or arguments.out
    if arguments.program:
        run_here(arguments.program, arguments)
        return
    print("python -m benchmarks.tokenizer", *sys.argv[1:])
    write_keep_list(arguments.corpus)
    for task in ("train", "encode") if arguments.task == "both" else (arguments.task,):
        compare(task, arguments)


if __name__ == "__main__":
    main()
