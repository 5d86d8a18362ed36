"""Makes a corpus of a given size, always the same for one seed, with near-duplicates planted in it.

    python -m benchmarks.make_corpus --bytes 160e6 --out /tmp/corpus/160mb [--texts FOLDER]

Sentences come from the documentation of installed packages (and from the txt and Parquet files of
`--texts`), each distinct one once; documents are drawn from them at random, with lengths that are
log-normal (median 2.5 KB). Two documents drawn so share a sentence now and then and nothing more: a
near-duplicate is there only where it was planted. A few percent of the sentences are made of the
characters of 24 other scripts.

A planted pair is a document and a copy of it with words changed, or sentences taken out, put in or
moved. Its exact Jaccard similarity (sets of 5 words, stages/shingles.py) goes to pairs.parquet:
4,000 pairs or more in [0.75, 1] and as many in [0.4, 0.75), fewer where the corpus is below 80 MB.

    OUT/documents/00000.parquet ...   (id, text, source, split)    what clean writes, so it can stand in its place
    OUT/pairs.parquet                 (id_a, id_b, jaccard)
    OUT/manifest.json                 how it was made

All documents are for training but one of 200, half of those for validation and half for test; members
of pairs are always for training. Memory is that of sentences, of pairs and of one shard.
"""

# ruff: noqa: RUF001 (letters that look like others)

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.documents import READ_OFTEN, ShardWriter
from stages.download.python_docs import documents, find_pages, installed_packages, read_pins
from stages.shingles import shingle_texts
from stages.utf8 import text_buffers

MEDIAN_BYTES, SPREAD = 2500, 0.9
FEWEST_BYTES, MOST_BYTES = 500, 200_000
WORDS_OF_SENTENCE = range(4, 61)
BYTES_PER_PAIR = 20_000  # so that half of a small corpus is planted, and a quarter of 160 MB
MOST_PAIRS = 4000
FOREIGN_SHARE = 0.03
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text", "source", "split")])
SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=\S)")

SCRIPTS = {  # ranges of letters, and of marks that may follow one; without a space between words where it says so
    "latin": ("a-zà-öø-ÿ", ""), "polish": ("a-ząćęłńóśźż", ""), "turkish": ("a-zçğıöşü", ""),
    "vietnamese": ("a-zăâđêôơư", "\u0300-\u0303\u0309\u0323"), "greek": ("α-ωά-ώ", ""),
    "russian": ("а-яА-Яё", ""), "ukrainian": ("а-яіїєґ", ""), "armenian": ("ա-և", ""),
    "hebrew": ("א-ת", ""), "arabic": ("ء-غف-ي", "\u064b-\u0652"),
    "persian": ("آ-غف-یپچژگ", ""), "hindi": ("अ-ह", "ा-ौ"), "bengali": ("অ-ঌক-ন", "া-ী"),
    "tamil": ("அ-ஊக-ங", "ா-ூ"), "telugu": ("అ-ఌక-న", "ా-ౄ"), "georgian": ("ა-ჰ", ""),
    "amharic": ("ሀ-ሆለ-ቆ", ""), "cherokee": ("Ꭰ-Ᏽ", ""), "korean": ("가-힣", ""),
    "chinese": ("一-龥", ""), "japanese": ("ぁ-ゖァ-ヺ一-龥", ""), "thai": ("ก-ะเ-ไ", "\u0e48-\u0e4c"),
    "khmer": ("ក-អ", "\u17b7-\u17bd"), "deseret": ("\U00010400-\U0001044f", ""),
}  # fmt: skip
WITHOUT_SPACES = {"chinese", "japanese", "thai", "khmer"}
EMOJI = "🙂🚀🎉👍🏽❤️👩‍👩‍👧"


class Planted(NamedTuple):
    """A pair of documents, each a list of sentences, and its exact Jaccard similarity."""

    first: list[str]
    second: list[str]
    jaccard: float


# Sentences


def harvest(constraints: Path, texts: Path | None) -> dict[str, list[str]]:
    """Distinct sentences by source, sorted, so that their order depends on nothing else."""
    pages = find_pages(installed_packages(read_pins(constraints), any_version=True))
    sentences: dict[str, list[str]] = {"documentation": []}
    for document in documents(pages, 1):
        sentences["documentation"] += split_sentences(document["text"])
    for path in sorted(texts.rglob("*")) if texts else []:
        if path.suffix == ".txt":
            found = split_sentences(path.read_text(encoding="utf-8"))
        elif path.suffix == ".parquet":
            column = pq.read_table(path, columns=["text"]).column("text")
            found = [sentence for text in column.to_pylist() for sentence in split_sentences(text)]
        else:
            continue
        sentences.setdefault(path.stem, []).extend(found)
    return {source: sorted(set(found)) for source, found in sorted(sentences.items()) if found}


def split_sentences(text: str) -> Iterator[str]:
    """Sentences of prose on one line; a short paragraph of code or of a list as it is."""
    for paragraph in re.split(r"\n\s*\n", text):
        if len(paragraph.split()) not in range(WORDS_OF_SENTENCE.start, 2000):
            continue
        lines = paragraph.strip("\n").split("\n")
        laid_out = len(lines) > 1 and sum(line.startswith((">>>", "    ", "- ", "|", "* ")) for line in lines) > 1
        for sentence in ["\n".join(lines)] if laid_out else SENTENCE_END.split(" ".join(paragraph.split())):
            if len(sentence.split()) in WORDS_OF_SENTENCE and len(sentence) < 800:
                yield sentence


def foreign_sentences(seed: int, count: int = 1500) -> list[str]:
    """Made-up sentences of every script: some thousand words each, drawn by Zipf's law; a few have emoji."""
    generator = random.Random(f"scripts {seed}")
    sentences = []
    for script, (ranges, mark_range) in SCRIPTS.items():
        letters, marks = characters(ranges), characters(mark_range)
        words = [word_of(generator, letters, marks) for _ in range(3000)]
        weights = [1 / (rank + 10) for rank in range(len(words))]
        joint, end = ("", "。") if script in WITHOUT_SPACES else (" ", ".")
        for _ in range(count):
            chosen = generator.choices(words, weights, k=generator.randint(6, 25))
            chosen[0] = chosen[0].capitalize()
            emoji = generator.choice(EMOJI) if generator.random() < 0.05 else ""
            sentences.append(joint.join(chosen) + end + emoji)
    return sorted(set(sentences))


def word_of(generator: random.Random, letters: str, marks: str) -> str:
    chosen = generator.choices(letters, k=generator.randint(1, 9))
    return "".join(c + (generator.choice(marks) if marks and generator.random() < 0.3 else "") for c in chosen)


def characters(ranges: str) -> str:
    """`a-cx` is `abcx`."""
    found, at = "", 0
    while at < len(ranges):
        if ranges[at + 1 : at + 2] == "-":
            found += "".join(map(chr, range(ord(ranges[at]), ord(ranges[at + 2]) + 1)))
            at += 3
        else:
            found += ranges[at]
            at += 1
    return found


# Documents


class Writer:
    """Draws documents, as lists of sentences."""

    def __init__(self, sentences: dict[str, list[str]], seed: int):
        self.generator = np.random.Generator(np.random.PCG64(seed))
        self.pools = {**sentences, "scripts": foreign_sentences(seed)}
        self.sources = list(self.pools)
        sizes = np.array([sum(map(len, sentences[source])) for source in sentences], float)
        self.shares = np.append(sizes / sizes.sum() * (1 - FOREIGN_SHARE), FOREIGN_SHARE)

    def draw(self) -> tuple[str, list[str]]:
        """The source of a document and its sentences, none twice; in one of five a foreign sentence among them."""
        length = MEDIAN_BYTES * np.exp(SPREAD * self.generator.standard_normal())
        length = min(max(length, FEWEST_BYTES), MOST_BYTES)
        source = self.sources[self.generator.choice(len(self.sources), p=self.shares)]
        pool, chosen, total = self.pools[source], {}, 0
        while total < length and len(chosen) < len(pool) // 2:
            for at in self.generator.integers(0, len(pool), max(4, int((length - total) / 120))):
                if total >= length:
                    break
                sentence = pool[at]
                if chosen.setdefault(sentence) is None:
                    total += len(sentence.encode()) + 1
        sentences = list(chosen)
        if self.generator.random() < 0.2:
            scripts = self.pools["scripts"]
            sentences[int(self.generator.integers(len(sentences)))] = scripts[
                int(self.generator.integers(len(scripts)))
            ]
        return source, sentences

    def other_sentences(self, source: str, count: int) -> list[str]:
        pool = self.pools[source]
        return [pool[at] for at in self.generator.integers(0, len(pool), count)]


def text_of(sentences: list[str]) -> str:
    """Four sentences a paragraph; what is laid out in lines stands by itself."""
    parts: list[str] = []
    for number, sentence in enumerate(sentences):
        breaks = number % 4 == 0 or "\n" in sentence or "\n" in sentences[number - 1]
        parts += ["" if not number else "\n\n" if breaks else " ", sentence]
    return "".join(parts)


# Planted pairs


def plant(writer: Writer, count: int) -> list[tuple[str, Planted]]:
    """At least `count` pairs in [0.75, 1] and as many in [0.4, 0.75), and their sources."""
    planted: list[tuple[str, Planted]] = []
    missing = {True: count, False: count}
    while any(missing.values()):
        above = missing[True] > 0
        target = writer.generator.uniform(0.75, 1) if above else writer.generator.uniform(0.4, 0.75)
        source, first = writer.draw()
        second = changed(writer, source, first, target)
        jaccard = similarity(text_of(first), text_of(second))
        if jaccard == 1 and writer.generator.random() < 0.8:
            continue  # a short document easily comes back unchanged
        if jaccard >= 0.4 and missing[jaccard >= 0.75] > 0:
            missing[jaccard >= 0.75] -= 1
            planted.append((source, Planted(first, second, jaccard)))
    return planted


def similarity(first: str, second: str, ngram: int = 5) -> float:
    """The exact Jaccard similarity of two texts as dedup defines it."""
    shingled = shingle_texts(*text_buffers(pa.array([first, second])), ngram)
    a, b = set(shingled.shingles[: shingled.ends[1]].tolist()), set(shingled.shingles[shingled.ends[1] :].tolist())
    return len(a & b) / len(a | b)


def changed(writer: Writer, source: str, sentences: list[str], target: float) -> list[str]:
    """A copy of about the wished similarity, changed in one of four ways."""
    way = int(writer.generator.integers(4))
    n = len(sentences)
    if way == 0:  # a replaced word is in 5 shingles: of x = 5 m / n changed, (1 - x) / (1 + x) stay common
        return with_words_replaced(writer, sentences, (1 - target) / (1 + target) / 5)
    if way == 1:  # sentences taken out
        kept = writer.generator.random(n) < target
        return [sentence for sentence, stays in zip(sentences, kept, strict=True) if stays] or sentences[:1]
    if way == 2:  # sentences put in at one place
        at, count = int(writer.generator.integers(n + 1)), round(n * (1 - target) / target)
        return [*sentences[:at], *writer.other_sentences(source, count), *sentences[at:]]
    at, count = int(writer.generator.integers(n)), round(n * (1 - target) / (1 + target))  # others in their place
    return [*sentences[:at], *writer.other_sentences(source, count), *sentences[at + count :]]


def with_words_replaced(writer: Writer, sentences: list[str], share: float) -> list[str]:
    """Every so many words another one, which is no word of the corpus."""
    result = []
    for sentence in sentences:
        words = re.split(r"(\s+)", sentence)
        for at in range(0, len(words), 2):
            if writer.generator.random() < share:
                words[at] = f"changed{int(writer.generator.integers(1 << 40)):x}"
        result.append("".join(words))
    return result


# The corpus


def write_corpus(out: Path, n_bytes: int, writer: Writer, planted: list[tuple[str, Planted]]) -> int:
    """Streams documents, with the members of pairs strewn among them. Gives the number of documents."""
    members = [(source, text_of(sentences)) for source, pair in planted for sentences in pair[:2]]
    places = np.sort(writer.generator.random(len(members))) * n_bytes
    order = writer.generator.permutation(len(members))
    names = [""] * len(members)
    shards = ShardWriter(out / "documents", SCHEMA, READ_OFTEN)
    number = written = waiting = 0
    while written < n_bytes or waiting < len(members):
        split = "train"
        if waiting < len(members) and (places[waiting] <= written or written >= n_bytes):
            source, text = members[order[waiting]]
            names[order[waiting]] = f"{number:09d}"
            waiting += 1
        else:
            source, sentences = writer.draw()
            text = text_of(sentences)
            split = {0: "validation", 1: "test"}.get(int(writer.generator.integers(400)), "train")
        shards.add({"id": f"{number:09d}", "text": text, "source": source, "split": split})
        number, written = number + 1, written + len(text.encode())
    shards.close()
    table = {"id_a": names[::2], "id_b": names[1::2], "jaccard": [pair.jaccard for _, pair in planted]}
    pq.write_table(pa.table(table), out / "pairs.parquet")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, default=160e6, help="of UTF-8 text, such as 2e7 or 4e9")
    parser.add_argument("--out", type=Path, required=True, help="a folder; what is in it is replaced")
    parser.add_argument("--texts", type=Path, help="a folder with .txt files and .parquet files with a column `text`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, help="planted pairs on each side of 0.75")
    arguments = parser.parse_args()
    n_bytes = int(arguments.bytes)
    n_pairs = min(MOST_PAIRS, n_bytes // BYTES_PER_PAIR) if arguments.pairs is None else arguments.pairs
    sentences = harvest(Path("constraints.txt"), arguments.texts)
    writer = Writer(sentences, arguments.seed)
    for old in (arguments.out / "documents").glob("*.parquet"):
        old.unlink()
    planted = plant(writer, n_pairs)
    n_documents = write_corpus(arguments.out, n_bytes, writer, planted)
    drawn_from = hashlib.sha256("\0".join(sentence for pool in sentences.values() for sentence in pool).encode())
    manifest = {
        "bytes": n_bytes, "documents": n_documents, "pairs": len(planted), "seed": arguments.seed,
        "sentences": {source: len(pool) for source, pool in writer.pools.items()},
        "sentences_sha256": drawn_from.hexdigest(),
    }  # fmt: skip
    (arguments.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(json.dumps(manifest, indent=2))


if __name__ == "__main__":
    main()
