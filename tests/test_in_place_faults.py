"""The contract of `gradients_in_buffers=True` where a step cannot be taken.

- A loss that is not finite skips the step without a trace.
- Finite losses with a gradient that is not finite, an error in mid-backward, a micro-batch that spoils the step,
  `zero_grad()`: no parameter moves, and the buffers that the step had entered are zero, as at the start of training.
  Nothing that is not finite ever stays in one.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import dotkd
from optim_cases import (
    STREAMS,
    Batch,
    Student,
    fill,
    identical,
    linear_losses,
    make_params,
    random_grads,
    snapshot,
    student_losses,
    take,
    train,
)

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}


def in_place(params):
    return dotkd.DOT(params, gradients_in_buffers=True, **HYPER)


def stepped():
    """Parameters, an optimizer with a step behind it, and gradients for the next."""
    params = make_params()
    optimizer = in_place(params)
    generator = torch.Generator().manual_seed(0)
    take(optimizer, params, random_grads(params, STREAMS, generator))
    return params, optimizer, random_grads(params, STREAMS, generator)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("join", [False, True])
def test_a_loss_that_is_not_finite_leaves_no_trace(stream, join):
    student = Student()
    optimizer = in_place(student.parameters())
    train(student, optimizer, range(3))
    before = snapshot(optimizer)
    losses = student_losses(student, Batch(3))
    losses[stream] = losses[stream] * math.nan
    optimizer.join(**losses).backward() if join else optimizer.backward(**losses)
    optimizer.backward(**student_losses(student, Batch(4)))  # a good micro-batch does not save the step
    optimizer.step()
    assert identical(snapshot(optimizer), before)
    assert (optimizer.skipped_steps, bool(optimizer.last_step_skipped)) == (1, True)


def assert_started_again(optimizer, params, before):
    assert identical(params, before)
    state = optimizer.state_dict()["state"]
    assert all(not value.any() for entry in state.values() for value in entry.values())
    assert state
    fresh = [nn.Parameter(p.detach().clone()) for p in params]
    other = in_place(fresh)
    grads = random_grads(params, STREAMS, torch.Generator().manual_seed(5))
    take(optimizer, params, grads)
    take(other, fresh, grads)
    assert identical(params, fresh)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stream", STREAMS)
def test_a_gradient_that_is_not_finite_empties_the_buffers(stream, bad):
    params, optimizer, grads = stepped()
    before = [p.detach().clone() for p in params]
    losses = linear_losses(params, grads)
    losses[stream] = losses[stream] + (Poison.apply(params[1], bad)).sum()
    optimizer.backward(**losses)
    optimizer.step()
    assert (optimizer.skipped_steps, optimizer.skipped_in_a_row) == (1, 1)
    assert_started_again(optimizer, params, before)
    assert (optimizer.skipped_steps, optimizer.skipped_in_a_row) == (1, 0)


class Poison(torch.autograd.Function):
    """The identity, with `bad` for a gradient; a `bad` of None is an error, as out of memory would be."""

    @staticmethod
    def forward(ctx, x, bad):
        ctx.bad = bad
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.bad is None:
            raise MemoryError("out of memory in the middle of a backward pass")
        return torch.full_like(gradient, ctx.bad), None


def test_a_later_micro_batch_that_is_not_finite_empties_them_too():
    params, optimizer, grads = stepped()
    before = [p.detach().clone() for p in params]
    fill(optimizer, params, grads)
    losses = linear_losses(params, grads)
    optimizer.backward(**{**losses, "task": losses["task"] * math.inf})
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert_started_again(optimizer, params, before)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("join", [False, True])
def test_an_error_in_mid_backward_is_no_half_step(stream, join):
    params, optimizer, grads = stepped()
    before = [p.detach().clone() for p in params]
    fill(optimizer, params, grads)
    losses = linear_losses(params, grads)
    losses[stream] = losses[stream] + Poison.apply(params[0], None).sum()
    with pytest.raises(MemoryError, match="out of memory"):
        optimizer.join(**losses).backward() if join else optimizer.backward(**losses)
    assert all(p.grad is None for p in params)
    with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
        optimizer.step()
    assert_started_again(optimizer, params, before)


def test_zero_grad_gives_a_step_up():
    params, optimizer, grads = stepped()
    before = [p.detach().clone() for p in params]
    fill(optimizer, params, grads)
    optimizer.zero_grad()
    assert_started_again(optimizer, params, before)
    held = snapshot(optimizer)
    optimizer.zero_grad()  # between steps it has nothing to give up
    assert identical(snapshot(optimizer), held)
