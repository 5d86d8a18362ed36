"""Times near-deduplication against datatrove, rensa and datasketch, and checks it on planted pairs.

    python -m benchmarks.make_corpus --bytes 160e6 --out /tmp/corpus/160mb
    python -m benchmarks.dedup --corpus /tmp/corpus/160mb --peers PYTHON          # the table of ratios, checks
    python -m benchmarks.dedup --corpus /tmp/corpus/160mb --growth 1e4 1e5 1e6    # time and memory a document
    python -m benchmarks.dedup --corpus /tmp/corpus/160mb --curve                 # detection curves of both recipes

Every contender is a process of its own and reads the same Parquet shards, so that start-up, reading and
writing the list of kept ids are counted for all: CPU seconds of the process and its children, on one worker,
median of `--repeat` runs, ours and the peers' in turn. Compiled kernels and bytecode are cached before (a first
run is not counted).
Slow peers get the first `--peer-bytes` of the corpus, datatrove the first `--datatrove-bytes`; ratios compare MB
per CPU second, ours on the whole corpus.

PYTHON has datatrove[processing] with spacy, rensa, datasketch 2 and pyarrow. What they do:
  datatrove   MinhashDedupSignature, Buckets, Cluster, Filter: 5-grams, 14 x 8, its own tokenizer and normaliser
  rensa       RMinHash of 112 hashes over 5-grams made in Python, RMinHashLSH with 28 bands, then its estimate >= 0.75
  datasketch  MinHash of 112 hashes (affine32, update_batch) over the same 5-grams, MinHashLSH, then its estimate
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

PEERS = Path(__file__).with_name("dedup_peers.py")
N_HASHES = 112
OURS = "ours, 28 x 4, verified"


class Cost(NamedTuple):
    cpu_seconds: float
    peak_bytes: int
    output: dict[str, Any]


def measured(command: list[str], cache: Path) -> Cost:
    """Runs a process; its last line of output is JSON. The peak is the largest sum over it and its children."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(cache), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    peak = [0]
    watcher = threading.Thread(target=watch, args=(process.pid, peak), daemon=True)
    watcher.start()
    output, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = output.strip().splitlines()
    return Cost(seconds, peak[0], json.loads(lines[-1]) if lines else {})


def watch(process: int, peak: list[int]) -> None:
    """Keeps the largest memory of a process and its children together, shared pages counted once."""
    try:
        root = psutil.Process(process)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            family = [root, *root.children(recursive=True)]
            peak[0] = max(peak[0], sum(map(proportional_bytes, family)))
            time.sleep(0.1)
    except psutil.NoSuchProcess:
        return


def proportional_bytes(process: psutil.Process) -> int:
    """Memory in which a page shared by n processes counts 1/n."""
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


# Ours


def workspace(corpus: Path, folder: Path) -> Path:
    """A workspace whose clean documents are those of the corpus."""
    (folder / "data/clean").mkdir(parents=True, exist_ok=True)
    (folder / "data/clean/documents").symlink_to((corpus / "documents").resolve())
    return folder


def run_ours(corpus: Path, cache: Path, params: dict[str, Any], workers: int = 1) -> tuple[Cost, Path]:
    """The stage as a process on an empty scratch; gives its cost and the folder of its outputs."""
    root = workspace(corpus, Path(tempfile.mkdtemp(prefix="dedup")))
    command = [sys.executable, "-m", "benchmarks.dedup", "--stage", str(root), json.dumps(params), str(workers)]
    command = ["env", "ARROW_DEFAULT_MEMORY_POOL=system", *command]  # as stages/dedup/__main__.py has it
    cost = measured(command, cache)
    shutil.rmtree(root / ".dvc", ignore_errors=True)
    return cost, root / "data/dedup"


def run_stage(root: Path, params: dict[str, Any], workers: int) -> None:
    """What stages/dedup/__main__.py does, with these params and without a repository."""
    from stages import memory

    memory.collect_rarely()
    memory.use_system_allocator()
    memory.keep_freed()
    from stages.dedup.params import DedupParams
    from stages.dedup.stage import run
    from stages.entry import Job
    from stages.execution import Execution

    job = Job("dedup", root, Execution(workers=workers))
    job.prepare()
    run(job, DedupParams(**params))
    job.publish()
    print(json.dumps(json.loads((job.out / "metrics.json").read_text())))


# Checks


def planted(corpus: Path, out: Path, threshold: float) -> dict[str, Any]:
    """Recall of the pairs at or above the threshold, and how many below went because of each other."""
    pairs = pq.read_table(corpus / "pairs.parquet").to_pylist()
    removed = {row["id"]: row["kept_id"] for row in pq.read_table(out / "removals.parquet").to_pylist()}
    keep = {row["id"]: row["cluster"] for row in pq.read_table(out / "keep.parquet").to_pylist()}
    cluster = {**keep, **{name: keep[kept] for name, kept in removed.items()}}
    above = [pair for pair in pairs if pair["jaccard"] >= threshold]
    below = [pair for pair in pairs if pair["jaccard"] < threshold]

    def found(pair: dict[str, Any]) -> bool:
        return cluster[pair["id_a"]] == cluster[pair["id_b"]]

    def because_of_each_other(pair: dict[str, Any]) -> bool:
        one, other = pair["id_a"], pair["id_b"]
        return removed.get(one) == other or removed.get(other) == one

    hits = sum(map(found, above))
    low, high = wilson(hits, len(above))
    return {
        "pairs_above": len(above),
        "found": hits,
        "recall": hits / max(len(above), 1),
        "recall_low": low,
        "recall_high": high,
        "pairs_below": len(below),
        "below_removed": sum(map(because_of_each_other, below)),
        "removed": len(removed),
    }


def wilson(found: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    share, spread = found / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return middle - half, middle + half


def curve(corpus: Path) -> Iterator[str]:
    """How often planted pairs share a band, by similarity, beside 1-(1-J^r)^b; and the spread of estimates."""
    from stages.dedup.minhash import band_keys, estimates, signatures_of
    from stages.shingles import shingle_texts
    from stages.utf8 import text_buffers

    pairs = pq.read_table(corpus / "pairs.parquet")
    names = [*pairs["id_a"].to_pylist(), *pairs["id_b"].to_pylist()]
    texts = texts_of(corpus, set(names))
    shingled = shingle_texts(*text_buffers(pa.array([texts[name] for name in names], pa.large_string())), 5)
    signatures = signatures_of(shingled.shingles, shingled.ends, N_HASHES)
    jaccards, half = pairs["jaccard"].to_numpy(), len(pairs)
    estimated = estimates(signatures, np.arange(half), np.arange(half, 2 * half)).astype(float)
    inner = (jaccards > 0.4) & (jaccards < 0.99)
    scores = (estimated - jaccards)[inner] / np.sqrt(jaccards * (1 - jaccards) / N_HASHES)[inner]
    yield f"estimator: mean error {np.mean(estimated - jaccards):+.4f}, variance {scores.var():.3f} J(1-J)/{N_HASHES}"
    for bands, rows in ((14, 8), (28, 4)):
        keys = band_keys(signatures, bands)
        shared = (keys[:, :half] == keys[:, half:]).any(axis=0)
        yield f"{bands} x {rows}   J from   to   pairs   shared   95% interval     formula   inside"
        for begin in np.arange(0.4, 1.0, 0.05):
            chosen = (jaccards >= begin) & (jaccards < begin + 0.05)
            if not chosen.any():
                continue
            low, high = wilson(int(shared[chosen].sum()), int(chosen.sum()))
            expected = float(np.mean(1 - (1 - jaccards[chosen] ** rows) ** bands))
            yield (
                f"         {begin:.2f}  {begin + 0.05:.2f}  {chosen.sum():6d}   {shared[chosen].mean():.4f}   "
                f"{low:.4f}..{high:.4f}   {expected:.4f}   {'yes' if low <= expected <= high else 'no'}"
            )


def texts_of(corpus: Path, names: set[str]) -> dict[str, str]:
    found = {}
    for path in sorted((corpus / "documents").glob("*.parquet")):
        table = pq.read_table(path, columns=["id", "text"])
        ids = table["id"].to_pylist()
        found.update({name: table["text"][at].as_py() for at, name in enumerate(ids) if name in names})
    return found


# Tables


def head(corpus: Path, n_bytes: float, folder: Path) -> Path:
    """The first documents of a corpus, as a corpus of its own without pairs."""
    from stages.documents import READ_OFTEN, write_documents

    out = folder / f"head{n_bytes:.0f}"
    (out / "documents").mkdir(parents=True)
    taken = 0
    for path in sorted((corpus / "documents").glob("*.parquet")):
        table = pq.read_table(path)
        sizes = np.cumsum([len(text.as_buffer()) for text in table["text"]]) + taken
        rows = int(np.searchsorted(sizes, n_bytes)) + 1
        write_documents(table.slice(0, rows), out / "documents" / path.name, READ_OFTEN)
        taken = int(sizes[min(rows, len(sizes)) - 1])
        if taken >= n_bytes:
            break
    return out


def size_of(corpus: Path) -> tuple[int, int]:
    """Documents and bytes of text."""
    documents = n_bytes = 0
    for path in sorted((corpus / "documents").glob("*.parquet")):
        column = pq.read_table(path, columns=["text"])["text"]
        documents += len(column)
        n_bytes += sum(chunk.buffers()[2].size for chunk in column.chunks if len(chunk))
    return documents, n_bytes


def median_cost(runs: list[Cost]) -> Cost:
    seconds = statistics.median(run.cpu_seconds for run in runs)
    return Cost(seconds, max(run.peak_bytes for run in runs), runs[0].output)


def print_row(name: str, n_bytes: int, runs: list[Cost], note: str = "") -> float:
    cost = median_cost(runs)
    rate = n_bytes / 1e6 / cost.cpu_seconds
    each = " ".join(f"{run.cpu_seconds:.2f}" for run in runs)
    print(
        f"{name:26s} {n_bytes / 1e6:8.1f} MB {cost.cpu_seconds:9.2f} CPU s ({each}) {rate:9.3f} MB/CPU s "
        f"{cost.peak_bytes / 1e6:7.0f} MB peak  {note}",
        flush=True,
    )
    return rate


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    corpus, cache = arguments.corpus, folder / "bytecode"
    documents, n_bytes = size_of(corpus)
    print(
        f"{corpus}: {documents:,} documents, {n_bytes:,} bytes; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    recipes = {OURS: {}}
    if arguments.unverified:
        recipes["ours, 14 x 8, unverified"] = {"bands": 14, "rows": 8, "verify": False}
    peers = prepared_peers(arguments, folder) if arguments.peers else {}
    ours: dict[str, list[tuple[Cost, Path]]] = {name: [] for name in recipes}
    theirs: dict[str, list[Cost]] = {peer: [] for peer in peers}
    for params in recipes.values():
        run_ours(corpus, cache, params)  # compiles
    for turn in range(max(arguments.repeat, arguments.peer_repeat)):  # in turn, so that all see the same machine
        for name, params in recipes.items():
            ours[name] += [run_ours(corpus, cache, params)] if turn < arguments.repeat else []
        for peer, (command, _) in peers.items():
            theirs[peer] += [measured(command, cache)] if turn < arguments.peer_repeat else []
    rates = {}
    for name, runs in ours.items():
        rates[name] = print_row(name, n_bytes, [cost for cost, _ in runs])
        if (corpus / "pairs.parquet").is_file():
            print(f"    {json.dumps(planted(corpus, runs[0][1], 0.75))}")
    for peer, costs in theirs.items():
        rate = print_row(peer, peers[peer][1], costs, json.dumps(costs[0].output))
        print("    " + ", ".join(f"{name} {ours / rate:.1f} x" for name, ours in rates.items()))


def prepared_peers(arguments: argparse.Namespace, folder: Path) -> dict[str, tuple[list[str], int]]:
    """The command of each peer, and the bytes of text that it gets."""
    peers = {}
    for peer in arguments.only_peers:
        n_bytes = arguments.datatrove_bytes if peer == "datatrove" else arguments.peer_bytes
        part = head(arguments.corpus, n_bytes, folder / peer)
        command = [str(arguments.peers), str(PEERS), peer, str(part / "documents"), str(folder / peer)]
        peers[peer] = command, size_of(part)[1]
    return peers


def growth(arguments: argparse.Namespace, folder: Path) -> None:
    """Time and memory a document over sizes, each the first so many documents of a corpus made for the largest."""
    from benchmarks.make_corpus import MEDIAN_BYTES, SPREAD

    corpus = arguments.corpus
    documents, n_bytes = size_of(corpus)
    mean = n_bytes / documents if documents else MEDIAN_BYTES * math.exp(SPREAD**2 / 2)
    run_ours(corpus, folder / "bytecode", {})
    print(f"{'documents':>10s} {'MB':>8s} {'CPU s':>8s} {'us/document':>12s} {'peak MB':>8s}")
    for count in arguments.growth:
        part = corpus if count >= documents else head(corpus, count * mean, folder / f"growth{count:.0f}")
        found, size = size_of(part)
        runs = [run_ours(part, folder / "bytecode", {}, arguments.workers)[0] for _ in range(arguments.repeat)]
        cost = median_cost(runs)
        per_document = cost.cpu_seconds / found * 1e6
        print(
            f"{found:10,d} {size / 1e6:8.1f} {cost.cpu_seconds:8.2f} {per_document:12.1f} {cost.peak_bytes / 1e6:8.0f}"
        )


def main() -> None:
    if sys.argv[1:2] == ["--stage"]:
        run_stage(Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder that benchmarks.make_corpus wrote")
    parser.add_argument("--peers", type=Path, help="a Python with datatrove, rensa and datasketch 2")
    parser.add_argument("--only-peers", nargs="*", default=["rensa", "datasketch", "datatrove"])
    parser.add_argument("--repeat", type=int, default=5, help="runs of ours")
    parser.add_argument("--peer-repeat", type=int, default=1, help="runs of each peer")
    parser.add_argument("--peer-bytes", type=float, default=4e7, help="text for rensa and datasketch")
    parser.add_argument("--datatrove-bytes", type=float, default=5e6)
    parser.add_argument("--unverified", action="store_true", help="FineWeb's recipe too, 14 x 8 without verification")
    parser.add_argument("--growth", type=float, nargs="*", help="numbers of documents")
    parser.add_argument("--workers", type=int, default=1, help="--growth: worker processes")
    parser.add_argument("--curve", action="store_true", help="detection curves and the spread of estimates alone")
    arguments = parser.parse_args()
    print("python -m benchmarks.dedup", *sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        if arguments.curve:
            for line in curve(arguments.corpus):
                print(line)
        elif arguments.growth:
            growth(arguments, Path(folder))
        else:
            compare(arguments, Path(folder))


if __name__ == "__main__":
    main()
