"""Text from tokens: whole characters, stop strings over boundaries, and in sum what the tokenizer decodes."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models

from serving.text import TextStream, overlap

TEXTS = ["plain words", "é, 漢字 and 😀😀", "👩‍👩‍👧 family", "\ufffd itself, and 😀"]


def byte_tokens(exported, text: bytes) -> list[int]:
    """One token for each byte: the hardest cut."""
    from stages.vocabulary import byte_characters

    table = byte_characters()
    return [exported.tokenizer.token_to_id(table[byte]) for byte in text]


def pieces(exported, ids: list[int], stop=()) -> list[str]:
    stream = TextStream(exported.tokenizer, stop)
    found = [stream.push(token) for token in ids]
    return [*found, stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_characters_are_never_broken(exported, text):
    found = pieces(exported, byte_tokens(exported, text.encode()))
    assert "".join(found) == text
    assert all("\ufffd" not in piece for piece in found) or "\ufffd" in text


def test_bytes_that_are_no_text_come_as_the_tokenizer_decodes_them(exported):
    generator = random.Random(0)
    for _ in range(400):
        raw = bytes(generator.choice(b"a\x80\xe2\x82\xac\xf0\x9f\x98\x80\xff") for _ in range(generator.randrange(40)))
        ids = byte_tokens(exported, raw)
        assert "".join(pieces(exported, ids)) == exported.tokenizer.decode(ids)


def test_broken_bytes_are_not_held_back_for_ever(exported):
    stream = TextStream(exported.tokenizer)
    handed = [stream.push(token) for token in byte_tokens(exported, b"\x80" * 50)]
    assert 43 <= sum(map(len, handed)) <= 47, "the last few may be the beginning of something"


@pytest.mark.parametrize("raw", [b"\x80", b"\xe2\x82", b"\xf0\x9f\x98", b"\xff\xf0\x9f\x98", b"\xef\xbf\xbd"])
def test_broken_bytes_are_not_decoded_again_and_again(exported, raw):
    longest = 0

    class Counting:
        def decode(self, ids):
            nonlocal longest
            longest = max(longest, len(ids))
            return exported.tokenizer.decode(ids)

    ids = byte_tokens(exported, raw * 100 + "😀".encode())
    stream = TextStream(Counting())
    assert "".join([*(stream.push(token) for token in ids), stream.finish()]) == exported.tokenizer.decode(ids)
    assert longest < 20


def test_characters_are_whole_where_a_tokenizer_falls_back_to_bytes():
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab={**vocabulary, "<unk>": 256}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    for text in TEXTS:
        stream = TextStream(tokenizer)
        assert "".join([*(stream.push(byte) for byte in text.encode()), stream.finish()]) == text


@pytest.mark.parametrize("stop", [("END",), ("ND", "END"), ("xyz", "END of")])
def test_a_stop_string_is_found_over_tokens(exported, stop):
    ids = byte_tokens(exported, b"the ENough END of it")
    stream = TextStream(exported.tokenizer, stop)
    text = "".join(stream.push(token) for token in ids) + stream.finish()
    whole = "the ENough END of it"
    assert text == whole[: min(whole.find(s) for s in stop if s in whole)]
    assert stream.stopped


def test_what_looked_like_a_stop_string_is_handed_out_at_the_end(exported):
    assert "".join(pieces(exported, byte_tokens(exported, b"the EN"), ("END",))) == "the EN"


def test_of_two_stop_strings_the_first_in_the_text_counts(exported):
    assert "".join(pieces(exported, byte_tokens(exported, b"abcd"), ("cd", "b"))) == "a"


def test_overlap():
    assert [overlap(text, "aab") for text in ("x", "a", "aa", "aaa", "aab", "")] == [0, 1, 2, 2, 0, 0]
