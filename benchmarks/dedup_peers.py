"""The peers of benchmarks/dedup.py, run by a Python of their own: python dedup_peers.py PEER DOCUMENTS FOLDER

Each reads the Parquet shards in DOCUMENTS, writes the kept ids to FOLDER/keep.txt, and prints one line of JSON.
"""

import json
import re
import sys
from pathlib import Path

N_HASHES, BANDS, NGRAM, THRESHOLD = 112, 28, 5, 0.75
WORD = re.compile(r"\w+")


def documents(folder: Path):
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path, columns=["id", "text"])
        yield from zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)


def shingles(text: str) -> list[str]:
    words = WORD.findall(text.lower()) or [text]
    return [" ".join(words[at : at + NGRAM]) for at in range(max(len(words) - NGRAM + 1, 1))]


def components(names: list, pairs) -> list:
    """The names that stay: the first of every connected component."""
    parent = list(range(len(names)))

    def find(member: int) -> int:
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = parent[member]
        return member

    for first, second in pairs:
        low, high = sorted((find(first), find(second)))
        parent[high] = low
    return [name for at, name in enumerate(names) if find(at) == at]


def rensa(folder: Path, out: Path) -> list:
    from rensa import RMinHash, RMinHashLSH

    index = RMinHashLSH(threshold=THRESHOLD, num_perm=N_HASHES, num_bands=BANDS)
    names, minhashes, pairs = [], [], []
    for number, (name, text) in enumerate(documents(folder)):
        minhash = RMinHash(num_perm=N_HASHES, seed=1)
        minhash.update(shingles(text))
        pairs += [(other, number) for other in index.query(minhash) if minhashes[other].jaccard(minhash) >= THRESHOLD]
        index.insert(number, minhash)
        names.append(name)
        minhashes.append(minhash)
    return components(names, pairs)


def datasketch(folder: Path, out: Path) -> list:
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=N_HASHES, params=(BANDS, N_HASHES // BANDS))
    names, minhashes, pairs = [], [], []
    for number, (name, text) in enumerate(documents(folder)):
        minhash = MinHash(num_perm=N_HASHES, seed=1, scheme="affine32")
        minhash.update_batch([shingle.encode() for shingle in shingles(text)])
        pairs += [(other, number) for other in index.query(minhash) if minhashes[other].jaccard(minhash) >= THRESHOLD]
        index.insert(number, minhash)
        names.append(name)
        minhashes.append(minhash)
    return components(names, pairs)


def datatrove(folder: Path, out: Path) -> list:
    import datatrove.utils.hashes.xxhash as hashes
    import xxhash
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.utils.hashing import HashConfig

    # xxhash 4 takes no str any more, which datatrove 0.6 still gives it.
    hashes.xxhash64 = lambda text: xxhash.xxh64_intdigest(text.encode())
    config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=NGRAM)
    work = out / "datatrove"
    kept: list = []

    class Keep(PipelineStep):
        name = "keep"

        def run(self, data, rank: int = 0, world_size: int = 1):
            for document in data:
                kept.append(document.id)
                yield document

    def reader():
        return ParquetReader(str(folder), text_key="text", id_key="id")

    steps = [
        [reader(), MinhashDedupSignature(output_folder=str(work / "signatures"), config=config, language="eng")],
        [
            MinhashDedupBuckets(
                input_folder=str(work / "signatures"), output_folder=str(work / "buckets"), config=config
            )
        ],
        [MinhashDedupCluster(str(work / "buckets"), str(work / "remove"), config=config)],
        [reader(), MinhashDedupFilter(input_folder=str(work / "remove")), Keep()],
    ]
    for number, pipeline in enumerate(steps):
        tasks = 14 if number == 1 else 1
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(work / f"logs{number}")).run()
    return kept


def main() -> None:
    peer, folder, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    import shutil

    shutil.rmtree(out / "datatrove", ignore_errors=True)
    kept = {"rensa": rensa, "datasketch": datasketch, "datatrove": datatrove}[peer](folder, out)
    (out / "keep.txt").write_text("\n".join(kept) + "\n")
    print(json.dumps({"kept": len(kept)}))


if __name__ == "__main__":
    main()
