"""Encodes much text to the ids that Hugging Face tokenizers give, many times as fast.

    encoder = Encoder(load_tokenizer(path))
    encoder(["don't panic"])                         # [uint32[..]]
    ids, id_offsets = encoder.encode_buffers(data, offsets)   # of Arrow's buffers (stages/utf8.py)

Compiled kernels cut the text (stages/pretokens.py), look each piece up (stages/encoding_kernel.py) and
merge the bytes of what is new (stages/byte_pairs.py). What they can do is read off the tokenizer itself:
byte-level BPE, cut as ours, GPT-2's, GPT-4's, Llama 3's or Qwen 2's is cut. Every other tokenizer
encodes by itself, with the same result and its own speed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.pretoken_rules import Rule, rule_of
from stages.unicode import tables
from stages.utf8 import Bytes, Offsets, text_array, text_buffers
from stages.vocabulary import byte_characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from stages.encoding_kernel import Vocabulary

Ids = npt.NDArray[np.uint32]

N_SLOTS = 1 << 19  # of the table: 16 MB, half as many pre-tokens
CHUNK_BYTES = 8 << 20  # of text that is encoded at a time
MAX_ID = 1 << 31


class Encoder:
    """Encodes texts to the ids of `tokenizer.encode(text, add_special_tokens=False)`.

    Attributes:
        compiled: how the kernels encode; None if they cannot, and the tokenizer itself does.
    """

    def __init__(self, tokenizer: Tokenizer, n_slots: int = N_SLOTS):
        self.tokenizer = tokenizer
        self.compiled = Compiled.of(tokenizer)
        if self.compiled:
            from stages.encoding_kernel import forget, new_table

            while n_slots < 4 * len(self.compiled.vocabulary.whole_ids):
                n_slots *= 2
            self.table = new_table(n_slots)
            forget(self.table, self.compiled.vocabulary)

    def __call__(self, texts: list[str]) -> list[Ids]:
        """The ids of each text, uint32[n]."""
        ids, id_offsets = self.encode_buffers(*text_buffers(pa.array(texts, pa.large_string())))
        return np.split(ids, id_offsets[1:-1]) if texts else []

    def encode_buffers(self, data: Bytes, offsets: Offsets) -> tuple[Ids, Offsets]:
        """The ids of all texts end to end, uint32[n], and where those of each begin and end, int64[texts + 1]."""
        parts: list[Ids] = []
        id_offsets = np.zeros(len(offsets), np.int64)
        first = 0
        while first < len(offsets) - 1:
            last = int(np.searchsorted(offsets, offsets[first] + CHUNK_BYTES, "right")) - 1
            last = max(last, first + 1)  # a text that is longer stands alone
            ids, ends = self._encode_chunk(data[offsets[first] : offsets[last]], offsets[first : last + 1])
            id_offsets[first + 1 : last + 1] = id_offsets[first] + ends
            parts.append(ids)
            first = last
        return np.concatenate(parts) if parts else np.empty(0, np.uint32), id_offsets

    def _encode_chunk(self, data: Bytes, offsets: Offsets) -> tuple[Ids, Offsets]:
        """The ids, and where those of each text end."""
        offsets = offsets - offsets[0]
        if self.compiled is None:
            encoded = self.tokenizer.encode_batch_fast(text_array(data, offsets).to_pylist(), add_special_tokens=False)
            ends = np.cumsum([len(encoding.ids) for encoding in encoded])
            return np.concatenate([np.asarray(encoding.ids, np.uint32) for encoding in encoded]), ends
        if self.compiled.normalises and len(data) and data.max() >= 0x80:
            normalise = self.tokenizer.normalizer.normalize_str
            data, offsets = text_buffers(pa.array(map(normalise, text_array(data, offsets).to_pylist())))
        from stages.byte_keys import words_of
        from stages.encoding_kernel import encode_texts

        data = data[:]
        data.flags.writeable = False  # one type of array, so that the kernel is compiled once
        ids, id_offsets = np.empty(len(data), np.uint32), np.zeros(len(offsets), np.int64)
        style, max_digits = self.compiled.rule
        vocabulary, table = self.compiled.vocabulary, self.table
        classes, _ = tables()
        count = encode_texts(
            data, words_of(data), offsets, classes, style, max_digits, vocabulary, table, ids, id_offsets
        )
        return ids[:count].copy(), id_offsets[1:]


class Compiled(NamedTuple):
    """A tokenizer as the kernels take it. `normalises`: text that is not ASCII becomes NFC first."""

    rule: Rule
    vocabulary: Vocabulary
    normalises: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Compiled | None:
        """None if the kernels could give other ids than the tokenizer."""
        described = json.loads(tokenizer.to_str())
        rule = rule_of(described["pre_tokenizer"])
        normalizer = described["normalizer"]
        simple = (
            rule is not None
            and is_plain_bpe(described["model"])
            and described["truncation"] is described["padding"] is None
            and normalizer in (None, {"type": "NFC"})
            and tokenizer.encode_special_tokens
            and all(token["special"] for token in described["added_tokens"])
        )
        vocabulary = _vocabulary(described["model"]) if simple else None
        return cls(rule, vocabulary, normalizer is not None) if rule and vocabulary else None


def is_plain_bpe(model: dict[str, Any]) -> bool:
    """Whether it is BPE that merges bytes and does nothing else."""
    return (
        model["type"] == "BPE"
        and not model["dropout"]
        and not model["continuing_subword_prefix"]
        and not model["end_of_word_suffix"]
        and not model["byte_fallback"]
    )


def _vocabulary(model: dict[str, Any]) -> Vocabulary | None:
    """None if a byte has no id, an id is too large, or a pair is merged twice."""
    from stages.byte_pairs import pair_table
    from stages.encoding_kernel import LONGEST_KEPT, Vocabulary

    id_of, byte_of = model["vocab"], {character: byte for byte, character in enumerate(byte_characters())}
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    if not all(character in id_of for character in byte_of) or max(id_of.values()) >= MAX_ID:
        return None
    if len(set(merges)) != len(merges):
        return None
    left, right, merged = (
        np.array([id_of[token] for token in tokens], np.uint32)
        for tokens in ([a for a, _ in merges], [b for _, b in merges], [a + b for a, b in merges])
    )
    byte_ids = np.array([id_of[character] for character in byte_of], np.uint32)
    whole = {}
    if model["ignore_merges"]:
        whole = {
            bytes(map(byte_of.__getitem__, token)): number
            for token, number in id_of.items()
            if token and byte_of.keys() >= set(token)
        }
        if any(len(token) > LONGEST_KEPT for token in whole):
            return None
    data = np.frombuffer(b"".join(whole), np.uint8)
    offsets = np.cumsum([0, *map(len, whole)], dtype=np.int64)
    return Vocabulary(
        byte_ids, pair_table(left, right, merged), data, offsets, np.array(list(whole.values()), np.uint32)
    )
