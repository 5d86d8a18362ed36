"""Numbers between matrices of bf16 in fp32: nearer to what the same weights give in fp32."""

import copy

import pytest
import torch
from torch._functorch.aot_autograd import aot_module_simplified
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode

from serving.reader import Reader
from serving.rows import Rows
from serving.wide import WideLinear, can_widen, wide_product, widen
from tests.model.test_decoder import decoder, tokens

CAPACITY = 24
VARIANTS = {
    "plain": {"fused_qkv": True}, "windows": {"layer_pattern": "swa,full", "window": 3, "sink_tokens": 1},
    "gpt2": {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True, "qk_norm": False},
    "olmo2": {"pre_norm": False, "post_norm": True, "qk_norm_scope": "full", "tie_embeddings": False},
    "capped": {"norm": "dyt", "logit_softcap": 3.0},
}  # fmt: skip


def wide(**settings: object) -> tuple:
    """A widened decoder in bf16, the plain one, and the same weights in fp32."""
    model = decoder(n_layers=6, hidden_size=64, **settings).bfloat16()
    plain, exact = copy.deepcopy(model), copy.deepcopy(model).float()
    assert can_widen(model)
    widen(model)
    assert type(model.blocks[0].mlp.down) is WideLinear and not can_widen(model)
    return model, plain, exact


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_wide_logits_are_nearer_to_those_of_fp32_and_those_of_rows_are_theirs(variant: str) -> None:
    model, plain, exact = wide(**VARIANTS[variant])
    row = tokens(1, CAPACITY)[0].tolist()
    readers = [Reader(some, 2, CAPACITY) for some in (model, plain, exact)]
    for reader in readers:
        reader.fill_rows(0, [row[:5], row[1:6]], [0, 0])
    rows, caches = Rows(model, CAPACITY, "false"), [cache.part(0, 2, CAPACITY) for cache in readers[0].caches]
    apart = torch.zeros(2)
    for place in range(5, CAPACITY):
        inputs = [row[place], row[-place]]
        wanted = readers[2].step(inputs, [place, place])
        found = [reader.step(inputs, [place, place]) for reader in readers[:2]]
        assert found[0].dtype == torch.float32
        apart += torch.stack([(some.float() - wanted).square().mean() for some in found])
        inputs_B1, positions_B1 = torch.tensor(inputs)[:, None], torch.full((2, 1), place)
        stepped = rows.step(inputs_B1, positions_B1, caches, CAPACITY)
        assert (stepped - found[0]).abs().max() < 0.02 * found[0].abs().max()
    assert apart[0] < 0.6 * apart[1]


@pytest.mark.parametrize("settings", [
    {"n_experts": 4}, {"layer_pattern": "mla", "kv_lora_rank": 10, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4,
                       "v_head_dim": 5},
])  # fmt: skip
def test_other_parts_stay_as_they_are(settings: dict) -> None:
    assert not can_widen(decoder(**settings).bfloat16())
    assert not can_widen(decoder())


@pytest.mark.parametrize("n_rows", [1, 2])
@pytest.mark.parametrize("tuned", [False, True])
def test_compiled_sums_on_a_gpu_stay_in_fp32(n_rows: int, tuned: bool) -> None:
    """What inductor is given, for tensors that only say that they are on a GPU. Its own form of one row's product,
    which tuning takes, forgets out_dtype."""

    def traced(module: torch.nn.Module, inputs: list) -> object:
        with torch._inductor.config.patch(coordinate_descent_tuning=tuned):
            return aot_module_simplified(module, inputs, collected, decompositions=select_decomp_table())

    def collected(module: torch.fx.GraphModule, inputs: list) -> object:
        (output,) = module.graph.output_node().args[0]
        kinds.append(output.meta["val"].dtype)
        return module.forward

    kinds: list[torch.dtype] = []
    torch._dynamo.reset()
    with FakeTensorMode(), torch.inference_mode():
        x_B1K = torch.empty(n_rows, 1, 64, device="cuda")
        weight_NK = torch.empty(128, 64, device="cuda", dtype=torch.bfloat16)
        y_B1N = torch.compile(wide_product, backend=traced)(x_B1K, weight_NK)
    assert kinds == [torch.float32] and y_B1N.shape == (n_rows, 1, 128)
