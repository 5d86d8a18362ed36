"""What long work says of itself where there is no terminal: one line, with a rate that means something."""

import re

import pytest

from stages import progress


@pytest.mark.parametrize(
    ("moved", "seconds", "rate"),
    [(1e6, 2.0, "500,000/s"), (50, 20.0, "2.5/s"), (3, 12.3, "4.1 s each"), (0, 5.0, "0.0/s")],
)
def test_a_rate_is_told_in_the_unit_that_shows_it(monkeypatch, capsys, moved, seconds, rate):
    now = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with progress.progress("words", None, "shards") as bar:
        bar.update(moved)
    line = capsys.readouterr().out
    assert re.fullmatch(rf"words: [\d,]+ shards in {seconds} s \({rate}\)\n", line), line
