"""How long training waits for a checkpoint: for copies of the tensors alone, against the whole save.

    python -m benchmarks.checkpoints --preset gpt2-124m --device cuda

Every save is followed at once by a change of all weights, as the next step would bring; what is on the disk must be
the weights from before. Prints medians of `--saves` saves: the whole save, the wait of the training thread, and
on GPUs the time in which the device copies.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from model.config import ModelConfig
from model.decoder import Decoder
from stages.checkpoint import folder_of
from stages.train.optimizers import Optimizers
from stages.train.params import TrainParams
from stages.train.saving import Saver
from stages.train.state import Checkpoints, TrainState


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--folder", default=None, help="on the disk to be measured; default: a temporary one")
    arguments = parser.parse_args()
    device = arguments.device
    model = Decoder(ModelConfig(preset=arguments.preset), 50304, 1024)
    model.initialise(torch.Generator().manual_seed(0))
    model.to(device)
    optimizers = Optimizers(model, TrainParams(optimizer=arguments.optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizers.step(1.0, torch.ones((), dtype=torch.bool, device=device))
    state = [tensor for tensors in (model.state_dict(), optimizers.tensors()) for tensor in tensors.values()]
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state)
    whole, waits, copies = [], [], []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        checkpoints, saver = Checkpoints(Path(temporary), {"run": "", "lineage": []}, {}), Saver()
        for step in range(arguments.saves + 1):  # the first one makes the memory for the copies
            expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            started = now(device)
            checkpoints.save(saver, TrainState(step=step, best_step=step), model, optimizers, {}, {})
            waited = time.perf_counter() - started
            copied = now(device) - started
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1.0)
            saver.wait()
            if step:
                whole.append(time.perf_counter() - started)
                waits.append(waited)
                copies.append(copied)
            found = load_file(folder_of(Path(temporary), step) / "model.safetensors")
            assert all(torch.equal(found[name], tensor.cpu()) for name, tensor in expected.items()), "other weights"
        saver.close()
    print(f"{arguments.preset} on {device}, {arguments.optimizer}: {n_bytes / 1e9:.2f} GB a checkpoint")
    for name, seconds in (("whole save", whole), ("training waits", waits), ("device copies", copies)):
        print(f"{name:15} {statistics.median(seconds) * 1000:9.1f} ms")


if __name__ == "__main__":
    main()
