"""Documents from a dataset on the Hugging Face hub at one fixed commit.

A branch such as `main` moves, so a run could not be repeated: `revision` must be the 40 digits of a
commit, and anything else is refused with the commit to paste. The order of a stream at one commit is
fixed, so the first N documents are the same on every machine. The preset is FineWeb-Edu:

    dataset: HuggingFaceFW/fineweb-edu    dataset_config: CC-MAIN-2024-10    dataset_split: train

hub_files.py takes the files of the split side by side; the iterator here is for what it cannot read.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.download.params import DownloadParams
from stages.errors import BadInput

COMMIT = re.compile(r"\A[0-9a-f]{40}\Z")
NAME = re.compile(r"\A[\w.-]+(/[\w.-]+)?\Z")
LOOK_UP_SECONDS = 10


def check(download: DownloadParams) -> None:
    """Refuses what does not name one fixed dataset.

    Raises:
        BadInput: a local folder, or a revision that is not a commit; with the commit if the hub answers.
    """
    if not NAME.match(download.dataset) or Path(download.dataset).exists():
        raise BadInput(
            f"params.yaml: download.dataset: {download.dataset!r} is not a name on the hub such as "
            "HuggingFaceFW/fineweb-edu; for files of your own set download.source: files"
        )
    if COMMIT.match(download.revision):
        return
    wanted = download.revision or "main"
    commit = look_up(download.dataset, wanted)
    mend = (
        f"set download.revision: {commit}"
        if commit
        else f"the hub did not answer; copy the commit from https://huggingface.co/datasets/{download.dataset}/commits"
    )
    raise BadInput(f"params.yaml: download.revision: {wanted!r} is not a commit of 40 digits and may move; {mend}")


def look_up(dataset: str, revision: str) -> str | None:
    """The commit that a branch or tag stands for now, or None when the hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(dataset, revision=revision, timeout=LOOK_UP_SECONDS).sha
    except Exception:  # whatever the network or the hub says: the caller refuses in any case
        return None


def documents(download: DownloadParams) -> Iterator[dict[str, str]]:
    """Rows {id, text, source} in the order of the dataset; the id is `dataset/split:row`, rows from 1.

    Raises:
        BadInput: the dataset cannot be opened or read, has no such column, or a text is no string.
    """
    for row, record in enumerate(_stream(download), 1):
        place = f"{download.dataset}/{download.dataset_split}:{row}"
        if download.text_column not in record:
            raise BadInput(
                f"{place}: no column {download.text_column!r}; it has {', '.join(record)}; set download.text_column"
            )
        text = record[download.text_column]
        if not isinstance(text, str | None):
            raise BadInput(f"{place}: {download.text_column!r} must be a string, not {type(text).__name__}")
        yield {"id": place, "text": text or "", "source": download.dataset}


def _stream(download: DownloadParams) -> Iterator[dict[str, Any]]:
    import datasets

    with unusable(download):
        yield from datasets.load_dataset(
            download.dataset,
            download.dataset_config or None,
            split=download.dataset_split,
            revision=download.revision,
            streaming=True,
        )


@contextlib.contextmanager
def unusable(download: DownloadParams, file: str = "") -> Iterator[None]:
    """Tells in one line what the hub, the network or `datasets` refused.

    Raises:
        BadInput: instead of what was raised within.
    """
    try:
        yield
    except Exception as error:  # of three libraries, and of the one that they take for HTTP
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        place = f"{file} of dataset" if file else "dataset"
        raise BadInput(
            f"{place} {download.dataset} at {download.revision[:12]}: {reason}; check the names, and the network: "
            "the same command goes on with what is missing"
        ) from None
