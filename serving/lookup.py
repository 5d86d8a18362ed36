"""Guesses the next tokens of a text from the text itself (prompt lookup; Saxena, 2023; speculative decoding:
Leviathan et al., 2023).

Where the last three tokens stood before, or else the last two, what followed them there may follow here:

    the cat sat on the mat . the cat sat | on the mat .        "the cat sat" stood at the beginning
    a b a b a                            | b a b a             a guess may reach into itself

The engine has the model read all guesses at once, which costs little more than one token where weights are to be
fetched from memory, and draws behind each as it would have without: with the request's own generator, from the
model's distribution. While what is drawn is what was guessed, the next place is right as well. So the text is the
same as without guesses, drawn or greedy, and a guess of probability p is right with probability p: that is what
rejection sampling comes to where the guess is certain of itself.
"""

from __future__ import annotations

from collections.abc import Sequence

SIZES = (3, 2)  # of the runs that are looked up, the longest first


class Lookup:
    """A growing text and where each run of tokens stood last."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens: list[int] = []
        self.behind: dict[tuple[int, ...], int] = {}  # the place behind the last time it stood, but for the very end
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        for size in SIZES:
            if len(self.tokens) >= size:
                self.behind[tuple(self.tokens[-size:])] = len(self.tokens)
        self.tokens.append(token)

    def guesses(self, most: int) -> list[int]:
        """Up to so many tokens that may come next; none where the end has not stood before."""
        starts = (self.behind.get(tuple(self.tokens[-size:])) for size in SIZES)
        start = next((place for place in starts if place is not None), None)
        if start is None:
            return []
        grown = self.tokens[start:]
        for place in range(most - len(grown)):
            grown.append(grown[place])
        return grown[:most]
