"""Tries the parts of a model that are classes of one's own, so that a mistake in one is a line and no traceback.

What can be read from the file the stage `code` has judged. Here each class sees one row of tokens, on the device and
in the precision of the training: it must give back the size that it gets. A branch of another width is not always
an error of torch: [1, T, 1] is added to a stream of [1, T, C], and trains badly. After each backward pass every
parameter must have a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model.context import Context
from model.decoder import Decoder
from model.parts import told
from stages.errors import BadInput


def try_own_parts(model: Decoder, inputs_BT: Tensor, context: Context) -> None:
    """Calls one part of each class of one's own.

    Raises:
        BadInput: it raises something, or gives back another size.
    """
    if not any(own_parts(model)):
        return
    model.eval()  # nothing is counted or dropped
    with torch.no_grad():
        x_BTC = model.embed(inputs_BT, context.places.positions)
        for field, name, part in own_parts(model):
            try:
                y = part(x_BTC, context) if field == "layer_pattern" else part(x_BTC)
            except Exception as error:  # a user's code raises whatever it likes
                raise BadInput(f"params.yaml: model.{field}: {told(name, error)}") from error
            if not isinstance(y, Tensor) or y.shape != x_BTC.shape:
                found = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
                raise BadInput(
                    f"params.yaml: model.{field}: {name}: its forward makes {found} of {list(x_BTC.shape)}; it must "
                    "give back the size that it gets"
                )
    model.train()


def own_parts(model: Decoder) -> Iterator[tuple[str, str, nn.Module]]:
    """The param, the name, and one module of each class of one's own."""
    config = model.config
    if "." in config.norm:
        yield "norm", config.norm, model.final_norm
    if "." in config.mlp:
        yield "mlp", config.mlp, model.blocks[0].mlp  # type: ignore[misc]
    for kind in dict.fromkeys(kind for kind in config.kinds if "." in kind):
        yield "layer_pattern", kind, model.blocks[config.kinds.index(kind)].attention  # type: ignore[misc]


def without_gradient(name: str) -> BadInput:
    """What to say where a backward pass has left a parameter without a gradient."""
    return BadInput(
        f"params.yaml: model: the loss does not depend on the parameter {name} of a part of yours; use it in forward, "
        "remove it, or make it a buffer (register_buffer) if it shall stay as it is"
    )
