"""Streams filled with gradients that have been computed elsewhere, `optimizer.fill`. The contract:

- It is what `backward` does with the same losses: gradients add up, their sum is in `p.grad`, and a loss or gradient
  that is not finite skips the step.
- Gradients that do not fit are refused, and then nothing has changed.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dotkd


def batch(size: int) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(size)
    return torch.randn(size, 6, generator=source), torch.randint(3, (size,), generator=source)


def test_filling_is_a_backward_pass_and_adds_up() -> None:
    torch.manual_seed(0)
    one, two = (nn.Linear(6, 3) for _ in range(2))
    two.load_state_dict(one.state_dict())
    filled, plain = (dotkd.DOT(m.parameters(), lr=0.1) for m in (one, two))
    for size in (12, 5):
        streams = {"task": F.cross_entropy(one(batch(size)[0]), batch(size)[1]), "distill": one(batch(size)[0]).mean()}
        grads = {n: list(torch.autograd.grad(s, list(one.parameters()))) for n, s in streams.items()}
        filled.fill({n: s.detach() for n, s in streams.items()}, grads)
        plain.backward(task=F.cross_entropy(two(batch(size)[0]), batch(size)[1]), distill=two(batch(size)[0]).mean())
    for p, other in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p.grad, other.grad, rtol=0, atol=0)
        for stream in ("task", "distill"):
            torch.testing.assert_close(filled.stream_grad(p, stream), plain.stream_grad(other, stream), rtol=0, atol=0)


def test_a_loss_that_is_not_finite_skips_the_step_that_it_filled() -> None:
    model = nn.Linear(2, 2)
    optimizer, before = dotkd.DOT(model.parameters(), lr=0.1), copy.deepcopy(model.state_dict())
    grads = [torch.ones_like(p) for p in model.parameters()]
    losses = {"task": torch.tensor(float("nan")), "distill": torch.ones(())}
    optimizer.fill(losses, {"task": grads, "distill": [g.clone() for g in grads]})
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda losses, grads: grads.pop("task"), "a step needs every stream: missing task"),
        (lambda losses, grads: losses.pop("distill"), "a step needs every stream: missing distill"),
        (lambda losses, grads: grads.update(tsak=[]), "unknown stream 'tsak', expected task, distill; did you mean"),
        (lambda losses, grads: grads["task"].pop(), "expected 2 gradients for stream 'task', got 1"),
        (
            lambda losses, grads: grads["distill"].reverse(),
            r"expected a gradient of shape \(3, 2\) in stream 'distill', got \(3,\)",
        ),
    ],
)
def test_gradients_that_do_not_fit_are_refused(change, text) -> None:
    model = nn.Linear(2, 3)
    optimizer = dotkd.DOT(model.parameters(), lr=0.1)
    losses = {name: torch.ones(()) for name in ("task", "distill")}
    grads = {name: [torch.ones_like(p) for p in model.parameters()] for name in losses}
    change(losses, grads)
    with pytest.raises(ValueError, match=text):
        optimizer.fill(losses, grads)
    assert all(p.grad is None for p in model.parameters())


def test_a_stream_that_reaches_nothing_is_refused() -> None:
    model = nn.Linear(2, 3)
    optimizer, losses = dotkd.DOT(model.parameters(), lr=0.1), {n: torch.ones(()) for n in ("task", "distill")}
    grads = {"task": [torch.ones_like(p) for p in model.parameters()], "distill": [None, None]}
    with pytest.raises(RuntimeError, match="the loss of stream 'distill' reaches no parameter of this optimizer"):
        optimizer.fill(losses, grads)
