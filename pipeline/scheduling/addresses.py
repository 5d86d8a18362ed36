"""Where the servers of `millrace up` are, so that other commands of this clone find them.

`.dvc/tmp/millrace/up/addresses.json` is written when they answer and removed when they end. What a killed `up`
has left there names servers that do not answer, and is taken for nothing.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path


def folder(root: Path) -> Path:
    """Where `millrace up` keeps its addresses, logs and Prefect's database."""
    return root / ".dvc" / "tmp" / "millrace" / "up"


@dataclasses.dataclass(frozen=True)
class Addresses:
    """Empty where there is none.

    Attributes:
        prefect: of Prefect's API.
        mlflow: of the MLflow UI.
    """

    prefect: str = ""
    mlflow: str = ""

    @classmethod
    def read(cls, root: Path) -> Addresses:
        try:
            return cls(**json.loads((folder(root) / "addresses.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return cls()

    def write(self, root: Path) -> None:
        from stages.files import write_json  # pydantic: a fifth of a second of every `--help`

        write_json(folder(root) / "addresses.json", dataclasses.asdict(self))

    @staticmethod
    def remove(root: Path) -> None:
        (folder(root) / "addresses.json").unlink(missing_ok=True)
