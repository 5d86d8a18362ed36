"""How fast evaluate reads the test text, beside the forward pass of training itself.

    python -m benchmarks.scoring                       the run in data/, on the device there is
    python -m benchmarks.scoring --rows 16 --no-compile       a quick look on a CPU

Each pass is made once to warm up, which includes compiling, and three times more; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from stages.checkpoint import load_model
from stages.evaluate.losses import label_losses
from stages.evaluate.scoring import Scorer
from stages.perplexity import to_tensors
from stages.tokens import IGNORED_LABEL, TokenRows
from stages.train.objective import CausalObjective, autocast, compile_parts


def training_pass(data: Path, rows: TokenRows, size: int, device: str, compiled: bool) -> Callable[[], float]:
    """Training's own forward pass with its loss in bf16, without gradients, over rows of the split."""
    model = load_model(data / "train/best", device)
    objective = CausalObjective(model, chunk_tokens=4096 if device == "cuda" else 0)
    if compiled:
        compile_parts(model, objective)

    def read() -> float:
        total, labels = torch.zeros((), device=device, dtype=torch.float64), 0
        with torch.no_grad(), autocast(device, "bf16"):
            for first in range(0, rows.n_rows, size):
                batch = rows.batch(np.arange(first, min(first + size, rows.n_rows)))
                total += objective(*to_tensors(batch, device))[1]
                labels += int((batch.labels != IGNORED_LABEL).sum())
        return float(total) / labels

    return read


def timed(name: str, read: Callable[[], float], n_slots: int) -> None:
    begun, seconds = time.perf_counter(), []
    loss = read()
    first = time.perf_counter() - begun
    for _ in range(3):
        begun = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - begun)
    rate = n_slots / statistics.median(seconds) / 1e3
    print(f"{name:44} {rate:9.1f}K slots/s  loss {loss:.6f}  first {first:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder of a run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 16], help="rows in a pass of training")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    rows = TokenRows(options.data / "pack/test")
    n_slots = rows.n_rows * rows.context_length
    for size in options.rows:
        read = training_pass(options.data, rows, size, options.device, not options.no_compile)
        timed(f"training's forward pass, bf16, {size} rows", read, n_slots)
    for precision in ("bf16", "fp32"):
        for compiled in (False,) if options.no_compile else (True, False):
            model = load_model(options.data / "train/best", options.device)
            score = Scorer(model, options.device, precision, compiled)
            name = f"evaluate, {precision}{', compiled' if compiled else ''}"
            timed(name, lambda score=score: float(label_losses(score, rows, "test loss").nll.mean()), n_slots)


if __name__ == "__main__":
    main()
