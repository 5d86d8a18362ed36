"""checkpoint: what the system refuses is told as the system's refusal."""

import errno
import resource

import pytest
import torch
from safetensors import SafetensorError

from stages.checkpoint import refused_by_system, save_checkpoint


def test_what_the_system_refuses_while_tensors_are_written_is_an_os_error(tmp_path):
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as refused:
            save_checkpoint(tmp_path / "step-00000001", {"weight": torch.zeros(1000)}, {}, {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert refused.value.errno == errno.EFBIG
    assert refused.value.filename == str(tmp_path / "step-00000001.partial" / "model.safetensors")
    assert not (tmp_path / "step-00000001").exists()


def test_a_full_disk_is_one_and_a_mistake_of_ours_stays_what_it_is(tmp_path):
    with pytest.raises(OSError, match="No space left") as refused, refused_by_system(tmp_path / "model"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert refused.value.errno == errno.ENOSPC
    with pytest.raises(SafetensorError), refused_by_system(tmp_path / "model"):
        raise SafetensorError("InvalidTensorView")
