"""Writes an ONNX graph node by node, under names that say where in the model a node stands.

    graph = Graph()
    with graph.within("blocks.0"):
        y = graph("Mul", x, graph.number(2.0))     # the node blocks.0/Mul, and the name of its output

Written directly and not traced: tracing our decoder takes 22 s of CPU at 3 layers and more with each layer, this
takes milliseconds; it needs no value of any tensor; and equal weights give equal bytes, since no place in a
source file, no counter of a tracer and no version of torch goes into the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

FLOAT, BOOL = 1, 9  # as ONNX numbers types
OPSET, IR_VERSION = 20, 10  # onnxruntime reads them from 1.17 on
MOST_INLINE_BYTES = 1_900_000_000  # protobuf holds at most 2 GiB; beyond it weights stand in a file beside
DATA_SUFFIX = ".data"


class Graph:
    """Nodes and weights in the order of their making."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._weights: dict[str, np.ndarray] = {}
        self._place: list[str] = []
        self._used: dict[str, int] = {}

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Nodes made in the block stand below this name."""
        self._place.append(name)
        yield
        self._place.pop()

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """A node; the name of its output, or the list of them."""
        from onnx import helper

        name = self._unused("/".join([*self._place, op]))
        names = [name] if outputs == 1 else [f"{name}.{number}" for number in range(outputs)]
        self._nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, name: str, array: np.ndarray) -> str:
        """A tensor of the file, under this name."""
        self._weights[name] = np.asarray(array, order="C")
        return name

    def numbers(self, *values: int) -> str:
        """A constant of integers, such as a shape; equal ones are one."""
        return self.weight(f"constants/[{','.join(map(str, values))}]", np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A constant fp32 scalar."""
        return self.weight(f"constants/{np.float32(value)!s}", np.array(value, np.float32))

    def integer(self, value: int) -> str:
        """A constant int64 scalar."""
        return self.weight(f"constants/{value}i", np.array(value, np.int64))

    def rename(self, old: str, new: str) -> None:
        """Gives an output of the graph its public name."""
        from onnx import helper

        self._nodes.append(helper.make_node("Identity", [old], [new], name=f"output/{new}"))

    def save(self, path: Path, inputs: Sequence[Any], outputs: Sequence[Any], metadata: dict[str, str]) -> None:
        """Writes the file, checked by onnx; large weights go into `NAME.data` beside it."""
        import onnx
        from onnx import helper, numpy_helper

        tensors = [numpy_helper.from_array(array, name) for name, array in self._weights.items()]
        graph = helper.make_graph(self._nodes, "decoder", inputs, outputs, tensors)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="millrace"
        )
        helper.set_model_props(model, metadata)
        beside = sum(array.nbytes for array in self._weights.values()) > MOST_INLINE_BYTES
        onnx.save_model(
            model, path, save_as_external_data=beside, all_tensors_to_one_file=True, location=path.name + DATA_SUFFIX
        )
        onnx.checker.check_model(path, full_check=False)

    def _unused(self, name: str) -> str:
        count = self._used[name] = self._used.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"
