"""The sections of params.yaml and their schemas, in one table, and their check as a whole.

A new section is added here, and under the stages that read it in dvc.yaml. A test holds the table
against the signatures of all stages.
"""

from __future__ import annotations

from typing import Any

from model.config import ModelConfig
from stages.clean.params import CleanParams
from stages.dedup.params import DedupParams
from stages.download.params import DownloadParams
from stages.evaluate.params import EvaluateParams
from stages.execution import Execution
from stages.export.params import ExportParams
from stages.pack.params import PackParams
from stages.params import ParamsFile
from stages.splits import SplitParams
from stages.tokenizer.params import TokenizerParams
from stages.train.params import TrainParams

SECTIONS: dict[str, type] = {
    "download": DownloadParams,
    "split": SplitParams,
    "clean": CleanParams,
    "dedup": DedupParams,
    "tokenizer": TokenizerParams,
    "pack": PackParams,
    "model": ModelConfig,
    "train": TrainParams,
    "evaluate": EvaluateParams,
    "export": ExportParams,
    "execution": Execution,
}


def read_sections(params: ParamsFile) -> dict[str, Any]:
    """Every section of the file, validated.

    Raises:
        BadInput: the first mistake, with its line and the nearest valid name; or a section that is not
            there, since DVC would then refuse the stages that read it.
    """
    params.check_section_names(list(SECTIONS))
    for name in SECTIONS:
        if name not in params.values:
            raise params.fail([name], f"this section is missing; add a line `{name}:` (its keys have defaults)")
    return {name: params.section(name, schema) for name, schema in SECTIONS.items()}
