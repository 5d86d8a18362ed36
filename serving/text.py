"""Text from tokens as they come: whole characters only, and nothing of a stop string.

A character may be split over tokens, so the text of the newest ones may end in marks of a broken character; those
are held back until it is whole or known to be broken. It has four bytes at most, so what is older than three tokens
is known: it is handed out, and not decoded again. A stop string may be split as well: as long as the text ends like
the beginning of one, that end is held back.

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
OPEN = 3  # tokens, of a byte or more, that a character which is not whole yet may have


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
        if not text.endswith(BROKEN):
            new = text[self._handed :]
            self._context, self._start, self._handed = self._start, len(self._ids), 0
            return self._before_stop(new)
        certain = len(text.rstrip(BROKEN))
        known_until = self._known_until(known, text) if len(self._ids) - self._start > 2 * OPEN else None
        if known_until is not None:
            place, length = known_until
            certain = max(certain, length)
        new = text[self._handed : certain]
        self._handed = max(certain, self._handed)
        if known_until is not None:
            self._context, self._start, self._handed = self._start, place, self._handed - length
        return self._before_stop(new)

    def _known_until(self, known: str, text: str) -> tuple[int, int] | None:
        """The token before which no further one can change the text, and the length of the text up to there. Where
        a place is in the middle of a character, the parts are not the whole; then it is one before."""
        for place in range(len(self._ids) - OPEN, len(self._ids) - 2 * OPEN - 1, -1):
            head = self.tokenizer.decode(self._ids[self._context : place])
            beside = self.tokenizer.decode(self._ids[self._start : place])
            tail = self.tokenizer.decode(self._ids[self._start :])[len(beside) :]
            if head + tail == known + text:
                return place, len(head) - len(known)
        return None

    def finish(self) -> str:
        """What was held back, at the end of all tokens."""
        known = self.tokenizer.decode(self._ids[self._context : self._start])
        text = self.tokenizer.decode(self._ids[self._context :])[len(known) :]
        rest = self._before_stop(text[self._handed :]) + self._pending
        self._pending = ""
        return rest

    def _before_stop(self, new: str) -> str:
        if not self.stop or self.stopped:
            return "" if self.stopped else new
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
