"""What cheap models make of the same test text, after exactly the training tokens that the model saw.

Four modified Kneser-Ney n-grams (kneser_ney.py) and zstd. Each predicts every event of the test text (events.py)
and is charged in bits per byte of it, so the five figures and the model's own can be compared.
A row that training read more than once counts once: repeating a text teaches an n-gram nothing.

What remains unequal: in the test text n-grams see across the cuts at which the model's context starts
afresh, and zstd refers to all that came before, earlier test documents included.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stages.evaluate import kneser_ney
from stages.evaluate.events import Events, in_bytes
from stages.evaluate.token_bytes import END_OF_DOCUMENT, TokenBytes
from stages.order import data_order
from stages.tokens import TokenRows

ZSTD_LEVEL = 19
LARGEST_ZSTD_WINDOW = 27  # log2 of bytes: 128 MiB, the most that decoders accept without being told


def rows_seen(rows: TokenRows, seed: int, n_read: int, max_tokens: int) -> tuple[NDArray[np.int64], float]:
    """The different rows among the first `n_read` of training's order, and how often it read each on average.

    At most `max_tokens` slots' worth of them, the first ones read. The rows come in ascending order.
    """
    first_epoch = data_order(rows.n_rows, seed, 0, min(n_read, rows.n_rows))
    kept = first_epoch[: max(1, max_tokens // rows.context_length)]
    return np.sort(kept), n_read / max(1, len(first_epoch))


def baselines(train: Events, test: Events, table: TokenBytes) -> dict[str, float]:
    """Bits per byte of the test text under each baseline, by its key in metrics.json."""
    train_bytes, test_bytes = in_bytes(train, table), in_bytes(test, table)
    n_bytes = table.n_bytes(test.labels())
    return {
        "baseline_byte_trigram": _ngram_bits(train_bytes, test_bytes, 3) / n_bytes,
        "baseline_token_unigram": _ngram_bits(train, test, 1) / n_bytes,
        "baseline_token_bigram": _ngram_bits(train, test, 2) / n_bytes,
        "baseline_token_trigram": _ngram_bits(train, test, 3) / n_bytes,
        "baseline_zstd": _zstd_bits(_flat(train_bytes), _flat(test_bytes)) / n_bytes,
    }


def _ngram_bits(train: Events, test: Events, order: int) -> float:
    model = kneser_ney.fit(train.keys(order), order, train.base, train.vocab_size)
    return model.nll(test.keys(order)) / math.log(2)


def _flat(events: Events) -> bytes:
    """The text as one string of bytes, a zero byte at the end of every document."""
    labels = events.labels()
    return np.where(labels == END_OF_DOCUMENT, 0, labels).astype(np.uint8).tobytes()


def _zstd_bits(train: bytes, test: bytes) -> float:
    """Size of the test text as one zstd frame of level 19 with the training text as raw dictionary.

    The window reaches over both, or over the last 128 MiB. One frame may refer to earlier test documents.
    """
    import zstandard

    window_log = min(max((len(train) + len(test)).bit_length(), zstandard.WINDOWLOG_MIN), LARGEST_ZSTD_WINDOW)
    parameters = zstandard.ZstdCompressionParameters.from_level(ZSTD_LEVEL, window_log=window_log)
    reach = max(0, (1 << window_log) - len(test))
    last = train[max(0, len(train) - reach) :]
    dictionary = zstandard.ZstdCompressionDict(last, zstandard.DICT_TYPE_RAWCONTENT) if last else None
    compressor = zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)
    return 8.0 * len(compressor.compress(test))
