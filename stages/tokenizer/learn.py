"""From counted words to the merges of a byte-level BPE: sizes the arrays of the merge loop, and grows them.

    words  "low" 5, "lower" 2     merges  l o, lo w, e r, low er

Memory is about 12 bytes for each byte of distinct words: 4 for its cell and the rest for the places of
pairs. It does not grow with the corpus but with its distinct words.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.errors import Failed
from stages.memory import release_freed
from stages.tokenizer import merge_loop, merge_queue
from stages.tokenizer.merge_loop import Learning, Numbers
from stages.utf8 import Bytes, Offsets
from stages.vocabulary import byte_characters

N_BYTES = 256
FIRST_PAIRS, FIRST_BYTES, FIRST_PLACES = 1 << 18, 1 << 20, 1 << 16  # of the arrays, beyond what the words take
GROWTH = 1.5
MOST_CELLS = np.iinfo(np.int32).max


class Merges(NamedTuple):
    """What was learned.

    Attributes:
        tokens: the bytes of each token, by id from that of the first byte on.
        pairs: the merges in their order, as ids.
    """

    tokens: list[bytes]
    pairs: list[tuple[int, int]]


def byte_order() -> npt.NDArray[np.int32]:
    """The place of each byte in the alphabet, which is sorted by the characters that stand for bytes."""
    characters = byte_characters()
    alphabet = sorted(range(N_BYTES), key=characters.__getitem__)
    return np.argsort(alphabet).astype(np.int32)


def learn(
    data: Bytes, offsets: Offsets, counts: Numbers, n_special: int, vocab_size: int, min_frequency: int
) -> Merges:
    """The merges of Hugging Face's BpeTrainer for these words.

    Args:
        data, offsets: the distinct words, end to end, in any order.
        counts: how often each occurs.
        n_special: ids that are taken by special tokens.
    """
    learning = _first(data, offsets, counts, n_special, vocab_size)
    merge_loop.count_first_pairs(learning)
    while short := merge_loop.learn_merges(learning, vocab_size, min_frequency):
        learning = _grown(learning, short)
        release_freed()
    n_merges, n_tokens = learning.used[merge_loop.N_MERGES], learning.used[merge_loop.N_TOKENS]
    # a pair may be merged twice, when two merges made one of its tokens: as in Hugging Face, the last time counts
    pairs: dict[tuple[int, int], bool] = {}
    for left, right, _ in learning.merges[:n_merges].tolist():
        pairs.pop((left, right), None)
        pairs[left, right] = True
    text = learning.token_bytes.tobytes()
    tokens = [text[start : start + length] for start, length in learning.tokens[n_special:n_tokens].tolist()]
    return Merges(tokens, list(pairs))


def _first(data: Bytes, offsets: Offsets, counts: Numbers, n_special: int, vocab_size: int) -> Learning:
    """The words as bytes."""
    lengths = np.diff(offsets)
    order = np.argsort(-counts, kind="stable")
    n_cells = len(data) + len(counts) + 1
    if n_cells > MOST_CELLS:
        raise Failed(
            f"tokenizer: {len(data):,} bytes of distinct words are more than the merge loop can hold; drop text "
            "without spaces in clean, or take less text"
        )
    cells = np.empty(n_cells, np.int32)
    byte_ids = byte_order()
    merge_loop.fill_cells(data, offsets, order, byte_ids + np.int32(n_special), cells)
    starts = 1 + np.cumsum(lengths[order] + 1) - (lengths[order] + 1)
    falls = np.flatnonzero(np.diff(counts[order], prepend=-1))
    steps = np.stack([starts[falls], counts[order][falls]], axis=1)
    tokens = np.zeros((max(vocab_size, n_special + N_BYTES) + 1, 2), np.int64)
    tokens[n_special + byte_ids] = np.stack([np.arange(N_BYTES), np.ones(N_BYTES, np.int64)], axis=1)
    token_bytes = np.zeros(FIRST_BYTES, np.uint8)
    token_bytes[:N_BYTES] = np.arange(N_BYTES)
    used = np.zeros(7, np.int64)
    used[merge_loop.N_TOKENS], used[merge_loop.N_BYTES] = n_special + N_BYTES, N_BYTES
    return Learning(
        cells=cells,
        steps=steps,
        pairs=_free(2 * FIRST_PAIRS),
        lists=np.empty((FIRST_PAIRS, 2), np.int64),
        places=np.empty(n_cells + FIRST_PLACES, np.int32),
        queue=np.empty((FIRST_PAIRS, 3), np.int64),
        tokens=tokens,
        token_bytes=token_bytes,
        token_slots=np.zeros((1 << (4 * len(tokens)).bit_length(), 4), np.int64),
        merges=np.empty((2 * vocab_size, 3), np.int64),
        used=used,
    )


def _free(n_pairs: int) -> Numbers:
    return np.full((n_pairs, 3), -1, np.int64)


def _grown(learning: Learning, short: int) -> Learning:
    """With more room in the array that is short of it."""
    if short == merge_loop.PAIRS_FULL:
        pairs = _free(2 * len(learning.pairs))
        merge_loop.move_pairs(learning.pairs, pairs)
        return learning._replace(pairs=pairs)
    if short == merge_loop.LISTS_FULL:
        return learning._replace(lists=_longer(learning.lists), queue=_longer(learning.queue))
    if short == merge_loop.MERGES_FULL:
        return learning._replace(merges=_longer(learning.merges))
    if short == merge_loop.BYTES_FULL:
        return learning._replace(token_bytes=_longer(learning.token_bytes))
    queue = learning.queue[: learning.used[merge_loop.N_QUEUED]]
    keys = np.zeros(learning.used[merge_loop.N_LISTS], np.int64)
    keys[queue[:, merge_queue.LIST]] = queue[:, merge_queue.KEY]
    merge_loop.drop_stale_places(learning, keys)
    if learning.used[merge_loop.N_PLACES] > len(learning.places) / GROWTH:
        return learning._replace(places=_longer(learning.places))
    return learning


def _longer(array: npt.NDArray) -> npt.NDArray:
    longer = np.empty((int(len(array) * GROWTH) + 1, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
