"""Makes the quantised variants, and measures what each loses on the test rows against the checkpoint itself.

    variant        bits and group     perplexity / that of fp32, and interval     bytes of the linear layers / bf16
    int8           8, by output       0.9999 (0.9997 to 1.0001)                    0.51
    int8_dynamic   and its inputs     1.0007 (1.0004 to 1.0010)                    0.51
    int4           4, groups of 64    1.0059 (1.0042 to 1.0081)                    0.28

Both sides are measured on the same rows, so the interval is that of the ratio: documents are drawn again and again
with replacement (Efron, 1979), the same ones for both, and the middle 95% of the ratios is given. That is much
narrower than the intervals of two perplexities, because a document that is hard for one is hard for the other.

Beside the weights stands matrices.csv: how far each matrix is from what it was, |W - Q| / |W| by the Frobenius norm.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.checkpoint import load_model, model_config
from stages.entry import Job
from stages.errors import Failed
from stages.export.folder import copy_tokenizer
from stages.export.params import ExportParams
from stages.perplexity import ROWS_PER_FORWARD, token_losses
from stages.progress import say
from stages.quantised import METHODS, open_quantised, write_quantised
from stages.tokens import IGNORED_LABEL, TokenRows

if TYPE_CHECKING:
    import torch

    from model.decoder import Decoder
    from model.quantised import Packed

BOOTSTRAP_SAMPLES, MIDDLE = 1000, (2.5, 97.5)
BYTES_OF_BF16 = 2
TIMED_TOKENS, REPEATS = 24, 3


class TooLossy(Failed):
    """A variant that loses more than its param allows."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A quantised model, and what it is worth.

    Attributes:
        name: its method and its folder. n_bytes: of its weights.
        linear_ratio: bytes of its linear layers, of those in bf16.
        perplexity: on the rows. ratio, low, high: of perplexities, to that of fp32.
    """

    name: str
    n_bytes: int
    linear_ratio: float
    perplexity: float
    ratio: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class TestRows:
    """Evenly spaced rows of the test split, and the document of each of their labels."""

    rows: TokenRows
    ids: np.ndarray
    documents: np.ndarray

    @classmethod
    def of(cls, folder: Path, most: int) -> TestRows:
        rows = TokenRows(folder)
        ids = np.unique(np.linspace(0, rows.n_rows - 1, min(most, rows.n_rows)).round().astype(np.int64))
        segment_rows, documents, lengths = rows.segment_table()
        here = np.isin(segment_rows, ids)
        return cls(rows, ids, np.unique(np.repeat(documents[here], lengths[here]), return_inverse=True)[1])

    def losses(self, model: Decoder) -> np.ndarray:
        """Nats by document, float64."""
        nll = []
        for first in range(0, len(self.ids), ROWS_PER_FORWARD):
            batch = self.rows.batch(self.ids[first : first + ROWS_PER_FORWARD])
            nll.append(token_losses(model, batch, "cpu")[batch.labels != IGNORED_LABEL].astype(np.float64))
        return np.bincount(self.documents, np.concatenate(nll))

    @property
    def labels(self) -> np.ndarray:
        """How many by document."""
        return np.bincount(self.documents)


def make_variants(job: Job, export: ExportParams, checkpoint: Path) -> list[Variant]:
    """Writes the quantised folders that `formats` names, beside hf/, and measures them.

    Raises:
        TooLossy: the first variant that loses more than it may.
    """
    methods = [name for name in export.formats if name in METHODS]
    if not methods:
        return []
    import torch

    if job.execution.threads:
        torch.set_num_threads(job.execution.threads)
    original = load_model(checkpoint)
    rows = TestRows.of(job.root / "data/pack/test", export.perplexity_rows)
    before = rows.losses(original)
    most = {8: export.max_int8_perplexity_ratio, 4: export.max_int4_perplexity_ratio}
    variants = []
    for method in methods:
        folder = job.staging / method
        linear_ratio = write_variant(folder, job.staging / "hf", method, original, checkpoint, export.int4_group_size)
        model = open_quantised(folder)
        n_bytes = (folder / "model.safetensors").stat().st_size
        variant = Variant(method, n_bytes, linear_ratio, *compared(before, rows.losses(model), rows.labels))
        judge(variant, most[METHODS[method]])
        variants.append(variant)
        say(
            f"{method}: perplexity {variant.ratio:.4f} of fp32's ({variant.low:.4f} to {variant.high:.4f}), "
            f"{variant.linear_ratio:.3f} of bf16's bytes in linear layers"
        )
    return variants


def compared(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> tuple[float, float, float, float]:
    """Perplexity, and its ratio to that before with a 95% interval; from nats and labels by document."""
    drawn = np.random.default_rng(0).integers(len(labels), size=(BOOTSTRAP_SAMPLES, len(labels)))
    gaps = (after - before)[drawn].sum(axis=1) / labels[drawn].sum(axis=1)
    low, high = np.exp(np.percentile(gaps, MIDDLE))
    total = labels.sum()
    ratio = math.exp((after - before).sum() / total)
    return (*(round(float(value), 6) for value in (math.exp(after.sum() / total), ratio, low, high)),)  # type: ignore[return-value]


def judge(variant: Variant, most: float) -> None:
    if not variant.ratio <= most:
        less = "a smaller export.int4_group_size loses less, or " if METHODS[variant.name] == 4 else ""
        raise TooLossy(
            f"data/export/{variant.name}: its perplexity is {variant.ratio:.4f} of fp32's, over "
            f"export.max_int{METHODS[variant.name]}_perplexity_ratio {most}; {less}leave {variant.name} out of "
            "export.formats; nothing was published"
        )


def write_variant(folder: Path, hf: Path, method: str, model: Decoder, checkpoint: Path, group_size: int) -> float:
    """Writes the folder. Returns the bytes of its linear layers, of those in bf16."""
    from model.quantised import matrices, quantise

    weights = model.state_dict()
    packed = quantise(weights, matrices(model), METHODS[method], group_size)
    plain = {name: tensor for name, tensor in weights.items() if name not in packed}
    write_quantised(folder, method, model_config(checkpoint)[1], packed, plain)
    copy_tokenizer(hf, folder)
    write_table(folder / "matrices.csv", weights, packed)
    linear = [name for name in packed if name != "embedding.weight"]
    in_bf16 = sum(weights[name].numel() * BYTES_OF_BF16 for name in linear)
    return round(sum(packed[name].n_bytes for name in linear) / in_bf16, 4)


def write_table(path: Path, weights: Mapping[str, torch.Tensor], packed: Mapping[str, Packed]) -> None:
    """matrices.csv: what each matrix became, and how far it is from what it was."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["matrix", "bits", "group_size", "shape", "bytes", "relative_error", "largest_error"])
        for name, part in packed.items():
            weight = weights[name].float()
            error = part.dequantised() - weight
            group = weight.shape[-1] // part.scale.shape[-1] if part.bits == 4 else weight.shape[-1]
            relative = float(error.double().norm() / weight.double().norm().clamp(min=1e-30))
            shape = "x".join(map(str, weight.shape))
            row = [name, part.bits, group, shape, part.n_bytes, f"{relative:.5g}", f"{float(error.abs().max()):.5g}"]
            writer.writerow(row)


def decode_speeds(staging: Path, checkpoint: Path, variants: Sequence[Variant]) -> dict[str, float]:
    """Tokens a second of one sequence, by the name of each model. They depend on the machine and its load."""
    models = {"fp32": load_model(checkpoint), **{one.name: open_quantised(staging / one.name) for one in variants}}
    context_length = model_config(checkpoint)[1]["context_length"]
    return {f"{name}_tokens_per_s": decode_speed(model, context_length) for name, model in models.items()}


def decode_speed(model: Decoder, context_length: int) -> float:
    """One token at a time through caches; the fastest of a few tries. 0 for an attention that has no cache."""
    import torch

    if not model.has_caches:
        return 0.0
    n_tokens, best = min(TIMED_TOKENS, context_length), math.inf
    with torch.inference_mode():
        for _ in range(REPEATS):
            caches = model.new_caches(1, n_tokens)
            started = time.perf_counter()
            for position in range(n_tokens):
                model.extend(torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[position]]), caches)
            best = min(best, time.perf_counter() - started)
    return round(n_tokens / best, 1)
