"""Memory of the data stages: Arrow takes the C library's allocator."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("stage", ["download", "clean", "dedup", "tokenizer", "pack"])
def test_a_data_stage_chooses_the_allocator_before_arrow_is_imported(stage: str) -> None:
    program = f"import stages.{stage}.__main__, pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "system"
