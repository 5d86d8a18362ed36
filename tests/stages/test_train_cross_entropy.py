"""The loss in chunks is the loss of all logits at once, with the same gradients, in less memory."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from stages.tokens import IGNORED_LABEL
from stages.train import cross_entropy
from stages.train.cross_entropy import LossTerms, chunked_cross_entropy, gradient_by_torch

HIDDEN = 8
TERMS = {
    "plain": LossTerms(61),
    "padded head": LossTerms(50),
    "softcap": LossTerms(61, softcap=3.0),
    "z_loss": LossTerms(61, z_loss=0.01),
    "label_smoothing": LossTerms(61, label_smoothing=0.1),
    "all": LossTerms(50, softcap=3.0, z_loss=0.01, label_smoothing=0.1),
}


def whole(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor, terms: LossTerms) -> tuple:
    """The definition, by torch."""
    logits = (hidden @ head.t())[:, : terms.vocab_size]
    if terms.softcap:
        logits = terms.softcap * torch.tanh(logits / terms.softcap)
    nats = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    total = F.cross_entropy(
        logits, labels, ignore_index=IGNORED_LABEL, reduction="sum", label_smoothing=terms.label_smoothing
    )
    squares = logits.logsumexp(dim=-1).square() * (labels != IGNORED_LABEL)
    return total + terms.z_loss * squares.sum(), nats


def tokens(n: int, vocab_size: int, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, HIDDEN, generator=generator, dtype=dtype).requires_grad_()
    head = torch.randn(61, HIDDEN, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(0, vocab_size, (n,), generator=generator)
    labels[::5] = IGNORED_LABEL
    return hidden, head, labels


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@given(n=st.integers(1, 40), chunk=st.integers(1, 50))
def test_chunks_are_the_whole(terms, n, chunk):
    hidden, head, labels = tokens(n, terms.vocab_size)
    expected, expected_nats = whole(hidden, head, labels, terms)
    gradients = torch.autograd.grad(expected * 0.25, (hidden, head))
    total, nats = chunked_cross_entropy(hidden, head, labels, terms, chunk)
    found = torch.autograd.grad(total * 0.25, (hidden, head))
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)  # sums are fp32
    assert float(nats) == pytest.approx(float(expected_nats.detach()), rel=1e-6)
    for one, other in zip(found, gradients, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_the_docstring_example():
    logits = torch.tensor([[0.0, 3.0]]).log1p()  # 0 and ln 4
    logits[0, 1] = torch.tensor(3.0).log()
    sums = gradient_by_torch(logits, torch.tensor([1]), LossTerms(2))
    assert sums.tolist() == pytest.approx([0.28768, 0.28768], abs=1e-4)
    assert logits.tolist()[0] == pytest.approx([0.25, -0.25], abs=1e-6)


def test_without_gradients_it_is_the_loss_alone():
    hidden, head, labels = tokens(20, 61)
    with torch.no_grad():
        total, _ = chunked_cross_entropy(hidden, head, labels, TERMS["plain"], 7)
    assert float(total) == pytest.approx(float(whole(hidden, head, labels, TERMS["plain"])[0].detach()), rel=1e-6)


def test_under_autocast_logits_are_half_precision_and_gradients_fp32():
    hidden, head, labels = tokens(64, 61, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = chunked_cross_entropy(hidden, head, labels, TERMS["plain"], 16)
    total.backward()
    expected = torch.autograd.grad(whole(hidden, head, labels, TERMS["plain"])[0], (hidden, head))
    for one, other in zip((hidden.grad, head.grad), expected, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("vocab_size", [61, 5003])
def test_the_kernel_is_its_oracle(terms, vocab_size):
    import dataclasses

    terms = dataclasses.replace(terms, vocab_size=vocab_size)
    logits = torch.randn(37, (vocab_size + 127) // 128 * 128, device="cuda") * 3
    labels = torch.randint(0, vocab_size, (37,), device="cuda")
    labels[::5] = IGNORED_LABEL
    one, other = logits.clone(), logits.clone()
    expected = gradient_by_torch(one, labels, terms)
    found = cross_entropy._by_kernel(other, labels, terms)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert torch.allclose(other, one, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_is_that_of_a_chunk():
    hidden = torch.randn(16384, 256, device="cuda", dtype=torch.bfloat16).requires_grad_()
    head = torch.randn(50304, 256, device="cuda", dtype=torch.bfloat16).requires_grad_()
    labels = torch.randint(0, 50304, (16384,), device="cuda")
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        total, _ = chunked_cross_entropy(hidden, head, labels, LossTerms(50304), 1024)
        total.backward()
        held = torch.cuda.max_memory_allocated() - before
        hidden.grad = head.grad = None
    logits = 16384 * 50304 * 2
    assert held < logits / 4
