"""Half and 8-bit precision, checkpointing and graphs: near what is exact, and refused where they cannot be."""

import dataclasses
import functools

import pytest
import torch
from torch import nn

from model.decoder import Decoder
from stages.checkpoint import write_tensors
from stages.errors import BadInput, Failed
from stages.execution import Execution
from stages.tokens import TokenRows
from stages.train import feasible, float8
from stages.train.activations import checkpoint_activations, is_compiled_inside
from stages.train.cross_entropy import LossTerms
from stages.train.fitting import micro_batch_rows, useful_rows
from stages.train.float8 import Float8Linear, convert_to_float8
from stages.train.float8_mlp import join_mlps
from stages.train.objective import CausalObjective, autocast, compile_parts
from stages.train.optimizers import Optimizers
from stages.train.params import TrainParams
from stages.train.parts import stored
from stages.train.prepare import no_graph_here, prepare
from stages.train.ranks import Ranks
from stages.train.scaler import FIRST, LossScaler
from tests.stages.test_train import EXECUTION, MODEL, TRAIN, losses, run_in, weights

ONE = Ranks(0, 1, "cpu")
ARCHITECTURES = {
    "llama": MODEL,
    "dropout": dataclasses.replace(MODEL, dropout=0.2),
    "mla": dataclasses.replace(
        MODEL, layer_pattern="mla", kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8
    ),
    "experts": dataclasses.replace(MODEL, n_experts=4, expert_size=16),
}


def gradients(config, kind: str) -> tuple[float, dict[str, torch.Tensor], list[torch.Tensor]]:
    model = Decoder(config, 61, 16)
    model.initialise(torch.Generator().manual_seed(0))
    for parameter in model.parameters():  # outputs that are not zero
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    checkpoint_activations(model.train(), kind, compiled=False)
    row = torch.randint(0, 61, (3, 17), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(16).expand(3, 16)
    torch.manual_seed(5)
    loss, _ = CausalObjective(model)(row[:, :-1], row[:, 1:], torch.zeros_like(positions), positions)
    loss.backward()
    counts = [module.counts for module in model.modules() if hasattr(module, "counts")]
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}, counts


@pytest.mark.parametrize("kind", ["full", "every_2", "selective"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_computed_again_is_the_same(name, kind):
    loss, plain, counts = gradients(ARCHITECTURES[name], "none")
    again, found, counted = gradients(ARCHITECTURES[name], kind)
    assert again == loss
    for key, gradient in plain.items():
        assert torch.allclose(found[key], gradient, rtol=0, atol=1e-6 * float(gradient.norm()) + 1e-9), key
    assert all(torch.equal(one, other) for one, other in zip(counted, counts, strict=True))


class DroppingMLP(nn.Module):
    """A part of one's own that drops numbers of itself, though model.dropout is 0."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.inner(x), 0.5, self.training)


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_what_a_part_of_ones_own_drops_is_dropped_again(kind):
    found = []
    for checkpointing in ("none", kind):
        model = Decoder(dataclasses.replace(MODEL, residual_init="normal"), 61, 16)
        model.initialise(torch.Generator().manual_seed(0))
        for block in model.blocks:
            block.mlp = DroppingMLP(block.mlp)
        checkpoint_activations(model.train(), checkpointing, compiled=False)
        torch.manual_seed(5)
        model(torch.arange(32).view(2, 16)).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert all(torch.allclose(found[1][name], gradient, atol=1e-5) for name, gradient in found[0].items())


def test_tokens_that_16_does_not_divide_go_without_8_bits():
    linear = nn.Linear(32, 32)
    linear.__class__, linear.scaling = Float8Linear, "tensorwise"
    assert (
        linear(torch.zeros(5, 3, 32)).dtype == torch.float32 and linear(torch.zeros(4, 4, 32)).dtype == torch.bfloat16
    )


def test_no_more_rows_at_once_than_a_rank_has_and_it_is_said(packed, capsys):
    rows = TokenRows(packed / "data/pack/train")
    assert micro_batch_rows(nn.Identity(), None, TRAIN, Execution(micro_batch=8), ONE, rows) == 8
    assert capsys.readouterr().out == ""
    assert micro_batch_rows(nn.Identity(), None, TRAIN, Execution(micro_batch=64), ONE, rows) == 8
    said = "train: a step has 8 rows a process; execution.micro_batch 64 is taken as 8\n"
    assert capsys.readouterr().out == said


def test_a_block_keeps_less():
    """Bytes that wait for the backward pass."""

    def held(kind: str) -> int:
        model = Decoder(MODEL, 61, 16)
        model.initialise(torch.Generator().manual_seed(0))
        checkpoint_activations(model.train(), kind, compiled=False)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        inputs = torch.zeros(4, 16, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(inputs)
        return sum(kept.values())

    assert held("full") < 0.7 * held("none")


def test_the_scaler_halves_after_infinity_and_doubles_after_good_steps(monkeypatch, tmp_path):
    monkeypatch.setattr("stages.train.scaler.GROWTH_STEPS", 3)
    scaler = LossScaler("cpu")
    scaler.update(torch.tensor(False))
    assert scaler.factor == FIRST / 2
    for _ in range(3):
        scaler.update(torch.tensor(True))
    assert scaler.factor == FIRST
    other = LossScaler("cpu")
    write_tensors(tmp_path / "scaler.safetensors", scaler.tensors())
    other.load(stored(tmp_path, "scaler"))
    assert other.factor == scaler.factor and other.good_steps == scaler.good_steps


def test_fp16_scales_its_loss_and_trains_as_fp32(packed):
    plain, half = run_in(packed), None
    reference = losses(plain)
    half = run_in(packed, TRAIN.model_copy(update={"precision": "fp16"}))
    assert losses(half) == pytest.approx(reference, abs=0.01)
    assert (half / "last/scaler.safetensors").exists()


def test_8_bit_products_are_near_and_their_gradients_too():
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # torch 2.11 has no rowwise products on CPUs
    for scaling in ("tensorwise", "rowwise"):
        plain = nn.Linear(64, 32).to(device)
        low = nn.Linear(64, 32).to(device)
        low.load_state_dict(plain.state_dict())
        low.__class__, low.scaling = Float8Linear, scaling
        x = torch.randn(4, 16, 64, device=device)
        one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = low(one), plain(other)
        assert y.dtype == torch.bfloat16 and distance(y, expected) < 0.05
        gradient = torch.randn(4, 16, 32, device=device)
        y.backward(gradient.bfloat16())
        expected.backward(gradient)
        assert distance(one.grad, other.grad) < 0.08 and distance(low.weight.grad, plain.weight.grad) < 0.08
        assert distance(low.bias.grad, plain.bias.grad) < 0.01


def eight_bit_mlp(in_parts: bool) -> nn.Sequential:
    """64 to 256 to 64 wide, in bf16 as FSDP gathers it."""
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(64, 256, bias=False), nn.SiLU(), nn.Linear(256, 64, bias=False)).bfloat16()
    for linear in (mlp[0], mlp[2]):
        linear.__class__, linear.scaling, linear.in_parts = Float8Linear, "tensorwise", in_parts
    return mlp


@pytest.mark.parametrize("backend", ["", "aot_eager_decomp_partition"])  # without compile, and as it cuts the passes
def test_of_weights_in_parts_nothing_in_8_bits_waits_for_the_backward_pass(backend):
    found, waiting = [], []
    for in_parts in (False, True):
        torch._dynamo.reset()
        mlp, kept = eight_bit_mlp(in_parts), []
        forward = torch.compile(mlp, backend=backend) if backend else mlp
        x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            y = forward(x)
        y.float().square().sum().backward()
        found.append([y, x.grad, *(parameter.grad for parameter in mlp.parameters())])
        sizes = [tuple(t.shape) for t in kept if t.dtype == float8.FORWARD]
        waiting.append(sum(size in ((64, 256), (256, 64)) for size in sizes))
        own = {parameter.data_ptr() for parameter in mlp.parameters()}
        assert (own <= {t.data_ptr() for t in kept}) is in_parts
    assert waiting == [2, 0]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_without_gradients_the_same_bits_come_out_and_no_transposes_are_written():
    mlp = eight_bit_mlp(False)
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    found, writes_both = [], []
    for gradients in (True, False):
        with torch.profiler.profile() as profile, torch.set_grad_enabled(gradients):
            found.append(mlp(x).detach())
        writes_both.append(any("cast_both" in event.key for event in profile.key_averages()))
    assert writes_both == [True, False] and torch.equal(*found)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.detach().float() - other.detach()).norm() / other.detach().norm())


def test_layers_that_gain_are_converted_and_names_stay():
    model = Decoder(dataclasses.replace(MODEL, hidden_size=64, intermediate_size=128), 512)
    names = list(model.state_dict())
    found = convert_to_float8(model, "tensorwise", narrowest=64)
    assert list(model.state_dict()) == names
    assert "blocks.0.mlp.up" in found and "blocks.1.attention.query" in found
    assert not any("embedding" in name or "head" in name for name in found)
    key = model.blocks[0].attention.key  # 32 wide: left as it is
    assert type(key) is nn.Linear and type(model.blocks[0].mlp.up) is Float8Linear
    assert not any(isinstance(module, Float8Linear) for module in (model.embedding, model.final_norm))


def test_8_bits_are_refused_without_the_hardware():
    with pytest.raises(BadInput, match="train.precision is fp8, which needs a GPU; set it to bf16 or fp32"):
        prepare(Decoder(MODEL, 61), TrainParams(precision="fp8"), EXECUTION, ONE)


def test_the_residual_stream_is_of_the_precision_asked_for():
    model = Decoder(dataclasses.replace(MODEL, positions="learned"), 61, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with autocast("cpu", precision):
            assert model.embed(torch.zeros(1, 2, dtype=torch.int64), torch.arange(2)[None]).dtype == dtype


def test_chunks_and_checkpoints_train_as_all_at_once(packed):
    whole = run_in(packed)
    parts = EXECUTION.model_copy(update={"loss_chunk_tokens": 24, "activation_checkpointing": "full"})
    job_weights, found = weights(whole), losses(whole)
    again = run_in(packed, TRAIN.model_copy(update={"max_skipped_steps": 6}), parts)  # a run of its own
    assert losses(again) == pytest.approx(found, abs=1e-4)
    assert all(torch.allclose(w, job_weights[name], atol=1e-3) for name, w in weights(again).items())


def test_a_graph_is_refused_with_the_reason():
    gpu = Ranks(0, 1, "cuda")
    assert no_graph_here(Execution(), gpu) == feasible.no_graph_of(MODEL, TRAIN) == ""
    assert "graphs are for GPUs" in no_graph_here(Execution(), ONE)
    assert "compile is off" in no_graph_here(Execution(compile=False), gpu)
    assert no_graph_here(Execution(), Ranks(0, 2, "cuda")) == ""
    assert "between hosts" in no_graph_here(Execution(), Ranks(0, 2, "cuda", one_host=False))
    assert "gather parameters" in no_graph_here(Execution(sharding="full"), Ranks(0, 2, "cuda"))
    assert "dropout" in feasible.no_graph_of(ARCHITECTURES["dropout"], TRAIN)
    assert "experts" in feasible.no_graph_of(ARCHITECTURES["experts"], TRAIN)


def test_micro_batches_divide_the_rows_of_a_rank():
    assert useful_rows(12, 256, ONE) == [4, 3, 2, 1]  # 1,024 tokens on CPUs
    assert useful_rows(7, 64, ONE) == [7, 1]
    assert useful_rows(5, 4096, ONE) == [1]
    assert useful_rows(128, 1024, Ranks(0, 1, "cuda"))[:2] == [64, 32]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_trial_takes_what_fits_and_leaves_nothing(packed, monkeypatch):
    rows = TokenRows(packed / "data/pack/train")
    model = Decoder(MODEL, rows.vocab_size, rows.context_length)
    model.initialise(torch.Generator().manual_seed(0))
    model.cuda()
    params = TRAIN.model_copy(update={"precision": "bf16"})
    optimizers = Optimizers(model, params)
    objective = CausalObjective(model)
    ranks = Ranks(0, 1, "cuda")
    assert micro_batch_rows(objective, optimizers, params, Execution(), ranks, rows) == 8
    assert all(parameter.grad is None for parameter in model.parameters())
    monkeypatch.setattr("stages.train.fitting.SPARE", 2.0)  # twice the card
    with pytest.raises(Failed, match="one row of 16 tokens"):
        micro_batch_rows(objective, optimizers, params, Execution(), ranks, rows)


@pytest.mark.parametrize("kind", ["every_0", "some", "every_x", "FULL"])
def test_an_unknown_kind_of_checkpointing_is_refused(kind):
    with pytest.raises(ValueError, match=rf"activation_checkpointing\n.*'{kind}' is unknown; there are none, full, "):
        Execution(activation_checkpointing=kind)


def test_label_smoothing_is_in_the_loss_and_not_in_the_nats():
    model = Decoder(MODEL, 61)
    model.initialise(torch.Generator().manual_seed(0))
    row = torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(16).expand(2, 16)
    batch = (row[:, :-1], row[:, 1:], torch.zeros_like(positions), positions)
    plain, nats = CausalObjective(model)(*batch)
    for chunk in (0, 5):
        total, same = CausalObjective(model, label_smoothing=0.2, chunk_tokens=chunk)(*batch)
        assert float(same) == pytest.approx(float(nats), rel=1e-5) and float(plain) == float(nats)
        assert float(total) != pytest.approx(float(plain), rel=1e-4)
    assert LossTerms(61) == CausalObjective(model).terms


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8"])
@pytest.mark.parametrize("pattern", ["full", "swa"])
def test_a_graph_is_the_kernels_one_by_one(packed, precision, pattern):
    """Gradients of three micro-batches with other numbers of documents, by replay and by launches."""
    from stages.train.batches import Batches
    from stages.train.micro_step import EagerMicroStep, GraphedMicroStep

    rows = TokenRows(packed / "data/pack/train")
    batches = Batches(rows, 0, 24, 0, 1, 8, 0, "cuda")
    micro_batches = batches.at(0).micro_batches
    batches.close()
    found = []
    for graphed in (False, True):
        torch._dynamo.reset()
        config = dataclasses.replace(MODEL, hidden_size=64, n_kv_heads=4, layer_pattern=pattern, window=5)
        model = Decoder(config, rows.vocab_size, rows.context_length)
        model.initialise(torch.Generator().manual_seed(0))
        for parameter in model.parameters():  # outputs that are not zero, so that every gradient is one
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        model.cuda()
        if precision == "fp8":
            convert_to_float8(model, "tensorwise", narrowest=64)
        execution = Execution(tracking=False)
        objective = prepare(model, TrainParams(precision="bf16"), execution, Ranks(0, 1, "cuda"))
        kind = "bf16" if precision == "fp8" else precision
        step = GraphedMicroStep(objective, "cuda", kind, 8) if graphed else EagerMicroStep(objective, "cuda", kind)
        nats = [float(step(batch, 0.01)) for batch in micro_batches]
        found.append((nats, {name: p.grad.clone() for name, p in model.named_parameters()}))
    (nats, plain), (replayed, gradients_) = found
    assert replayed == pytest.approx(nats, rel=1e-5)
    for name, gradient in plain.items():
        assert distance(gradients_[name], gradient) < 1e-2, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_that_makes_its_gradients_leaves_none_of_the_step_before(packed):
    from stages.train.batches import Batches
    from stages.train.micro_step import EagerMicroStep, GraphedMicroStep

    rows = TokenRows(packed / "data/pack/train")
    batches = Batches(rows, 0, 8, 0, 1, 8, 0, "cuda")
    steps = [batches.at(number).micro_batches[0] for number in range(3)]
    batches.close()
    model = Decoder(dataclasses.replace(MODEL, hidden_size=64, n_kv_heads=4), rows.vocab_size, rows.context_length)
    model.initialise(torch.Generator().manual_seed(0))
    for parameter in model.parameters():  # outputs that are not zero, so that every gradient is one
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    model.cuda()
    objective = prepare(model, TrainParams(precision="bf16"), Execution(tracking=False), Ranks(0, 1, "cuda"))
    made, plain = GraphedMicroStep(objective, "cuda", "bf16", 8, True), EagerMicroStep(objective, "cuda", "bf16")
    for batch in steps:
        nats = float(made(batch, 0.01))
        found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        kept = {parameter: parameter.grad for parameter in model.parameters()}
        model.zero_grad()
        assert float(plain(batch, 0.01)) == pytest.approx(nats, rel=1e-5)
        for name, parameter in model.named_parameters():
            assert distance(found[name], parameter.grad) < 1e-2, name
            parameter.grad = kept[parameter]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_8_bit_kernels_run():
    linear = nn.Linear(1024, 1024).cuda()
    linear.__class__, linear.scaling = Float8Linear, "tensorwise"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        linear(torch.randn(64, 1024, device="cuda")).sum().backward()
        torch.cuda.synchronize()
    names = " ".join(event.key for event in profile.key_averages())
    assert "qqtst" in names or "e4m3" in names or "fp8" in names.lower(), names
    assert torch.float8_e4m3fn == float8.FORWARD


@pytest.mark.parametrize("kind", ["full", "every_2"])
@pytest.mark.parametrize("name", ["llama", "experts"])
def test_compiled_blocks_with_functions_of_ours_are_computed_again_as_a_whole(name, kind, monkeypatch):
    """Whatever the compiler would keep of 8-bit layers: a block keeps its input alone, and gradients are the same."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    config = dataclasses.replace(ARCHITECTURES[name], hidden_size=64, intermediate_size=96, n_kv_heads=4)
    found, keeps = [], []
    for checkpointing in ("none", kind):
        torch._dynamo.reset()
        model = Decoder(config, 64, 16)
        model.initialise(torch.Generator().manual_seed(0))
        for parameter in model.parameters():  # outputs that are not zero
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
        convert_to_float8(model.train(), "tensorwise", narrowest=64)
        join_mlps(model)
        checkpoint_activations(model, checkpointing, compiled=True, own_functions=True)
        assert [is_compiled_inside(block) for block in model.blocks] == [
            checkpointing != "none" and (number % 2 == 0 or kind == "full") for number in range(len(model.blocks))
        ]
        compile_parts(model, objective := CausalObjective(model))
        kept: list[torch.Tensor] = []
        row = torch.randint(0, 64, (3, 17), generator=torch.Generator().manual_seed(2))
        positions = torch.arange(16).expand(3, 16)
        with (
            autocast("cpu", "bf16"),
            torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t),
        ):
            loss, _ = objective(row[:, :-1], row[:, 1:], torch.zeros_like(positions), positions)
        loss.backward()
        counts = [module.counts.clone() for module in model.modules() if hasattr(module, "counts")]
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters()), *counts])
        keeps.append(sum(t.dtype in (float8.FORWARD, float8.BACKWARD) for t in kept))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert keeps[0] > 0 and keeps[1] == (0 if kind == "full" else keeps[0] // 2)
