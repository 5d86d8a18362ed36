"""Hooks and objectives of one's own, named in params as `stages.train.FILE.CLASS`.

    train.hooks: [stages.train.norms.WeightNorms]        a stages.train.step.Hook, made as WeightNorms()
    train.objective: stages.train.focal.FocalLoss        a torch module, made as FocalLoss(model, train)

An objective is called as `objective(inputs, labels, segments, positions, n_documents)`, four times int64 [rows,
slots] and the number of documents in these rows, and returns two sums over the labels: what is minimised, and
its part that is cross-entropy in nats. Its attribute `model` is the decoder. The file stands below
stages/train/, where the fingerprint sees it: an edit retrains.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stages.errors import BadInput
from stages.train.step import Hook

if TYPE_CHECKING:
    from torch import nn

    from model.decoder import Decoder
    from stages.train.params import TrainParams


def own_hooks(names: Sequence[str]) -> list[Hook]:
    """One hook a name, in their order.

    Raises:
        BadInput: a class that is not there, that cannot be made, or is no Hook.
    """
    hooks = [made("train.hooks", name) for name in names]
    for name, hook in zip(names, hooks, strict=True):
        if not isinstance(hook, Hook):
            raise BadInput(f"params.yaml: train.hooks: {name} is no Hook; derive it from stages.train.step.Hook")
    return hooks


def own_objective(name: str, model: Decoder, train: TrainParams) -> nn.Module:
    """The objective of this name.

    Raises:
        BadInput: a class that is not there or cannot be made.
    """
    return made("train.objective", name, model, train)


def made(key: str, name: str, *arguments: Any) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)(*arguments)
    except Exception as error:  # whatever a class of the user's raises
        raise BadInput(f"params.yaml: {key}: {name}: {type(error).__name__}: {error}") from error
