"""Gradients of several ranks become their sum, in buckets, whatever the moment at which these leave."""

import multiprocessing

import pytest
import torch
from torch import distributed, nn

from stages.train.exchange import Exchange, Summed, buckets

ROWS = torch.arange(24.0).reshape(4, 6) / 24


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))


def gradients_of_all_rows() -> list[torch.Tensor]:
    model = small()
    model(ROWS).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def rank(number: int, world: int, store: str, overlaps: bool, told: multiprocessing.SimpleQueue) -> None:
    """Two steps of two micro-batches each over this rank's rows; the gradients of both."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=world)
    model = small()
    exchange, found, sent = Summed(model, overlaps, bucket_bytes=80), [], []
    for _ in range(2):
        for i, row in enumerate(ROWS[number::world]):
            exchange.begin(last=i == 1)
            model(row).square().sum().backward()
            sent.append(len(exchange.under_way))
        exchange.end()
        found.append([parameter.grad.tolist() for parameter in model.parameters()])
        for parameter in model.parameters():
            parameter.grad.zero_()
    told.put((number, found, sent, exchange.without_gradient(model)))
    distributed.destroy_process_group()


@pytest.mark.parametrize("overlaps", [True, False], ids=["within the backward pass", "behind it"])
def test_every_rank_gets_the_sum(tmp_path, overlaps):
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    processes = [context.Process(target=rank, args=(n, 2, str(tmp_path / "store"), overlaps, told)) for n in (0, 1)]
    for process in processes:
        process.start()
    answers = sorted(told.get() for _ in processes)
    for process in processes:
        process.join()
    expected = gradients_of_all_rows()
    for _, steps, sent, missing in answers:
        assert missing == []
        for step in steps:
            for gradient, whole in zip(step, expected, strict=True):
                torch.testing.assert_close(torch.tensor(gradient), whole)
        # only behind the last micro-batch of a step, and all of them before the step ends
        assert sent == ([0, 3, 0, 3] if overlaps else [0, 0, 0, 0])


def test_buckets_follow_the_backward_pass_and_hold_one_dtype():
    model = small()
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [[names[parameter] for parameter in group] for group in buckets(model, 80)]
    assert found == [["4.bias", "4.weight", "2.bias"], ["2.weight", "0.bias"], ["0.weight"]]
    model[2].double()
    assert all(len({parameter.dtype for parameter in group}) == 1 for group in buckets(model, 1 << 20))


def test_a_parameter_that_nothing_reaches_is_named():
    model = small()
    model.register_parameter("lost", nn.Parameter(torch.ones(2)))
    exchange = Summed(model, overlaps=False)
    exchange.begin(last=True)
    model(ROWS).sum().backward()
    assert exchange.without_gradient(model) == ["lost"]
    alone = small()
    assert Exchange().without_gradient(alone) == [name for name, _ in alone.named_parameters()]
