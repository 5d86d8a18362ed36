"""What comparing needs of every document, written once a clean shard, and read back a few documents at a time.

A document's position is its place in the corpus: shards in the order of their names, rows in theirs. The
folder of a shard's sketch holds, for its n documents:

    signatures.bin      uint32[n, hashes]    MinHash (minhash.py)
    exact.npy           uint64[n, 2]         xxh3-128 of the normalised text
    sizes.npy           uint32[n]            bytes of the text
    reserved.npy        bool[n]              whether it is validation or test text
    keys.bin, rows.bin  uint64[bands + 1, n], uint32[bands + 1, n]

The last two are the bands: in each row of `keys` the keys of one band, ascending by their first six bits, and
in `rows` whose they are. So the documents whose key begins with given bits (six at most) lie side by side, and a
task that compares one part of one band over all shards reads 12 bytes for each of its documents and nothing else.
Row number `bands` stands for the exact hash, of which it has the upper half.
"""

from __future__ import annotations

import mmap
import os
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from stages.compiled import kernel
from stages.dedup.minhash import Signatures, band_keys, sign_texts
from stages.dedup.params import DedupParams
from stages.errors import BadInput
from stages.shingles import Shingled, shingle_texts
from stages.store import append_array, save_array
from stages.utf8 import Bytes, Offsets, text_buffers

BATCH_ROWS, BATCH_IDS = 512, 1 << 13
BATCH_BYTES = 1 << 21
BUFFER_BYTES = 1 << 18
PREFIX_BITS = 6
Numbers = npt.NDArray[np.uint32]
Positions = npt.NDArray[np.int64]


class SketchItem(NamedTuple):
    """A shard to sketch, and what of the params decides its sketch."""

    path: Path
    ngram: int
    bands: int
    rows: int

    @classmethod
    def of(cls, path: Path, params: DedupParams) -> SketchItem:
        return cls(path, params.ngram, params.bands, params.rows)


def write_sketch(item: SketchItem, folder: Path) -> None:
    """The sketch of one shard; the function of a task."""
    n_hashes = item.bands * item.rows
    exact, sizes, reserved = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint32)], [np.empty(0, np.bool_)]
    keys = [np.empty((item.bands, 0), np.uint64)]
    with (folder / "signatures.bin").open("wb") as file:
        for batch in read_batches(item.path, ["text", "split"]):
            data, offsets = text_buffers(batch.column("text"))
            signatures, normal, ends = sign_texts(data, offsets, item.ngram, n_hashes)
            append_array(file, signatures)
            keys.append(band_keys(signatures, item.bands))
            exact.append(exact_hashes(normal, ends))
            sizes.append(np.minimum(np.diff(offsets), np.iinfo(np.uint32).max).astype(np.uint32))
            reserved.append(np.array([split != "train" for split in batch.column("split").to_pylist()], np.bool_))
    hashes = np.concatenate(exact)
    all_keys = np.concatenate([np.concatenate(keys, axis=1), hashes[:, :1].T])
    grouped, rows = np.empty_like(all_keys), np.empty(all_keys.shape, np.uint32)
    _group(all_keys, grouped, rows)
    for name, values in (("keys", grouped), ("rows", rows)):
        with (folder / f"{name}.bin").open("wb") as file:
            append_array(file, values)
    save_array(folder / "exact.npy", hashes)
    save_array(folder / "sizes.npy", np.concatenate(sizes))
    save_array(folder / "reserved.npy", np.concatenate(reserved))


@kernel
def _group(keys, grouped, rows):  # type: ignore[no-untyped-def]
    """Puts the keys of each band in order of their first `PREFIX_BITS` bits, the rest as they come, with their rows."""
    shift = np.uint64(64 - PREFIX_BITS)
    for band in range(len(keys)):
        places = np.zeros((1 << PREFIX_BITS) + 1, np.int64)
        for key in keys[band]:
            places[np.int64(key >> shift) + 1] += 1
        places = np.cumsum(places)
        for row in range(keys.shape[1]):
            prefix = np.int64(keys[band, row] >> shift)
            grouped[band, places[prefix]], rows[band, places[prefix]] = keys[band, row], row
            places[prefix] += 1


def mapped(path: Path, kind: npt.DTypeLike) -> np.ndarray:
    """The numbers in a file, mapped. np.memmap takes ten times as long to open one, which counts with many shards."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return np.empty(0, kind)
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), kind)


def _stored(file: FileIO, kind: npt.DTypeLike, begin: int, end: int) -> np.ndarray:
    """The numbers begin..end of a file. Read, not mapped: a map of a few numbers takes 64 KB or more, and one is open
    for every shard."""
    width = np.dtype(kind).itemsize
    return np.frombuffer(os.pread(file.fileno(), (end - begin) * width, begin * width), kind)


def _key(descriptor: int, place: int) -> int:
    return int.from_bytes(os.pread(descriptor, 8, 8 * place), sys.byteorder)


def read_batches(path: Path, columns: list[str], rows: npt.NDArray[np.int64] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a shard, or those of `rows` (ascending), in batches of about two megabytes of text.

    Row groups without a wanted row are not read.

    Raises:
        BadInput: the shard cannot be read, or lacks a column.
    """
    batch_rows = BATCH_ROWS if "text" in columns else BATCH_IDS
    try:
        with pq.ParquetFile(path, buffer_size=BUFFER_BYTES) as file:  # else all of a column at once
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                if rows is None or np.searchsorted(rows, first) < np.searchsorted(rows, last):
                    for batch in file.iter_batches(batch_rows, [group], columns, use_threads=False):
                        wanted = batch if rows is None else _wanted(batch, first, rows)
                        first += len(batch)
                        yield from _pieces(wanted)
                        if rows is not None and first > rows[-1]:
                            return  # the rest of the shard need not be unpacked
                first = last
    except (OSError, pa.ArrowException, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise BadInput(f"{path}: cannot be read as Parquet ({reason}); remove it and run `dvc repro`") from None


def _wanted(batch: pa.RecordBatch, first: int, rows: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """The rows of a batch, which begins at row `first` of its shard, that are in `rows`."""
    begin, end = np.searchsorted(rows, [first, first + len(batch)])
    return batch.take(arrow(rows[begin:end] - first))


def arrow(values: np.ndarray) -> pa.Array:
    """A column over the same memory (bool: a copy). `pa.array` would import pandas, to see whether this is a series."""
    bits = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(bits)])


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch cut so that a piece has at most `BATCH_BYTES` of text, or one document."""
    if len(batch) > 1 and batch.nbytes > BATCH_BYTES:
        yield from _pieces(batch.slice(0, len(batch) // 2))
        yield from _pieces(batch.slice(len(batch) // 2))
    elif len(batch):
        yield batch


def shingled_batch(texts: pa.Array, ngram: int) -> tuple[Shingled, npt.NDArray[np.int64]]:
    """The shingles of some texts, and their sizes in bytes."""
    data, offsets = text_buffers(texts)
    return shingle_texts(data, offsets, ngram), np.diff(offsets)


def exact_hashes(normal: Bytes, ends: Offsets) -> npt.NDArray[np.uint64]:
    """xxh3-128 of each normalised text, its upper and its lower half: uint64[texts, 2]."""
    texts = memoryview(normal)  # type: ignore[arg-type]  # slices of it are quicker than of the array
    digests = [xxhash.xxh3_128_digest(texts[begin:end]) for begin, end in pairwise(ends.tolist())]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


class Sketches:
    """The sketches of all shards; light, so that tasks can take it along.

    Attributes:
        shards: the clean shards in the order of their names.
        folders: the sketch of each.
        starts: the position of the first document of each, and of the end; int64[shards + 1].
    """

    def __init__(self, shards: Sequence[Path], folders: Sequence[Path], n_hashes: int):
        self.shards, self.folders, self.n_hashes = list(shards), list(folders), n_hashes
        sizes = [len(np.load(folder / "sizes.npy", mmap_mode="r")) for folder in self.folders]
        self.starts = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def arrays(self, name: str) -> Iterator[np.ndarray]:
        """A small array of every shard."""
        return (np.load(folder / f"{name}.npy") for folder in self.folders)

    def entries(self, band: int, prefix: int, bits: int) -> tuple[npt.NDArray[np.uint64], Positions]:
        """The keys of a band whose first `bits` bits (`PREFIX_BITS` at most) are `prefix`, and whose they are."""
        keys, positions = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for start, stop, folder in zip(self.starts.tolist(), self.starts[1:].tolist(), self.folders, strict=False):
            first = band * (stop - start)
            places = range(first, first + stop - start)
            with (folder / "keys.bin").open("rb", 0) as file:
                key = partial(_key, file.fileno())
                begin, end = (
                    first + bisect_left(places, bound << 64 - bits, key=key) for bound in (prefix, prefix + 1)
                )
                keys.append(_stored(file, np.uint64, begin, end))
            with (folder / "rows.bin").open("rb", 0) as file:
                positions.append(start + _stored(file, np.uint32, begin, end).astype(np.int64))
        return np.concatenate(keys), np.concatenate(positions)

    def by_shard(self, positions: Positions) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """(shard, rows in it, which of the positions these are), for positions in any order."""
        shards = np.searchsorted(self.starts, positions, side="right") - 1
        order = np.argsort(shards, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
            if len(places):
                shard = int(shards[places[0]])
                yield shard, positions[places] - self.starts[shard], places

    def signatures(self, positions: Positions) -> Signatures:
        """uint32[positions, hashes]"""
        found = np.empty((len(positions), self.n_hashes), np.uint32)
        for shard, rows, places in self.by_shard(positions):
            found[places] = self.shard_signatures(shard)[rows]
        return found

    def shard_signatures(self, shard: int) -> Signatures:
        """The signatures of one shard, mapped from its file."""
        return mapped(self.folders[shard] / "signatures.bin", np.uint32).reshape(-1, self.n_hashes)
