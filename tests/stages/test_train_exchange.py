"""Gradients of several ranks become their sum, in buckets, whatever the moment at which these leave."""

import multiprocessing

import pytest
import torch
from torch import distributed, nn

from stages.train.exchange import Exchange, Summed, begin_alike, buckets

ROWS = torch.arange(24.0).reshape(4, 6) / 24


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))


def gradients_of(rows: torch.Tensor) -> list[torch.Tensor]:
    model = small()
    model(rows).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


def rank(number: int, rows: torch.Tensor, store: str, overlaps: bool, told: multiprocessing.SimpleQueue) -> None:
    """Two steps over every second row, one to a micro-batch; the gradients of both, and how many buckets had left."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=2)
    model = small()
    if number:
        torch.nn.init.ones_(model[0].weight)  # not what the first rank has drawn
    begin_alike(model)
    exchange, found, sent = Summed(model, overlaps, bucket_bytes=80), [], []
    for _ in range(2):
        mine = rows[number::2]
        for i, row in enumerate(mine):
            exchange.begin(last=i == len(mine) - 1)
            model(row).square().sum().backward()
            sent.append(len(exchange.under_way))
        exchange.end()
        found.append([parameter.grad.tolist() for parameter in model.parameters()])
        for parameter in model.parameters():
            if number:
                parameter.grad.zero_()
            else:  # as a hook of somebody's may do
                parameter.grad = None
    told.put((number, found, sent, exchange.without_gradient(model)))
    distributed.destroy_process_group()


@pytest.mark.parametrize("n_rows", [4, 3])
@pytest.mark.parametrize("overlaps", [True, False], ids=["within the backward pass", "behind it"])
def test_every_rank_gets_the_sum(tmp_path, overlaps, n_rows):
    """Also where one of them has a micro-batch less, has drawn other weights, or has let its gradients go."""
    rows = ROWS[:n_rows]
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    processes = [context.Process(target=rank, args=(n, rows, str(tmp_path / "store"), overlaps, told)) for n in (0, 1)]
    for process in processes:
        process.start()
    answers = sorted(told.get() for _ in processes)
    for process in processes:
        process.join()
    expected = gradients_of(rows)
    for number, steps, sent, missing in answers:
        assert missing == []
        for step in steps:
            for gradient, whole in zip(step, expected, strict=True):
                torch.testing.assert_close(torch.tensor(gradient), whole)
        # only behind the last micro-batch of a step, and all of them before the step ends
        step = [0, 3][-len(rows[number::2]) :] if overlaps else [0] * len(rows[number::2])
        assert sent == 2 * step


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
