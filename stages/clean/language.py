"""Which language a text is in, by py3langid's model of byte n-grams, which needs no network.

    language_of("Le chat dort sur le toit de la maison.")  ->  ("fr", 0.99..)

The score is a probability over the 97 languages that the model knows. Only the first `CHARACTERS` are read:
more change the answer rarely and cost time. The model is loaded on first use.
"""

from __future__ import annotations

import functools

from py3langid.langid import MODEL_FILE, LanguageIdentifier

CHARACTERS = 4000


@functools.lru_cache(maxsize=1)
def _model() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_of(text: str) -> tuple[str, float]:
    """The code of the likeliest language, and its probability, rounded so that it is the same on every machine."""
    language, score = _model().classify(text[:CHARACTERS])
    return language, round(float(score), 4)
