"""What a vocabulary is worth: bytes per token by source, tokens per word by script, its longest and unused tokens.

report.json holds the figures, report.html the same to read, both beside the tokenizers that
`tokenizer.compare` names. Fertility is tokens per word (a piece of the split pattern that has a letter),
by the script of its first letter: 1.0 where every word is one token. Scripts are named as Unicode names
their letters.
"""

from __future__ import annotations

import html
import unicodedata
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.encoding import Encoder
from stages.errors import BadInput
from stages.files import file_sha256, write_json
from stages.tokenizer.sample import Sample
from stages.utf8 import text_array, text_buffers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LISTED = 50  # tokens of a list
FEWEST_WORDS = 20  # of a script that is listed
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
td:first-child, th:first-child { text-align: left; } code { background: #eef; margin-right: .5rem; white-space: pre; }
"""


def write_report(
    folder: Path, tokenizer: Tokenizer, sample: Sample, compare: list[str], root: Path
) -> dict[str, float | int]:
    """Writes report.json and report.html, and gives the metrics of the stage."""
    texts, used = pa.array(sample.texts, pa.large_string()), np.zeros(tokenizer.get_vocab_size(), np.int64)
    report: dict[str, Any] = {"tokenizers": {"this": measure(tokenizer, texts, sample.sources, used)}}
    for name in compare:
        path = root / Path(name).expanduser()
        other, sha256 = open_other(path)
        report["tokenizers"][name] = {**measure(other, texts, sample.sources), "sha256": sha256}
    special = set(tokenizer.get_added_tokens_decoder())
    unused = [int(number) for number in np.flatnonzero(used == 0) if number not in special]
    written = [tokenizer.decode([number]) for number in range(len(used))]
    longest = sorted(set(range(len(used))) - special, key=lambda number: (-len(written[number]), number))[:LISTED]
    report["longest_tokens"] = [{"id": n, "text": written[n], "count": int(used[n])} for n in longest]
    report["unused_tokens"] = {"count": len(unused), "ids": unused}
    write_json(folder / "report.json", report)
    unused_texts = [written[number] for number in unused[:LISTED]]
    (folder / "report.html").write_text(page(report, unused_texts), encoding="utf-8")
    own = report["tokenizers"]["this"]
    return {
        "vocab_size": own["vocab_size"],
        "bytes_per_token": own["sources"]["all"]["bytes_per_token"],
        "unused_tokens": len(unused),
    }


def open_other(path: Path) -> tuple[Tokenizer, str]:
    """A tokenizer.json to compare with, and its sha256.

    Raises:
        BadInput: it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise BadInput(f"params.yaml: tokenizer.compare: {path}: not a tokenizer.json ({error})") from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, file_sha256(path)


def measure(
    tokenizer: Tokenizer, texts: pa.Array, sources: list[str], used: npt.NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Sizes by source and by script; `used` gets how often each token occurs."""
    encoder = Encoder(tokenizer)
    data, offsets = text_buffers(texts)
    ids, id_offsets = encoder.encode_buffers(data, offsets)
    if used is not None:
        used += np.bincount(ids, minlength=len(used))
    names, source_of = np.unique(np.array(sources, object).astype(str), return_inverse=True)
    n_bytes = np.bincount(source_of, np.diff(offsets), len(names)).astype(np.int64)
    n_tokens = np.bincount(source_of, np.diff(id_offsets), len(names)).astype(np.int64)
    sizes = {str(name): _size(int(b), int(t)) for name, b, t in zip(names, n_bytes, n_tokens, strict=True)}
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "sources": {**sizes, "all": _size(len(data), len(ids))},
        "scripts": fertility(encoder, texts),
    }


def _size(n_bytes: int, n_tokens: int) -> dict[str, Any]:
    return {"bytes": n_bytes, "tokens": n_tokens, "bytes_per_token": n_bytes / max(n_tokens, 1)}


def fertility(encoder: Encoder, texts: pa.Array) -> dict[str, dict[str, Any]]:
    """Tokens per word by script, the most frequent script first."""
    words, counts = distinct_words(texts)
    _, id_offsets = encoder.encode_buffers(*text_buffers(words))
    n_words: dict[str, int] = defaultdict(int)
    n_tokens: dict[str, int] = defaultdict(int)
    for word, count, tokens in zip(words.to_pylist(), counts, np.diff(id_offsets).tolist(), strict=True):
        letter = next(filter(str.isalpha, word), None)
        if letter is not None:
            script = unicodedata.name(letter, "other").split()[0].lower()
            n_words[script] += count
            n_tokens[script] += count * tokens
    frequent = sorted((script for script in n_words if n_words[script] >= FEWEST_WORDS), key=lambda s: (-n_words[s], s))
    return {s: {"words": n_words[s], "tokens_per_word": n_tokens[s] / n_words[s]} for s in frequent}


def distinct_words(texts: pa.Array) -> tuple[pa.Array, list[int]]:
    """The distinct pieces of the texts by the split of GPT-4, and how often each occurs."""
    from stages.pretoken_rules import GPT4, Rule
    from stages.tokenizer.count import count_texts

    counted = count_texts(texts, Rule(GPT4, 3))
    return text_array(counted.data, counted.offsets), counted.counts.tolist()


def page(report: dict[str, Any], unused: list[str]) -> str:
    """The report as HTML that needs no other file."""
    tokenizers = report["tokenizers"]
    heads = "".join(f"<th>{html.escape(name)}" for name in tokenizers)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Tokenizer</title>",
        f"<style>{STYLE}</style><h1>Tokenizer</h1><table><tr><th>vocabulary{heads}",
        "<tr><td>tokens" + "".join(f"<td>{t['vocab_size']:,}" for t in tokenizers.values()),
        f"</table><h2>Bytes per token</h2><table><tr><th>source<th>bytes{heads}",
    ]
    for source, size in tokenizers["this"]["sources"].items():
        row = "".join(f"<td>{t['sources'][source]['bytes_per_token']:.3f}" for t in tokenizers.values())
        parts.append(f"<tr><td>{html.escape(source)}<td>{size['bytes']:,}{row}")
    parts.append(f"</table><h2>Tokens per word</h2><table><tr><th>script<th>words{heads}")
    for script, size in tokenizers["this"]["scripts"].items():
        row = "".join(f"<td>{t['scripts'][script]['tokens_per_word']:.3f}" for t in tokenizers.values())
        parts.append(f"<tr><td>{html.escape(script)}<td>{size['words']:,}{row}")
    longest = [f"<code>{html.escape(repr(token['text']))}</code>" for token in report["longest_tokens"]]
    parts += ["</table><h2>Longest tokens</h2><p>", *longest]
    parts.append(f"<h2>{report['unused_tokens']['count']:,} tokens that the sample does not use</h2><p>")
    parts += [f"<code>{html.escape(repr(text))}</code>" for text in unused]
    return "\n".join(parts) + "\n"
