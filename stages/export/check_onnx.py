"""The exported ONNX file in the hands of onnxruntime: logits of whole texts, and greedy text through its caches.

    decoder = OnnxDecoder(Path("data/export/onnx/model.onnx"))
    decoder.generate([[0, 17, 4], [0, 9]], 8, end_of_text=0)    # a padded batch, token by token through caches

Works with numpy and onnxruntime alone: what a user needs, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ERRORS_ONLY = 3
PAST, PRESENT = "past_key_values.", "present."


class OnnxDecoder:
    """A session, and its calls in the convention of onnx_decoder.py."""

    def __init__(self, path: Path, threads: int = 0):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = ERRORS_ONLY
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.past = [one for one in self.session.get_inputs() if one.name.startswith(PAST)]

    def empty(self, batch: int) -> dict[str, np.ndarray]:
        """Caches of no token."""
        sizes = {"batch": batch, "past": 0}
        return {one.name: np.zeros([sizes.get(s, s) for s in one.shape], np.float32) for one in self.past}

    def read(
        self, ids_BT: np.ndarray, mask_BS: np.ndarray, past: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Logits [B, T, V] of new tokens, and the caches behind them."""
        found = self.session.run(None, {"input_ids": ids_BT, "attention_mask": mask_BS, **past})
        named: dict[str, Any] = dict(zip(self.outputs, found, strict=True))
        logits_BTV = named.pop("logits")
        return logits_BTV, {PAST + name.removeprefix(PRESENT): array for name, array in named.items()}

    def logits(self, sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """[B, T, V] of sequences of one length, read at once."""
        ids_BT = np.array(sequences, np.int64)
        return self.read(ids_BT, np.ones_like(ids_BT), self.empty(len(ids_BT)))[0]

    def generate(self, prompts: Sequence[Sequence[int]], n_tokens: int, end_of_text: int) -> list[list[int]]:
        """The most probable token after each, `n_tokens` times; a sequence that has ended goes on unread."""
        longest = max(map(len, prompts))
        ids_BT = np.array([[end_of_text] * (longest - len(prompt)) + list(prompt) for prompt in prompts], np.int64)
        mask_BS = np.array([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], np.int64)
        past, written = self.empty(len(prompts)), []
        for _ in range(n_tokens):
            logits_BTV, past = self.read(ids_BT, mask_BS, past)
            ids_BT = logits_BTV[:, -1:].argmax(axis=-1)
            mask_BS = np.concatenate([mask_BS, np.ones_like(ids_BT)], axis=1)
            written.append(ids_BT)
        return np.concatenate(written, axis=1).tolist() if written else [[] for _ in prompts]
