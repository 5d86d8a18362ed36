"""Loss over packed rows: the sum over labels divided by their number, never a mean of means.

Example: two rows with 10 and 90 labels and mean losses 2.0 and 3.0 have a mean loss of 2.9. The
result does not depend on how rows are batched, beyond rounding.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from stages.tokens import IGNORED_LABEL, Batch, TokenRows

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from model.decoder import Decoder

    Nats = Callable[[Decoder, torch.Tensor, torch.Tensor], torch.Tensor]

ROWS_PER_FORWARD = 16
TOKENS_PER_HEAD = 4096  # logits of so many at once: at a vocabulary of 50,304 those of 32K tokens take 6.6 GB in fp32


@dataclasses.dataclass(frozen=True)
class DocumentLosses:
    """Sums per document of a split: `nll` in nats (float64) and the number of `labels`."""

    nll: np.ndarray
    labels: np.ndarray

    @property
    def mean(self) -> float:
        """Nats a label over all documents."""
        return float(self.nll.sum() / self.labels.sum())


def to_tensors(batch: Batch, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """inputs, labels, segments, positions on the device, int64 [B, T]."""
    import torch

    arrays = (batch.inputs, batch.labels, batch.segments, batch.positions)
    inputs, labels, segments, positions = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
    return inputs, labels, segments, positions


def nats_of(model: Decoder, hidden_NC: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Nats of each label from the last hidden states, fp32 [N]."""
    from torch.nn import functional as F

    return F.cross_entropy(model.logits(hidden_NC).float(), labels_N, ignore_index=IGNORED_LABEL, reduction="none")


def token_losses(model: Decoder, batch: Batch, device: str, nats: Nats = nats_of) -> np.ndarray:
    """Nats of every label, float32 [B, T]; 0 where a slot is padding. `nats` may be compiled."""
    import torch

    inputs, labels, segments, positions = to_tensors(batch, device)
    with torch.no_grad():  # tensors of the inference mode could not be used by a training that goes on
        hidden = model.hidden(inputs, model.context(inputs, segments, positions)).flatten(0, 1)
        parts = zip(hidden.split(TOKENS_PER_HEAD), labels.flatten().split(TOKENS_PER_HEAD), strict=True)
        losses = torch.cat([nats(model, part, wanted) for part, wanted in parts])
    return losses.view(labels.shape).cpu().numpy()


def split_loss(model: Decoder, rows: TokenRows, row_ids: np.ndarray, device: str) -> tuple[float, int]:
    """Sum of nats and number of labels over the given rows."""
    total, count = 0.0, 0
    for start in range(0, len(row_ids), ROWS_PER_FORWARD):
        batch = rows.batch(row_ids[start : start + ROWS_PER_FORWARD])
        total += float(token_losses(model, batch, device).sum(dtype=np.float64))
        count += int((batch.labels != IGNORED_LABEL).sum())
    return total, count


def document_losses(model: Decoder, rows: TokenRows, device: str) -> DocumentLosses:
    """Losses of all rows of a split, gathered by document."""
    segment_rows, documents, lengths = rows.segment_table()
    nll = np.zeros(len(documents))
    starts = np.cumsum(lengths) - lengths
    for first in range(0, rows.n_rows, ROWS_PER_FORWARD):
        row_ids = np.arange(first, min(first + ROWS_PER_FORWARD, rows.n_rows))
        batch = rows.batch(row_ids)
        losses = token_losses(model, batch, device)[batch.labels != IGNORED_LABEL].astype(np.float64)
        here = (segment_rows >= row_ids[0]) & (segment_rows <= row_ids[-1])
        nll[here] = np.add.reduceat(losses, starts[here] - starts[here][0])
    n_documents = int(documents.max()) + 1 if len(documents) else 0
    return DocumentLosses(
        np.bincount(documents, nll, n_documents), np.bincount(documents, lengths, n_documents).astype(np.int64)
    )
