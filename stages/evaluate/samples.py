"""Continuations of fixed prompts for people to read, and further texts from nothing for figures alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.evaluate.params import EvaluateParams
from stages.evaluate.token_bytes import TokenBytes

if TYPE_CHECKING:
    from model.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt and what the model wrote behind it.

    Attributes:
        prompt_ids, ids: the tokens of both. finished: whether the model ended the text itself.
        continuation: the text; bytes that are not UTF-8, as of a character cut in the middle, are U+FFFD.
    """

    prompt: str
    prompt_ids: list[int]
    ids: list[int]
    continuation: str
    finished: bool

    def as_json(self) -> dict[str, Any]:
        """The entry of samples.json."""
        shown = {"prompt": self.prompt, "continuation": self.continuation}
        return {**shown, "tokens": len(self.ids), "finished": self.finished}


def sample_texts(
    model: Decoder, table: TokenBytes, context_length: int, params: EvaluateParams
) -> tuple[list[Sample], list[Sample]]:
    """One sample from the empty prompt and one for each prompt; and `generated_texts` more from the empty one."""
    from model.sampling import Sampling, generate

    prompts = ["", *params.prompts, *[""] * params.generated_texts]
    encoded = [table.tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    given = [[table.end_of_text, *ids] for ids in encoded]
    sampling = Sampling(params.temperature, params.top_k, params.top_p)
    drawn = generate(model, given, params.sample_tokens, context_length, table.end_of_text, sampling, params.seed)
    samples = [
        Sample(
            prompt=prompt,
            prompt_ids=ids,
            ids=tokens,
            continuation=table.text_bytes(np.array(tokens, np.int64)).decode("utf-8", errors="replace"),
            finished=len(tokens) < params.sample_tokens,
        )
        for prompt, ids, tokens in zip(prompts, encoded, drawn, strict=True)
    ]
    shown = 1 + len(params.prompts)
    return samples[:shown], samples[shown:]
