"""Times the filters of Gopher, C4 and FineWeb in sequence beside datatrove's, and holds every verdict against its.

    python -m benchmarks.filters --peer /path/to/python-with-datatrove [--corpus FOLDER] [--bytes 6e6] [--repeat 5]

The same documents go through both, in one run, on one core: normalised text of `--corpus` (Parquet files
with a column `text`, such as benchmarks.make_corpus writes; default: documentation of installed packages),
and messy text made from it with a fixed seed: page leftovers, lists, repeated and foreign lines. datatrove
runs once (it takes minutes), in the interpreter `--peer`, which needs datatrove 0.10.1 with spaCy. CPU
seconds; ours are the median of `--repeat`. Filters are also compared one by one, because most documents
fail the first rules of the sequence. Prints a table of every difference by rule, the rate of each step of
clean, and exits with 1 if fewer than 99.9% of the verdicts are equal.
"""

# ruff: noqa: E501 (lists of samples and wide tables)

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.clean.html_text import html_to_text
from stages.clean.judge import judge
from stages.clean.params import CleanParams
from stages.clean.privacy import mask
from stages.clean.rules import C4, FINEWEB, GOPHER, RULES
from stages.clean.text import normalise, repair
from stages.download.python_docs import documents, find_pages
from stages.splits import SplitParams, split_of
from stages.utf8 import text_buffers

NAMES = {  # datatrove's reasons in the order of RULES without `empty`
    **dict(
        zip(("dup_para_frac", "dup_para_char_frac", "dup_line_frac", "dup_line_char_frac"), RULES[1:5], strict=True)
    ),
    **{f"top_{n}_gram": f"max_top_{n}gram_ratio" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"max_duplicate_{n}gram_ratio" for n in range(5, 11)},
    "gopher_short_doc": "min_words",
    "gopher_long_doc": "max_words",
    "gopher_below_avg_threshold": "min_mean_word_length",
    "gopher_above_avg_threshold": "max_mean_word_length",
    "gopher_too_many_hashes": "max_hash_ratio",
    "gopher_too_many_ellipsis": "max_ellipsis_ratio",
    "gopher_too_many_bullets": "max_bullet_line_ratio",
    "gopher_too_many_end_ellipsis": "max_ellipsis_line_ratio",
    "gopher_below_alpha_threshold": "min_alphabetic_ratio",
    "gopher_enough_stop_words": "min_stop_words",
    "lorem_ipsum": "drop_lorem_ipsum",
    "curly_bracket": "drop_curly_brackets",
    "too_few_sentences": "min_sentences",
    "line_punct_ratio": "min_punctuated_line_ratio",
    "short_line_ratio": "max_short_line_ratio",
    "char_dup_ratio": "max_repeated_line_ratio",
    "list_ratio": "max_line_end_ratio",
    "empty": "empty",
}
REPETITION = {rule: value for rule, value in GOPHER.items() if "duplicate" in rule or "gram" in rule}
QUALITY = {rule: value for rule, value in GOPHER.items() if rule not in REPETITION}
RUNS: dict[str, tuple[list[str], dict[str, Any]]] = {  # datatrove's filters, and our rules
    "sequence": (["repetition", "quality", "c4", "fineweb"], {**GOPHER, **C4, **FINEWEB}),
    "FineWeb's recipe": (
        ["repetition", "quality", "c4_open", "fineweb"],
        {**GOPHER, **C4, **FINEWEB, "drop_unpunctuated_lines": False},
    ),
    "Gopher repetition": (["repetition"], REPETITION),
    "Gopher quality": (["quality"], QUALITY),
    "C4": (["c4"], C4),
    "FineWeb": (["fineweb"], FINEWEB),
}
PEER = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
known = {"repetition": GopherRepetitionFilter(), "quality": GopherQualityFilter(), "c4": C4QualityFilter(),
         "c4_open": C4QualityFilter(filter_no_terminal_punct=False), "fineweb": FineWebQualityFilter()}
source, target, runs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
texts = pq.read_table(source)["text"].to_pylist()
known["quality"].filter(Document(text="Loads the tokenizer.", id="0"))
result = {}
for run, names in runs.items():
    started, verdicts = time.process_time(), []
    for text in texts:
        document, reason = Document(text=text, id="0"), None
        for name in names:
            try:
                verdict = known[name].filter(document)
            except ZeroDivisionError:
                verdict = False, "empty"
            passed, why = verdict if isinstance(verdict, tuple) else (verdict, "dropped")
            if not passed:
                reason = why
                break
        verdicts.append((reason, document.text if reason is None else None))
    result[run] = {"seconds": time.process_time() - started, "verdicts": verdicts}
json.dump(result, open(target, "w"))
"""


def corpus(folder: Path | None, n_bytes: float, seed: int) -> list[str]:
    """Normalised texts: half as they are found, half made messy."""
    generator = random.Random(seed)
    if folder:
        tables = (
            pq.read_table(path, columns=["text"])
            for path in sorted(folder.glob("**/*.parquet"))
            if "pairs" not in path.name
        )
        found = [text for table in tables for text in table["text"].to_pylist()]
    else:
        found = [row["text"] for row in documents(find_pages({}), 1)]
    generator.shuffle(found)
    texts: list[str] = []
    size = 0
    for text in found:
        text = normalise(text[:100_000] if generator.random() < 0.5 else messy(text[:20_000], generator))
        if text:
            texts.append(text)
            size += len(text)
        if size >= n_bytes:
            break
    return texts


def messy(text: str, generator: random.Random) -> str:
    """Prose of the text's sentences with what web pages have besides."""
    sentences = [re.sub(r"\s+", " ", part) for part in re.split(r"(?<=[.!?])\s+", text) if 20 < len(part) < 400]
    sentences = [part for part in sentences if sum(map(str.isalpha, part)) > 0.7 * len(part)] or [
        "There is nothing to see here."
    ]
    leftovers = (
        "By using this site you agree to our terms of use.",
        "Please enable JavaScript to see this page.",
        "[1] [edit]",
        "Lorem ipsum dolor sit amet.",
        "if (x) { return y; }",
        "- an item of a list",
        "\u2022 another item",
        "Read more...",
        "It is so[12] and was so [citation needed].",
        "Click here!!! $$$ BUY NOW >>> http://www.example.com/a?b=c#d",
        "\u732b\u304c\u5c4b\u6839\u306e\u4e0a\u3067\u5bdd\u3066\u3044\u307e\u3059\u3002",
        "\u0414\u043e\u0431\u0440\u044b\u0439 \u0434\u0435\u043d\u044c, \u043c\u0438\u0440!",
        "&nbsp;|&nbsp;Home&nbsp;|&nbsp;Contact",
        "x" * 1100,
        "It's 5km/h, i.e. don't; he'd've (U.S.) \u2014 \u201cwell-known\u201d :-)",
    )
    lines = []
    for _ in range(generator.randint(3, 25)):
        if generator.random() < 0.05:
            lines.append(generator.choice(leftovers))
        elif lines and generator.random() < 0.03:
            lines.append(generator.choice(lines))
        else:
            lines.append(" ".join(generator.choices(sentences, k=generator.randint(1, 5))))
    return generator.choice(("\n", "\n\n")).join(lines)


def ours(texts: list[str], rules: dict[str, Any]) -> tuple[list[tuple[str | None, str | None, float]], float]:
    """The rule, the text that is kept and the value for each document, and CPU seconds from Arrow to verdicts."""
    params = CleanParams(recipe="none", **rules)
    column = pa.array(texts, pa.large_string())
    judge(*text_buffers(column[:1]), params)
    started = time.process_time()
    found = judge(*text_buffers(column), params)
    seconds = time.process_time() - started
    kept = found.texts or texts
    verdicts = [
        (RULES[rule], None, value) if rule >= 0 else (None, text, value)
        for rule, text, value in zip(found.rules.tolist(), kept, found.values.tolist(), strict=True)
    ]
    return verdicts, seconds


def batched(texts: list[str], rules: dict[str, Any]) -> tuple[list[tuple[str | None, str | None, float]], float]:
    """As `ours`, in batches as the stage has them."""
    verdicts, seconds, batch, size = [], 0.0, [], 0
    for number, text in enumerate(texts):
        batch.append(text)
        size += len(text)
        if size >= 4 << 20 or number + 1 == len(texts):
            found, spent = ours(batch, rules)
            verdicts, seconds, batch, size = verdicts + found, seconds + spent, [], 0
    return verdicts, seconds


def compare(peer: list, mine: list, texts: list[str]) -> tuple[int, int, Counter, list[str]]:
    """Equal decisions, equal rules, the differences by rule, and some of them."""
    kept = rules = 0
    causes: Counter[str] = Counter()
    shown = []
    for (reason, peer_text), (rule, text, value), whole in zip(peer, mine, texts, strict=True):
        expected = NAMES[reason] if reason else None
        kept += (expected is None) == (rule is None)
        if expected == rule and (rule or peer_text.strip() == text.strip()):
            rules += 1
            continue
        cause = "text" if expected == rule else f"{expected} / {rule}"
        causes[cause] += 1
        if len(shown) < 10:
            shown.append(f"    {cause} (ours {value:.5g}): {whole[:70]!r}")
    return kept, rules, causes, shown


def steps(texts: list[str]) -> None:
    """MB a CPU second of what else clean does."""
    html = ["<p>" + text.replace("\n", "</p>\n<p>") + "</p>" for text in texts]
    n_bytes = sum(len(text.encode()) for text in texts)
    split = SplitParams()
    for name, function, given in (
        ("normalise", normalise, texts),
        ("mojibake test", repair, texts),
        ("split", lambda text: split_of(text, split), texts),
        ("HTML to text", html_to_text, html),
        ("mask_pii", mask, texts),
    ):
        started = time.process_time()
        for text in given:
            function(text)
        print(f"{name:18} {n_bytes / 1e6 / (time.process_time() - started):8.1f} MB/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a Python with datatrove 0.10.1 and spaCy; without it only ours is timed")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--bytes", type=float, default=6e6)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = corpus(options.corpus, options.bytes, options.seed)
    n_bytes = sum(len(text.encode()) for text in texts)
    print(f"python -m benchmarks.filters {' '.join(sys.argv[1:])}\n{len(texts):,} documents, {n_bytes / 1e6:.2f} MB\n")
    peer = run_peer(options.peer, texts) if options.peer else {}
    worst = 1.0
    print(
        f"{'':18} {'ours, s':>9} {'MB/s':>7} {'datatrove, s':>13} {'ratio':>7} {'same decision':>14} {'same rule and text':>19}"
    )
    for name, (_, rules) in RUNS.items():
        repeated = [batched(texts, rules) for _ in range(options.repeat)]
        seconds = statistics.median(spent for _, spent in repeated)
        line = f"{name:18} {seconds:9.3f} {n_bytes / 1e6 / seconds:7.1f}"
        if not peer:
            print(line)
            continue
        kept, same, causes, shown = compare(peer[name]["verdicts"], repeated[0][0], texts)
        worst = min(worst, same / len(texts))
        spent = peer[name]["seconds"]
        print(f"{line} {spent:13.2f} {spent / seconds:6.0f}x {kept / len(texts):14.3%} {same / len(texts):19.3%}")
        print(
            "\n".join([f"    {count} x {cause} (datatrove / ours)" for cause, count in causes.most_common()] + shown),
            end="\n" * bool(causes),
        )
        print("    dropped by datatrove:", dict(Counter(reason for reason, _ in peer[name]["verdicts"]).most_common(8)))
    print()
    steps(texts)
    sys.exit(worst < 0.999)


def run_peer(python: str, texts: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "texts.parquet"), Path(folder, "verdicts.json")
        pq.write_table(pa.table({"text": texts}), source)
        names = {run: filters for run, (filters, _) in RUNS.items()}
        subprocess.run([python, "-c", PEER, str(source), str(target), json.dumps(names)], check=True)
        return json.loads(target.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
