"""Ten training steps per architecture are, bit for bit, what they were when the file was written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.golden.trace import ARCHITECTURES

REPOSITORY = Path(__file__).parents[2]
GOLDEN = json.loads((REPOSITORY / "tests/golden/losses.json").read_text())


@pytest.fixture(scope="module")
def now() -> dict:
    program = [sys.executable, "-m", "tests.golden.trace"]
    return json.loads(subprocess.run(program, cwd=REPOSITORY, check=True, capture_output=True).stdout)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_are_the_golden_ones(name, now):
    if now["torch"] == GOLDEN["torch"]:
        assert now["losses"][name] == GOLDEN["losses"][name]
    else:  # another torch may sum in another order
        assert now["losses"][name] == pytest.approx(GOLDEN["losses"][name], rel=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_learns(name):
    losses = GOLDEN["losses"][name]
    assert losses[0] == pytest.approx(4.11, abs=0.15) and losses[-1] < losses[0] - 0.1
