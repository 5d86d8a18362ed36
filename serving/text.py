"""Text from tokens as they come: whole characters only, and nothing of a stop string.

A character may be split over tokens, so the text of the newest ones may end in the mark of a broken character; that
one mark is held back until it is whole or known to be broken. A stop string may be split as well:
as long as the text ends like the beginning of one, that end is held back.

    stop "END", tokens "a E", "N", "ough" are handed out as "a ", "", "ENough"
    the bytes of an emoji in three tokens are handed out as "", "", "😀"

What is handed out, joined, is the decoded text up to the first stop string, however it was cut into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BROKEN = "\ufffd"


class TextStream:
    """The text of one growing sequence of tokens.

    Attributes:
        stopped: a stop string was met; whatever follows is not handed out.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.tokenizer, self.stop = tokenizer, stop
        self.stopped = False
        self._ids: list[int] = []
        self._context = 0  # tokens from here on are decoded: some decoders join a token to the one before
        self._start = 0  # the first whose text is not wholly handed on
        self._handed = 0  # characters from there that are handed on
        self._pending = ""  # may be the beginning of a stop string

    def push(self, token: int) -> str:
        """The text that is certain with this token."""
        self._ids.append(token)
        known = self.tokenizer.decode(self._ids[self._context : self._start])
        text = self.tokenizer.decode(self._ids[self._context :])[len(known) :]
        certain = text.removesuffix(BROKEN)
        new, self._handed = certain[self._handed :], len(certain)
        if certain == text:
            self._context, self._start, self._handed = self._start, len(self._ids), 0
        return self._before_stop(new)

    def finish(self) -> str:
        """What was held back, at the end of all tokens."""
        known = self.tokenizer.decode(self._ids[self._context : self._start])
        text = self.tokenizer.decode(self._ids[self._context :])[len(known) :]
        rest = self._before_stop(text[self._handed :]) + self._pending
        self._pending = ""
        return rest

    def _before_stop(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._pending + new
        found = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        if found:
            self.stopped, self._pending = True, ""
            return text[: min(found)]
        held = max((overlap(text, stop) for stop in self.stop), default=0)
        self._pending = text[len(text) - held :]
        return text[: len(text) - held]


def overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`, which is not the whole of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
