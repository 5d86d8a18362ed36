"""Messages say one document and two documents."""

import pytest

from stages.progress import progress
from stages.wording import counted


@pytest.mark.parametrize(("number", "words"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (2000, "2,000 files")])
def test_one_is_said_as_one(number: int, words: str) -> None:
    assert counted(number, "file") == words


def test_the_closing_line_of_progress_counts_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    for n in (1, 2):
        with progress("pack: rows", n, "shards") as bar:
            bar.update(n)
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith("pack: rows: 1 shard in ") and two.startswith("pack: rows: 2 shards in ")
