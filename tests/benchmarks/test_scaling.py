"""Several ranks take the steps of one, also when one of them is killed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.killed_rank import kill_a_rank
from benchmarks.scaling import covered

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_rank_is_killed_and_the_same_command_ends_with_the_same_losses(tmp_path, capfd, monkeypatch, sharding):
    monkeypatch.chdir(ROOT)
    kill_a_rank(tmp_path / "runs", 2, on_gpus=False, sharding=sharding)
    said = capfd.readouterr()
    assert "240 losses; largest difference from the untouched run: 0.0" in said.out
    assert "was ended by SIGKILL" in said.err and "goes on from the newest checkpoint" in said.err


@pytest.mark.slow
def test_every_way_of_sharing_loses_what_one_process_loses(tmp_path):
    out = tmp_path / "scaling.jsonl"
    command = [sys.executable, "-m", "benchmarks.scaling", "--toy", "--no-kill", "--groups", "1", "--out", str(out)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    rows = {row["way"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert rows.keys() == {"one", "graphs", "overlap", "parts"}
    for row in rows.values():
        assert row["losses"] == pytest.approx(rows["one"]["losses"], abs=1e-5)


def test_time_that_two_kernels_share_counts_once():
    assert covered([(0, 2), (1, 3), (5, 6)]) == 4
