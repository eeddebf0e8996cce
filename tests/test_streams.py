"""The contract of the named gradient streams: how they are filled.

- `backward(task=..., distill=...)` fills both streams; `join(...)` returns their sum, whose one ordinary `.backward()`
  does the same, also inside torch.compile'd students, bf16 autocast and Accelerate. A scale on that sum reaches both.
- Calls add up until `zero_grad`. `p.grad` is always the sum of the streams; `stream_grad(p, name)` is one of them.
- Exactly the named streams are accepted; each must be a differentiable scalar. Refusals and errors in mid-backward
  change nothing: no stream, no `p.grad`, no parameter.
- `step()` without gradients from the streams is refused: never a silent half step.
- Frozen, thawed, unreached and shared parameters behave as in torch: no gradient, no update.
"""

from __future__ import annotations

import functools

import pytest
import torch

import dotkd
from optim_cases import (
    OPTIMIZERS,
    STREAMS,
    Batch,
    Student,
    assert_close,
    fill,
    identical,
    linear_losses,
    make_params,
    random_grads,
    snapshot,
    student_losses,
    train,
)
from reference import dot_step

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}
REFUSAL = (ValueError, TypeError, RuntimeError)


def grads_of(optimizer, params):
    return {name: [optimizer.stream_grad(p, name) for p in params] for name in optimizer.streams}


def dot_with_grads(*, seed=0):
    params = make_params()
    optimizer = dotkd.DOT(params, **HYPER)
    return params, optimizer, random_grads(params, STREAMS, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("join", [False, True])
def test_streams_hold_their_own_gradient_and_grad_their_sum(join):
    params, optimizer, grads = dot_with_grads()
    grads["distill"][2] = None
    fill(optimizer, params, grads, join=join)
    assert optimizer.streams == STREAMS
    for i, p in enumerate(params):
        assert torch.equal(optimizer.stream_grad(p, "task"), grads["task"][i])
        assert_close([p.grad], [grads["task"][i] + (0 if i == 2 else grads["distill"][i])], 1e-15)
    assert torch.equal(optimizer.stream_grad(params[0], "distill"), grads["distill"][0])
    assert optimizer.stream_grad(params[2], "distill") is None


def test_stream_grad_refuses_unknown_names_and_parameters():
    params, optimizer, _ = dot_with_grads()
    with pytest.raises(REFUSAL, match=r"'distil'.*did you mean 'distill'"):
        optimizer.stream_grad(params[0], "distil")


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_join_is_backward(make):
    by_backward, by_join = Student(), Student()
    one, two = (make(s.parameters(), lr=0.01, weight_decay=0.1) for s in (by_backward, by_join))
    for step in range(5):
        losses = student_losses(by_backward, Batch(step), one.streams)
        one.backward(**losses)
        twin_losses = student_losses(by_join, Batch(step), two.streams)
        joined = two.join(**twin_losses)
        assert joined.shape == ()
        assert joined.item() == pytest.approx(sum(x.item() for x in losses.values()))
        joined.backward()
        for p, q in zip(by_backward.parameters(), by_join.parameters(), strict=True):
            for name in one.streams:
                g, h = one.stream_grad(p, name), two.stream_grad(q, name)
                assert (g is None) == (h is None)
                assert g is None or torch.allclose(g, h, rtol=1e-14, atol=1e-15)
        for optimizer in (one, two):
            optimizer.step()
            optimizer.zero_grad()
    assert_close(snapshot(one), snapshot(two), 1e-13)


def test_a_factor_on_the_joined_loss_reaches_every_stream():
    """What Accelerate does with accumulation (divide) and a scaler with fp16 (multiply)."""
    params, optimizer, grads = dot_with_grads()
    (optimizer.join(**linear_losses(params, grads)) * 4).backward()
    for name in STREAMS:
        for p, g in zip(params, grads[name], strict=True):
            assert torch.equal(optimizer.stream_grad(p, name), 4 * g)


@pytest.mark.parametrize("kinds", ["bb", "jj", "bj", "jb"])
def test_micro_batches_add_up(kinds):
    params, optimizer, first = dot_with_grads()
    second = random_grads(params, STREAMS, torch.Generator().manual_seed(9))
    second["task"][0] = first["distill"][1] = None  # streams may reach a parameter in one micro-batch only
    for grads, kind in zip((first, second), kinds, strict=True):
        fill(optimizer, params, grads, join=kind == "j")
    before = [p.detach().clone() for p in params]
    optimizer.step()
    for i, (p, old) in enumerate(zip(params, before, strict=True)):
        total = [sum(g for g in (first[n][i], second[n][i]) if g is not None) for n in STREAMS]
        assert_close([p.grad], [total[0] + total[1]], 1e-14)
        assert_close([p], [dot_step(old, *total, {}, **HYPER)], 1e-14)


def test_micro_batches_of_a_network_equal_the_whole_batch():
    """Without BatchNorm's batch statistics (eval mode), four quarters with mean losses / 4 are one batch."""
    whole, parts = Student().eval(), Student().eval()
    one, two = (dotkd.DOT(s.parameters(), **HYPER) for s in (whole, parts))
    for step in range(3):
        batch = Batch(step)
        one.backward(**student_losses(whole, batch))
        for i in range(4):
            quarter = Batch(step)
            for field in ("inputs", "teacher", "features", "targets"):
                setattr(quarter, field, getattr(batch, field)[3 * i : 3 * i + 3])
            two.backward(**{name: loss / 4 for name, loss in student_losses(parts, quarter).items()})
        for optimizer in (one, two):
            optimizer.step()
            optimizer.zero_grad()
    assert_close(snapshot(one), snapshot(two))


ZEROING = {
    "to none": lambda optimizer, model: optimizer.zero_grad(),
    "to zero": lambda optimizer, model: optimizer.zero_grad(set_to_none=False),
    "model to none": lambda optimizer, model: model.zero_grad(),
    "model to zero": lambda optimizer, model: model.zero_grad(set_to_none=False),
    "before, model": lambda optimizer, model: None,
}


@pytest.mark.parametrize("zeroing", ZEROING)
@pytest.mark.parametrize("join", [False, True])
def test_every_way_of_zeroing_clears_both_streams(zeroing, join):
    """No gradient of the last step may return, in either stream (in the official code it can)."""
    student, twin = Student(), Student()
    del student.unused, twin.unused
    optimizer, plain = dotkd.DOT(student.parameters(), **HYPER), dotkd.DOT(twin.parameters(), **HYPER)
    train(twin, plain, range(4))
    for step in range(4):
        losses = student_losses(student, Batch(step))
        if zeroing == "before, model":
            student.zero_grad()
        optimizer.join(**losses).backward() if join else optimizer.backward(**losses)
        optimizer.step()
        ZEROING[zeroing](optimizer, student)
    assert_close(snapshot(optimizer), snapshot(plain), 1e-14)


def other_leaf():
    return (torch.ones(2, requires_grad=True) * 2).sum()


BAD_CALLS = {
    "stream missing": (lambda losses: {"task": losses["task"]}, "distill"),
    "other stream missing": (lambda losses: {"distill": losses["distill"]}, "task"),
    "nothing": (lambda losses: {}, "task"),
    "misspelt": (
        lambda losses: {"task": losses["task"], "distil": losses["distill"]},
        "'distil'.*did you mean 'distill'",
    ),
    "unknown": (lambda losses: {**losses, "relation": other_leaf()}, "relation"),
    "not a scalar": (
        lambda losses: {**losses, "distill": losses["distill"] * torch.ones(3)},
        r"scalar.*'distill'.*\(3,\)",
    ),
    "no gradient": (
        lambda losses: {**losses, "distill": losses["distill"].detach()},
        "'distill' does not require grad",
    ),
    "a float": (lambda losses: {**losses, "task": 1.5}, "'task'.*float"),
    "none": (lambda losses: {**losses, "distill": None}, "'distill'.*NoneType"),
}


@pytest.mark.parametrize("call", BAD_CALLS)
@pytest.mark.parametrize("way", ["backward", "join"])
@pytest.mark.parametrize("fresh", [True, False])
def test_wrong_losses_are_refused_before_anything_changes(call, way, fresh):
    params, optimizer, grads = dot_with_grads()
    if not fresh:
        fill(optimizer, params, grads)
    change, message = BAD_CALLS[call]
    before = grads_of(optimizer, params)
    copies = {n: [None if g is None else g.clone() for g in gs] for n, gs in before.items()}
    with pytest.raises(REFUSAL, match=message):
        getattr(optimizer, way)(**change(linear_losses(params, grads)))
    for name in STREAMS:
        for p, g in zip(params, copies[name], strict=True):
            now = optimizer.stream_grad(p, name)
            assert (now is None and g is None) or torch.equal(now, g)
    if fresh:
        assert all(p.grad is None for p in params)
    else:
        optimizer.step()
        expected = [
            dot_step(p, a, b, {}, **HYPER)
            for p, a, b in zip(make_params(), grads["task"], grads["distill"], strict=True)
        ]
        assert_close(params, expected, 1e-14)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("how", ["nothing", "plain backward", "join not run", "after zero_grad"])
def test_step_without_streams_is_refused(make, how):
    params = make_params()
    optimizer = make(params, lr=0.1)
    grads = random_grads(params, optimizer.streams, torch.Generator().manual_seed(0))
    if how == "plain backward":
        sum(linear_losses(params, grads).values()).backward()
    elif how == "join not run":
        optimizer.join(**linear_losses(params, grads))
    elif how == "after zero_grad":
        fill(optimizer, params, grads)
        optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="backward"):
        optimizer.step()
    assert identical(params, make_params())
    assert not optimizer.state_dict()["state"]


class Explode(torch.autograd.Function):
    """Identity whose backward fails, as an out-of-memory error would."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise MemoryError("out of memory in the middle of a backward pass")


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("way", ["backward", "join"])
@pytest.mark.parametrize("accumulated", [False, True])
def test_an_error_in_mid_backward_leaves_the_streams_as_they_were(stream, way, accumulated):
    params, optimizer, grads = dot_with_grads()
    if accumulated:
        fill(optimizer, params, grads)
    losses = linear_losses(params[1:], {n: random_grads(params[1:], [n], torch.Generator())[n] for n in STREAMS})
    losses[stream] = losses[stream] + Explode.apply(params[0]).sum()
    run = optimizer.join(**losses).backward if way == "join" else functools.partial(optimizer.backward, **losses)
    with pytest.raises(MemoryError, match="out of memory"):
        run()
    for i, p in enumerate(params):
        for name in STREAMS:
            now = optimizer.stream_grad(p, name)
            assert torch.equal(now, grads[name][i]) if accumulated else now is None
    if not accumulated:
        with pytest.raises(RuntimeError, match="backward"):
            optimizer.step()
        assert identical(params, make_params())
        optimizer.zero_grad()
        fill(optimizer, params, grads)
    optimizer.step()
    expected = [
        dot_step(p, a, b, {}, **HYPER) for p, a, b in zip(make_params(), grads["task"], grads["distill"], strict=True)
    ]
    assert_close(params, expected, 1e-14)
