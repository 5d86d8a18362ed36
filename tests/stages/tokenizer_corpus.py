"""Texts that are hard to encode, files of other makers, and a run of the stage `tokenizer`."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from stages.files import file_sha256
from stages.pretoken_rules import GPT4, Rule, pre_tokenizer
from stages.tokenizer.params import TokenizerParams
from stages.tokenizer.stage import run
from stages.vocabulary import byte_characters
from tests.stages.corpus import Document, prose, run_stage, write_corpus

PARAMS = TokenizerParams(vocab_size=480)
EXTRA = ["[MASK]", "<extra_id_0>", "<|tool|>"]
TORTURE = [
    "",
    " ",
    "\n\n\n \t\r\n \r",
    "\x00\x01\x7f\x80\x85\xa0\xad",
    "a\u0301 e\u0301\u0323 \u0345",  # combining marks
    "ﬁ ſ K İ ı ß ẞ",
    "العربية ١٢٣٤ עברית हिन्दी ไทย",
    "漢字かな交じり文。한국어",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 \U0001f9ff",
    "\ufeff\u200b\u200d\u2028\u2029\u202e\ufffd\uffff\U0010ffff",
    "1234567890 ½ Ⅻ ² 1,234.5e-6",
    "don't DON'T we'LL 'ſ ''' '",
    "def f(x):\n\treturn x  # 'quoted'\n\n\n    pass",
    "Ġ Ċ ĉ Ā â€œ",  # what the bytes themselves are written as
    "=" * 300 + "-" * 70 + "a" * 500 + " " * 90,
]


def documents(n: int = 60, n_words: int = 80) -> list[Document]:
    splits = ["test", "validation", *["train"] * 8]
    return [Document(f"d{seed}", prose(seed, n_words), splits[seed % 10]) for seed in range(n)]


def train(root: Path, params: TokenizerParams = PARAMS, corpus: list[Document] | None = None, **options) -> Path:
    write_corpus(root, documents() if corpus is None else corpus, **options)
    return run_stage(run, root, tokenizer=params)


def metrics(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


def decoded(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False)


def pieces(text: str, max_digits: int = 3) -> list[str]:
    return [text[a:b] for _, (a, b) in pre_tokenizer(Rule(GPT4, max_digits)).pre_tokenize_str(text)]


def foreign(path: Path, names: list[str], **changes) -> Path:
    """GPT-2's kind of file, with special tokens of these names behind the merges."""
    tokenizer = Tokenizer(models.BPE({c: n for n, c in enumerate(sorted(byte_characters()))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names)
    path.write_text(json.dumps({**json.loads(tokenizer.to_str()), **changes}))
    return path


def taking(path: Path, **params) -> TokenizerParams:
    return TokenizerParams(file=str(path), file_sha256=file_sha256(path), **params)
