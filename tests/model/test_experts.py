"""Experts: equal to a loop over tokens, whatever their order, with losses that are 1 where all is even."""

import copy

import pytest
import torch
from torch.nn import functional as F

from model.config import ModelConfig
from model.context import Context, Places
from model.experts import Experts
from tests.model.small import drawn


def experts(**changes) -> Experts:
    return drawn(Experts(ModelConfig(**{"hidden_size": 12, "n_heads": 2, "n_experts": 5, "expert_size": 9, **changes})))


def context(n: int, segments: torch.Tensor | None = None) -> Context:
    return Context(Places(torch.arange(n)[None], segments), {}, {})


def by_loop(module: Experts, x_C: torch.Tensor) -> torch.Tensor:
    """One token, one expert at a time."""
    logits = module.router(x_C)
    top, chosen = logits.topk(module.per_token)
    y = torch.zeros_like(x_C)
    for weight, e in zip(top.softmax(0), chosen, strict=True):
        y = y + weight * (module.down[e] @ (F.silu(module.gate[e] @ x_C) * (module.up[e] @ x_C)))
    return y if module.shared is None else y + module.shared(x_C)


@pytest.mark.parametrize("changes", [{}, {"experts_per_token": 3}, {"n_shared_experts": 2}, {"n_experts": 40}])
def test_as_a_loop_over_tokens(changes):
    module, x = experts(**changes), torch.randn(1, 20, 12)
    expected = torch.stack([by_loop(module, x_C) for x_C in x[0]])
    torch.testing.assert_close(module(x, context(20))[0][0], expected, atol=1e-6, rtol=1e-5)


def test_with_all_experts_it_is_the_weighted_sum():
    module, x = experts(experts_per_token=5), torch.randn(1, 8, 12)
    weights = module.router(x).softmax(-1)
    each = torch.stack(
        [(F.silu(x @ g.t()) * (x @ u.t())) @ d.t() for g, u, d in zip(module.gate, module.up, module.down, strict=True)]
    )
    torch.testing.assert_close(
        module(x, context(8))[0], (each * weights.permute(2, 0, 1)[..., None]).sum(0), atol=1e-6, rtol=1e-5
    )


def test_the_order_of_tokens_does_not_matter():
    module, x, order = experts(), torch.randn(1, 30, 12), torch.randperm(30)
    torch.testing.assert_close(module(x[:, order], context(30))[0], module(x, context(30))[0][:, order])


def test_the_balance_loss_is_one_a_token_where_all_is_even():
    module = experts(balance_loss=1.0, router_z_loss=0.0).train()
    with torch.no_grad():
        module.router.weight.zero_()
    _, loss = module(torch.randn(1, 10, 12), context(10))
    assert float(loss.detach()) / 10 == pytest.approx(1.0)


def test_losses_and_counts_leave_padding_out():
    module = experts(balance_loss=1.0, router_z_loss=0.5).train()
    x, segments = torch.randn(1, 10, 12), torch.tensor([[0] * 7 + [-1] * 3])
    _, padded = module(x, context(10, segments))
    counts = module.counts.clone()
    other = copy.deepcopy(module)
    other.counts.zero_()
    _, alone = other(x[:, :7], context(7, segments[:, :7]))
    torch.testing.assert_close(padded, alone)
    assert torch.equal(counts, other.counts) and counts.sum() == 7 * 2


def test_the_shares_of_a_step_are_those_of_its_micro_batches_together():
    whole, parts, x = experts().train(), experts().train(), torch.randn(4, 6, 12)
    where = Context(Places(torch.arange(6).expand(4, 6)), {}, {})
    whole(x, where)
    for row in x:
        parts(row[None], context(6))
    for module in (whole, parts):
        module.end_step()
    assert torch.equal(whole.load, parts.load) and float(whole.load.sum()) == pytest.approx(1)
    assert not whole.counts.any()


def test_losses_of_micro_batches_add_up_to_that_of_the_batch():
    module, x = experts().train(), torch.randn(4, 6, 12)
    _, whole = module(x, Context(Places(torch.arange(6).expand(4, 6)), {}, {}))
    parts = [module(row[None], context(6))[1] for row in x]
    torch.testing.assert_close(whole, torch.stack(parts).sum())


def test_a_step_that_was_skipped_or_had_no_token_leaves_the_load_as_it_was():
    experts = Experts(ModelConfig(preset="tiny", n_experts=4))
    before = experts.load.clone()
    experts.counts += torch.tensor([3.0, 1.0, 0.0, 0.0])
    experts.end_step(torch.tensor(False))
    assert torch.equal(experts.load, before)
    experts.end_step()
    assert torch.equal(experts.load, before)
    experts.counts += torch.tensor([3.0, 1.0, 0.0, 0.0])
    experts.end_step(torch.tensor(True))
    assert experts.load.tolist() == [0.75, 0.25, 0.0, 0.0]
