"""What only a GPU shows: the average and the samples beside compiled blocks, kernels in the profile, full memory."""

import csv
import json

import pytest
import torch

from stages.errors import Failed
from stages.execution import Execution
from tests.stages.test_train import TRAIN, job_in, losses, run_in
from tests.stages.test_train_samples import write_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
ON_GPU = Execution(tracking=False, device="cuda", threads=1, checkpoint_interval=5)
LONGER = TRAIN.model_copy(update={"max_steps": 24, "precision": "bf16", "lr": 0.01, "ema_decay": 0.9})


def test_average_samples_and_profile_change_no_loss_of_a_compiled_run(packed, tmp_path_factory):
    write_tokenizer(packed)
    plain = losses(run_in(packed, LONGER.model_copy(update={"ema_decay": 0.0}), ON_GPU))
    scratch = tmp_path_factory.mktemp("scratch")
    all_on = {"scratch": str(scratch), "sample_prompts": ["", "w5"], "sample_tokens": 4, "profile": 3}
    out = run_in(packed, LONGER, ON_GPU.model_copy(update=all_on))
    assert losses(out) == pytest.approx(plain, abs=1e-5)
    assert (out / "last/raw.safetensors").exists()
    assert len((out / "monitor/samples.jsonl").read_text().splitlines()) == 2 * 6
    with next(scratch.rglob("kernels.csv")).open() as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert any("gemm" in name or "nvjet" in name or "cutlass" in name for name in names), names
    timing = json.loads((out / "timing.json").read_text())
    assert timing["peak_bytes"] > 0


def test_full_memory_names_the_param_and_leaves_a_snapshot(packed):
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (4 << 20)) / free)
    train = TRAIN.model_copy(update={"batch_tokens": 65536})
    try:
        with pytest.raises(Failed, match=r"is out of memory: Tried to allocate .* set execution\.micro_batch to \d+ "):
            run_in(packed, train, ON_GPU.model_copy(update={"compile": False, "micro_batch": 4096}))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    with job_in(packed, train, ON_GPU.model_copy(update={"compile": False, "micro_batch": 4096})).scratch() as folder:
        assert (folder / "monitor/memory.pickle").stat().st_size > 0
