"""Continuations of fixed prompts, and one text from nothing, for people to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.evaluate.params import EvaluateParams
from stages.evaluate.token_bytes import TokenBytes

if TYPE_CHECKING:
    from model.decoder import Decoder


def sample_texts(model: Decoder, table: TokenBytes, context_length: int, params: EvaluateParams) -> list[dict]:
    """[{prompt, continuation, tokens, finished}]: the first from the empty prompt.

    `finished` says whether the model ended the text itself. Bytes that are not UTF-8, as of a
    character cut in the middle, are shown as U+FFFD.
    """
    from model.sampling import Sampling, generate

    prompts = ["", *params.prompts]
    encoded = [[table.end_of_text, *table.tokenizer.encode(p, add_special_tokens=False).ids] for p in prompts]
    sampling = Sampling(params.temperature, params.top_k, params.top_p)
    drawn = generate(model, encoded, params.sample_tokens, context_length, table.end_of_text, sampling, params.seed)
    return [
        {
            "prompt": prompt,
            "continuation": table.text_bytes(np.array(tokens, np.int64)).decode("utf-8", errors="replace"),
            "tokens": len(tokens),
            "finished": len(tokens) < params.sample_tokens,
        }
        for prompt, tokens in zip(prompts, drawn, strict=True)
    ]
