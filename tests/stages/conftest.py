"""A small packed corpus, made by the code of the stage `pack` from tokens of a known source; and an export."""

from pathlib import Path

import numpy as np
import pytest

from stages.entry import Job
from stages.execution import Execution
from stages.pack.shards import RowFormat, TokenDocuments, lay_out, write_rows

VOCABULARY = 61
CONTEXT = 16


def write_split(root: Path, split: str, documents: list[np.ndarray], context_length: int = CONTEXT) -> None:
    """data/pack/SPLIT from documents of token ids; 0 is end-of-text and 1 padding."""
    flat = root / f"{split}.tokens"
    np.concatenate([np.append(0, document) for document in documents]).astype(np.uint16).tofile(flat)
    lengths = np.array([len(document) + 1 for document in documents])
    stand = TokenDocuments([flat], np.cumsum(lengths) - lengths, lengths, split + str(hash(flat.read_bytes())))
    format = RowFormat("best_fit", context_length, VOCABULARY, "uint16", end_of_text=0, padding=1)
    layout = lay_out(root / f"{split}.plan", stand, format)
    job = Job("pack", root, Execution(workers=1, scratch=str(root / "scratch")))
    write_rows(job, root / "data/pack" / split, layout, 1 << 12, tokenizer_sha256="0" * 64)


def markov_documents(count: int, seed: int) -> list[np.ndarray]:
    """Documents of 3 to 40 tokens in which most tokens follow from the one before."""
    random = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        tokens = [int(random.integers(2, VOCABULARY))]
        while len(tokens) < random.integers(3, 41):
            follows = 2 + (tokens[-1] * 7 + 3) % (VOCABULARY - 2)
            tokens.append(follows if random.random() < 0.8 else int(random.integers(2, VOCABULARY)))
        documents.append(np.array(tokens))
    return documents


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A workspace whose data/pack holds a training and a validation split of 16-slot rows."""
    write_split(tmp_path, "train", markov_documents(300, seed=0))
    write_split(tmp_path, "validation", markov_documents(40, seed=1))
    return tmp_path


@pytest.fixture
def outside_of_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no stage of DVC runs, which would say where the main repository is."""
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage `export` reads; its tests copy it before they change anything."""
    from tests.stages.exports import SMALL, write_workspace

    root = tmp_path_factory.mktemp("workspace")
    write_workspace(root, SMALL)
    return root


@pytest.fixture(scope="session")
def export(workspace: Path) -> Path:
    """One export in every format, registered in a database of the workspace, that tests look at."""
    from stages.export.params import FORMATS
    from tests.stages.exports import OUTER_SETTINGS, exported

    with pytest.MonkeyPatch.context() as environment:
        for name in OUTER_SETTINGS:
            environment.delenv(name, raising=False)
        return exported(workspace, Execution(), formats=list(FORMATS))
