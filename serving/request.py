"""What is asked of the engine, and what it hands out.

A request is answered in pieces. Each holds the text that is certain by now, which may be empty while a character or
a stop string is not decided yet, and the tokens drawn since the piece before. The last one says why it ended:

    Piece(text="Hel", tokens=(..,))    Piece(text="lo", tokens=(..,), finish="length")
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from model.sampling import Sampling

GREEDY = Sampling(temperature=0.0)
Finish = Literal["stop", "length", "cancelled", "error"]


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: 0 reads the prompt and writes nothing.
        ends: tokens after which nothing follows; they are not part of the text.
        stop: strings before which the text ends.
        top_logprobs: how many alternatives each token is reported with; None reports no probabilities at all.
        scored: whether the tokens of the prompt are reported as well.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0
    ends: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    scored: bool = False


@dataclasses.dataclass(frozen=True)
class Token:
    """One token. Logarithms of the model's own probabilities, before temperature and the like.

    Attributes:
        logprob: None where none is wanted, and of the first token of a prompt, which nothing foretells.
        top: the most probable tokens and their logarithms, best first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
    text: str
    tokens: tuple[Token, ...] = ()
    finish: Finish | None = None
    prompt: tuple[Token, ...] = ()  # of a scored one, in its order
