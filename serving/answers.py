"""What goes back, in the shapes of OpenAI's API: whole answers, chunks of a stream, errors.

A whole answer is made of the pieces of a stream put together, so both hold the same bytes.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from tokenizers import Tokenizer

from serving.request import Piece, Token
from stages.vocabulary import byte_characters

Kind = Literal["chat", "text"]
DONE = "data: [DONE]\n\n"
TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 408: "timeout_error",
         413: "invalid_request_error", 429: "rate_limit_error"}  # fmt: skip


class Refused(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.content = status, error(status, message, param, code)


def error(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    message = message.encode(errors="replace").decode()  # it may quote what came in
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"


class TokenTexts:
    """What single tokens stand for; half a character is bytes that are no text."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.byte_of: dict[str, int] = {}
        if type(tokenizer.decoder).__name__ == "ByteLevel":
            self.byte_of = {character: byte for byte, character in enumerate(byte_characters())}
        added = tokenizer.get_added_tokens_decoder()
        self.added = {number: token.content for number, token in added.items()}
        self.hidden = {number for number, token in added.items() if token.special}  # such as the one that begins a text

    def bytes_of(self, token: int) -> bytes:
        if token in self.added:
            return self.added[token].encode()
        written = self.tokenizer.id_to_token(token) or ""  # the model's vocabulary may be larger than the tokenizer's
        if self.byte_of and all(character in self.byte_of for character in written):
            return bytes(self.byte_of[character] for character in written)
        return self.tokenizer.decode([token], skip_special_tokens=False).encode()

    def text_of(self, token: int) -> str:
        """Bytes that are no text by themselves are written out, as `bytes:\\xe2\\x82`."""
        found = self.bytes_of(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


@dataclasses.dataclass
class Answer:
    """One answer while it grows.

    Attributes:
        prompt_tokens: of all prompts. top_logprobs: None where no probabilities are wanted.
    """

    kind: Kind
    model: str
    prompt_tokens: int
    texts: TokenTexts
    top_logprobs: int | None = None
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.kind == "chat" else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())
        self.offsets: dict[int, int] = {}
        self.decoders: dict[int, codecs.IncrementalDecoder] = {}  # hold what is no whole character yet

    def usage(self) -> dict[str, int]:
        total = self.prompt_tokens + self.completion_tokens
        return {
            "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens, "total_tokens": total,
        }  # fmt: skip

    def opening(self, n: int) -> list[dict[str, Any]]:
        """The chunks with which the stream of a chat begins: whose turn it is, for each choice."""
        if self.kind == "text":
            return []
        return [self._stream(index, {"delta": {"role": "assistant", "content": ""}}, None) for index in range(n)]

    def chunk(self, index: int, piece: Piece) -> dict[str, Any]:
        """One piece of one choice, as a chunk of a stream."""
        said: dict[str, Any] = {"text": piece.text} if self.kind == "text" else {"delta": {"content": piece.text}}
        if self.kind == "chat" and not piece.text and piece.finish:
            said = {"delta": {}}
        return self._stream(index, {**said, "logprobs": self.logprobs(index, piece)}, piece.finish)

    def last_chunk(self) -> dict[str, Any]:
        """Usage, which has a chunk of its own without choices."""
        return {**self._head(True), "choices": [], "usage": self.usage()}

    def whole(self, choices: Sequence[Sequence[Piece]], before: Sequence[str]) -> dict[str, Any]:
        """All pieces of all choices as one answer; `before` each stands its prompt, if that is to be echoed."""
        made = []
        for index, (pieces, prompt) in enumerate(zip(choices, before, strict=True)):
            text = "".join(piece.text for piece in pieces)
            tokens = [token for piece in pieces for token in (*piece.prompt, *piece.tokens)]  # a prompt, if scored
            one = Piece(text, tuple(tokens), pieces[-1].finish)
            if self.kind == "text":
                said: dict[str, Any] = {"text": prompt + text}
            else:
                said = {"message": {"role": "assistant", "content": text, "refusal": None}}
            made.append({"index": index, **said, "logprobs": self.logprobs(index, one), "finish_reason": one.finish})
        return {**self._head(False), "choices": made, "usage": self.usage()}

    def logprobs(self, index: int, piece: Piece) -> dict[str, Any] | None:
        if self.top_logprobs is None:
            return None
        if self.kind == "chat":
            return {"content": [self._chat_logprob(token) for token in piece.tokens], "refusal": None}
        return {
            "tokens": [self.texts.text_of(token.id) for token in piece.tokens],
            "token_logprobs": [token.logprob for token in piece.tokens],
            "top_logprobs": [self._top(token) for token in piece.tokens],
            "text_offset": [self._offset(index, token.id) for token in piece.tokens],
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """The most probable tokens, and the token itself, where it is none of them."""
        if token.logprob is None:
            return None
        return {self.texts.text_of(number): value for number, value in (*token.top, (token.id, token.logprob))}

    def _offset(self, index: int, token: int) -> int:
        """Where a token begins in the text of its choice, in characters; to be asked of every token in order. One that
        is not in the text takes no place there, and one within a character has that character's."""
        decoder = self.decoders.setdefault(index, codecs.getincrementaldecoder("utf-8")("replace"))
        begin = self.offsets.get(index, 0)
        shown = b"" if token in self.texts.hidden else self.texts.bytes_of(token)
        self.offsets[index] = begin + len(decoder.decode(shown))
        return begin

    def _chat_logprob(self, token: Token) -> dict[str, Any]:
        def entry(number: int, value: float | None) -> dict[str, Any]:
            return {
                "token": self.texts.text_of(number), "logprob": value, "bytes": list(self.texts.bytes_of(number)),
            }  # fmt: skip

        return {**entry(token.id, token.logprob), "top_logprobs": [entry(*one) for one in token.top]}

    def _head(self, streamed: bool) -> dict[str, Any]:
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        name += ".chunk" if streamed and self.kind == "chat" else ""
        return {"id": self.id, "object": name, "created": self.created, "model": self.model}

    def _stream(self, index: int, said: dict[str, Any], finish: str | None) -> dict[str, Any]:
        return {**self._head(True), "choices": [{"index": index, **said, "finish_reason": finish}]}
