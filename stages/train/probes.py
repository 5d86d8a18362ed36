"""probes.csv: what goes on in every layer, every `train.probe_interval` steps; off by default.

    step,layer,activation_rms,gradient_norm,update_to_weight,attention_logit_max,dead_units
    100,embedding,,0.0214,0.00087,,
    100,0,1.31,0.0352,0.00112,8.4,0.002
    100,head,,0.1030,0.00087,,

    activation_rms        root mean square of the residual stream behind the layer
    gradient_norm         length of the gradient of all its parameters, before clipping
    update_to_weight      length of what the step added to them / their length; near 0.001 is healthy for Adam
    attention_logit_max   largest scaled product of a query and a key that it sees; beyond 50 or so softmax is a choice
    dead_units            share of the MLP's units that stay below a hundredth of the root mean square of all

`embedding` and `head` (with the last norm) have parameters and no attention. Activations and logits come from
reading the first rows of the step once more, with the weights after it, through the very modules of the model; the
attention is watched by blocks (stages/watching.py), so no [T, T] is held. That pass is made kernel by kernel, whatever
is compiled or recorded otherwise, without a gradient and without drawing anything: the training has the same bits
with probes and without. It costs a copy of the weights in the processor's memory, and about a step, at each probe.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from stages.order import data_order
from stages.perplexity import to_tensors
from stages.tracking import Run
from stages.train.journal import HEADER, MEASURES, PROBES, keep_lines
from stages.train.step import Hook, StepResult
from stages.watching import Block, watch

if TYPE_CHECKING:
    from torch import Tensor, nn

    from model.decoder import Decoder
    from stages.train.run import TrainingRun

MOST_TOKENS = 4096  # slots that are read once more
DEAD = 0.01  # of the root mean square of all units

Figures = dict[str, dict[str, float]]  # by layer, by measure


class Probes(Hook):
    """Writes a line a layer. Gradients and weights are alike on all ranks, and the rows are those of the global batch,
    so the first rank does it alone and any number of them finds the same."""

    every_rank = False

    def __init__(self, tracked: Run):
        self.tracked = tracked

    def start(self, run: TrainingRun) -> None:
        path = run.folder / PROBES
        if run.state.step and path.exists():
            keep_lines(path, run.state.step, lambda line: line.partition(",")[0])
        else:
            path.write_text(HEADER)
        self.file = path.open("a", buffering=1)

    def needs(self, run: TrainingRun, step: int) -> bool:
        return step % run.params.probe_interval == 0

    def before_update(self, run: TrainingRun, step: int, grad_norm: Tensor) -> None:
        if self.needs(run, step):
            self.gradients = gradient_norms(run, grad_norm)
            self.weights = {name: p.detach().to("cpu", copy=True) for name, p in run.optimizers.parameters.items()}

    def after_step(self, run: TrainingRun, result: StepResult) -> None:
        if not self.needs(run, run.state.step):
            return
        weights, self.weights = self.weights, {}
        if result.skipped:
            return
        figures: Figures = defaultdict(dict)
        for layer, norm in self.gradients.items():
            figures[layer]["gradient_norm"] = float(norm)
        for layer, ratio in update_ratios(run, weights).items():
            figures[layer]["update_to_weight"] = ratio
        for layer, found in look_at_layers(run).items():
            figures[layer] |= found
        for layer in ("embedding", *map(str, range(len(run.model.blocks))), "head"):
            cells = [f"{figures[layer][name]:.6g}" if name in figures[layer] else "" for name in MEASURES]
            self.file.write(",".join((str(run.state.step), layer, *cells)) + "\n")
        self.tracked.metrics(
            run.state.step,
            {f"probes/{name}/{layer}": v for layer, found in figures.items() for name, v in found.items()},
        )

    def close(self, run: TrainingRun) -> None:
        if hasattr(self, "file"):
            self.file.close()


def layer_of(parameter: str) -> str:
    """`blocks.3.mlp.up.weight` is of layer 3; what stands before the blocks and behind them has names."""
    first, _, rest = parameter.partition(".")
    if first == "blocks":
        return rest.partition(".")[0]
    return "embedding" if first in ("embedding", "position_embedding") else "head"


def gradient_norms(run: TrainingRun, grad_norm: Tensor) -> dict[str, Tensor]:
    """By layer, on the device, as they were before the gradient was clipped."""
    import torch

    squares: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in run.optimizers.parameters.items():
        if parameter.grad is not None:
            squares[layer_of(name)].append(parameter.grad.norm().double().square())
    limit = run.params.grad_clip or float("inf")
    factor = torch.clamp(limit / (grad_norm.double() + 1e-6), max=1.0)  # as torch.nn.utils.clip_grad_norm_ has it
    return {layer: torch.stack(found).sum().sqrt() / factor for layer, found in squares.items()}


def update_ratios(run: TrainingRun, before: dict[str, Tensor]) -> dict[str, float]:
    """By layer; a layer whose parameters were all zero has none."""
    moved: dict[str, float] = defaultdict(float)
    lengths: dict[str, float] = defaultdict(float)
    for name, parameter in run.optimizers.parameters.items():
        old = before[name].to(parameter.device)
        moved[layer_of(name)] += float((parameter.detach() - old).norm().double().square())
        lengths[layer_of(name)] += float(old.norm().double().square())
    return {layer: (moved[layer] / lengths[layer]) ** 0.5 for layer in moved if lengths[layer]}


def look_at_layers(run: TrainingRun) -> Figures:
    """What the layers do with the first rows of the last step."""
    import torch

    first = (run.state.step - 1) * run.rows_per_step
    n_rows = min(run.rows_per_step, max(1, MOST_TOKENS // run.train_rows.context_length))
    batch = run.train_rows.batch(data_order(run.train_rows.n_rows, run.params.seed, first, n_rows))
    inputs, _, segments, positions = to_tensors(batch, run.ranks.device)
    real = segments >= 0
    largest: dict[str, Tensor] = {}

    def look(block: Block) -> None:
        scores = block.scores.amax(dim=(1, 3))[real[:, block.queries]]
        if len(scores):
            layer = str(block.layer)
            largest[layer] = torch.maximum(largest.get(layer, scores.max()), scores.max())

    run.model.eval()
    # no_grad, not inference_mode: its tensors could not be used by a training that goes on
    with torch.no_grad(), run.autocast(), torch.compiler.set_stance("force_eager"), watched(run.model, real) as found:
        watch(run.model, inputs, segments, positions, look)
    run.model.train()
    for layer, value in largest.items():
        found[layer]["attention_logit_max"] = value
    return {layer: {name: float(value) for name, value in values.items()} for layer, values in found.items()}


@contextlib.contextmanager
def watched(model: Decoder, real_BT: Tensor) -> Iterator[dict[str, dict[str, Tensor]]]:
    """Within this context, blocks and the units of their MLPs note what goes through them where `real_BT` has tokens.

    Experts and MLPs of one's own have no units that are known here.
    """
    from model.mlp import GatedMLP, PlainMLP

    found: dict[str, dict[str, Tensor]] = defaultdict(dict)

    def behind_block(layer: str) -> Any:
        def note(module: nn.Module, inputs: Any, outputs: tuple[Tensor, Any]) -> None:
            found[layer]["activation_rms"] = outputs[0][real_BT].float().square().mean().sqrt()

        return note

    def before_down(layer: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
            units_NF = inputs[0][real_BT].float().abs()
            threshold = DEAD * units_NF.square().mean().sqrt()
            found[layer]["dead_units"] = (units_NF.amax(dim=0) <= threshold).float().mean()

        return note

    with contextlib.ExitStack() as stack:
        for number, block in enumerate(model.blocks):
            stack.enter_context(block.register_forward_hook(behind_block(str(number))))
            if isinstance(block.mlp, GatedMLP | PlainMLP):
                stack.enter_context(block.mlp.down.register_forward_pre_hook(before_down(str(number))))
        yield found
