"""Where tokens lie in the space of the embedding.

Two maps of the most frequent tokens: the first two principal components (the directions in which the centred
vectors spread most; singular value decomposition), and t-SNE, which keeps neighbours together and says nothing
about distances. Beside them the length of every vector against how often its token stands in the training text,
and for each token on the maps those whose vectors have the largest cosine with its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
NEIGHBOURS = 8
PERPLEXITY = 30.0
ITERATIONS = 500


@dataclasses.dataclass(frozen=True)
class Map:
    """Some tokens, the most frequent first.

    Attributes:
        tokens: their ids. frequency: in the training text. norms: lengths of their vectors.
        pca: [N, 2]; explained: the share of the spread that each direction has.
        tsne: [N, 2]; empty where there are fewer than 4 tokens.
        neighbours: ids and cosines of the nearest ones of the whole vocabulary, [N][NEIGHBOURS].
    """

    tokens: list[int]
    frequency: list[int]
    norms: list[float]
    pca: list[list[float]]
    explained: list[float]
    tsne: list[list[float]]
    neighbours: list[list[tuple[int, float]]]


def embedding_map(weight: NDArray[np.float32], frequency: NDArray[np.int64], n_tokens: int, seed: int) -> Map:
    """Maps the tokens that the training text has, `n_tokens` of them at most.

    Args:
        weight: the embedding without the rows that pad the vocabulary, [V, C].
        frequency: how often each token stands in the training text, [V].
    """
    order = np.lexsort((np.arange(len(frequency)), -frequency))
    tokens = order[:n_tokens][frequency[order[:n_tokens]] > 0]
    vectors = weight.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1)
    places, explained = pca(vectors[tokens])
    return Map(
        tokens=tokens.tolist(),
        frequency=frequency[tokens].tolist(),
        norms=norms[tokens].round(4).tolist(),
        pca=places.round(4).tolist(),
        explained=explained.round(4).tolist(),
        tsne=tsne(vectors[tokens], seed).round(2).tolist(),
        neighbours=nearest(vectors / np.maximum(norms, 1e-12)[:, None], tokens),
    )


def pca(vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The first two principal components [N, 2], the larger half of each positive in sum, and their shares [2]."""
    if len(vectors) < 2:
        return np.zeros((len(vectors), 2)), np.zeros(2)
    centred = vectors - vectors.mean(axis=0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:2]
    # Either sign is a principal component: the largest entry of each is made positive, so that runs agree.
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]
    places = np.zeros((len(vectors), 2))
    places[:, : len(directions)] = centred @ directions.T
    shares = singular**2 / max(float((singular**2).sum()), 1e-300)
    return places, np.append(shares, [0, 0])[:2]


def tsne(vectors: FloatArray, seed: int) -> FloatArray:
    """[N, 2], by one thread: the order in which several add up would move the map."""
    if len(vectors) < 4:
        return np.zeros((0, 2))
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    start = pca(vectors)[0]
    start = start / max(float(start[:, 0].std()), 1e-12) * 1e-4
    method = "barnes_hut" if len(vectors) > 100 else "exact"
    with threadpool_limits(limits=1):
        return TSNE(
            2, perplexity=perplexity, init=start, random_state=seed, max_iter=ITERATIONS, method=method, n_jobs=1
        ).fit_transform(vectors).astype(np.float64)  # fmt: skip


def nearest(unit: FloatArray, tokens: NDArray[np.int64]) -> list[list[tuple[int, float]]]:
    """The tokens whose vectors have the largest cosines with those of the given ones, themselves left out."""
    cosine = unit[tokens] @ unit.T
    cosine[np.arange(len(tokens)), tokens] = -2
    best = np.argsort(-cosine, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(unit) - 1)]
    return [[(int(i), round(float(row[i]), 3)) for i in ids] for row, ids in zip(cosine, best, strict=True)]


def as_json(found: Map) -> dict[str, Any]:
    return dataclasses.asdict(found)
