"""The contract of `gradients_in_buffers=True` where it refuses: what needs a gradient by itself, in words.

A refusal comes before anything changes, but for a gradient that goes astray in the backward pass: then no parameter
moves, and the buffers start again from zero.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import dotkd
from optim_cases import STREAMS, assert_close, fill, identical, linear_losses, make_params, random_grads, snapshot, take

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}


def stepped():
    params = make_params()
    optimizer = dotkd.DOT(params, gradients_in_buffers=True, **HYPER)
    generator = torch.Generator().manual_seed(0)
    take(optimizer, params, random_grads(params, STREAMS, generator))
    return params, optimizer, random_grads(params, STREAMS, generator)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"nesterov": True}, "expected `nesterov` False with gradients_in_buffers, got True"),
        ({"maximize": True}, "expected `maximize` False with gradients_in_buffers, got True"),
        ({"dampening": 0.4}, "expected `dampening` 0 with gradients_in_buffers, got 0.4"),
    ],
)
def test_options_that_need_the_gradient_by_itself(option, text):
    with pytest.raises(ValueError, match=text):
        dotkd.DOT(make_params(), gradients_in_buffers=True, **HYPER, **option)
    with pytest.raises(ValueError, match=text):
        dotkd.StreamSGD(make_params(), momenta={"task": 0.5}, gradients_in_buffers=True, **option)
    params, optimizer, grads = stepped()
    before = snapshot(optimizer)
    optimizer.param_groups[0].update(option)
    with pytest.raises(ValueError, match=text):
        fill(optimizer, params, grads)
    assert identical(snapshot(optimizer), before)


USES = {
    "clip_grad_norm_": lambda optimizer, params: optimizer.clip_grad_norm_(1.0),
    "stream_grad": lambda optimizer, params: optimizer.stream_grad(params[0], "task"),
    "save half a step": lambda optimizer, params: optimizer.state_dict(),
    "GradScaler": lambda optimizer, params: torch.amp.GradScaler("cpu", enabled=True, init_scale=1.0).step(optimizer),
}


@pytest.mark.parametrize("use", USES)
def test_uses_that_need_the_gradient_by_itself(use):
    params, optimizer, grads = stepped()
    before = snapshot(optimizer)
    if use == "GradScaler":
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        scaler.scale(optimizer.join(**linear_losses(params, grads))).backward()
        with pytest.raises(RuntimeError, match="with gradients_in_buffers no gradients are kept: a GradScaler"):
            scaler.step(optimizer)
    else:
        fill(optimizer, params, grads)
        with pytest.raises(RuntimeError, match=f"with gradients_in_buffers no gradients are kept: .*{use}"):
            USES[use](optimizer, params)
    assert identical(params, before[: len(params)])


def test_a_scaler_that_is_switched_off_changes_nothing():
    params, optimizer, grads = stepped()
    twins, other, _ = stepped()
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(optimizer.join(**linear_losses(params, grads))).backward()
    scaler.step(optimizer)
    scaler.update()
    take(other, twins, grads)
    assert identical(snapshot(optimizer), snapshot(other))


@pytest.mark.parametrize("when", ["before backward", "before step"])
def test_a_loss_outside_the_streams(when):
    params, optimizer, grads = stepped()
    before = snapshot(optimizer)
    if when == "before step":
        fill(optimizer, params, grads)
    params[0].square().sum().backward()
    with pytest.raises(RuntimeError, match="belongs to no stream"):
        fill(optimizer, params, grads) if when == "before backward" else optimizer.step()
    assert identical(params, before[: len(params)])
    if when == "before backward":
        assert identical(snapshot(optimizer), before)


def test_steps_without_a_backward():
    params, optimizer, grads = stepped()
    with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
        optimizer.step()
    none = {**grads, "distill": [None] * len(params)}
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="the loss of stream 'distill' reaches no parameter"):
        fill(optimizer, params, none)
    assert identical(snapshot(optimizer), before)


@pytest.mark.parametrize(("first", "second"), [("task", "distill"), ("distill", "task")])
def test_micro_batches_that_change_the_momentum_of_a_parameter(first, second):
    params, optimizer, grads = stepped()
    twins, other, _ = stepped()
    one = {**grads, second: [*grads[second][:2], None]}
    fill(optimizer, params, one)
    with pytest.raises(RuntimeError, match=rf"shape \(\) was reached by {first} and is now reached by {second} too"):
        fill(optimizer, params, grads)
    optimizer.step()  # the step is as it was before the refused micro-batch
    take(other, twins, one)
    assert identical(snapshot(optimizer), snapshot(other))


def test_micro_batches_that_do_not():
    """First both streams reach it, then one: the momenta of two hold."""
    params, optimizer, grads = stepped()
    twins, ordinary = make_params(), None
    ordinary = dotkd.DOT(twins, **HYPER)
    generator = torch.Generator().manual_seed(0)
    take(ordinary, twins, random_grads(twins, STREAMS, generator))
    for one, own in ((optimizer, params), (ordinary, twins)):
        fill(one, own, grads)
        fill(one, own, {**grads, "distill": [None, *grads["distill"][1:]]})
        one.step()
    assert_close(snapshot(optimizer), snapshot(ordinary), 1e-14)


def test_parameters_with_gaps():
    base = torch.zeros(4, 6, dtype=torch.float64)
    p = nn.Parameter(base[:, ::2])
    optimizer = dotkd.DOT([p], gradients_in_buffers=True, **HYPER)
    with pytest.raises(ValueError, match=r"parameters without gaps with gradients_in_buffers, got shape \(4, 3\)"):
        optimizer.backward(task=p.sum(), distill=p.sum())
    assert not optimizer.state_dict()["state"]


def assert_emptied(optimizer, params, before):
    assert identical(params, before)
    assert all(p.grad is None for p in params)
    assert all(not value.any() for entry in optimizer.state_dict()["state"].values() for value in entry.values())


def test_sparse_gradients():
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = dotkd.DOT(embedding.parameters(), gradients_in_buffers=True, **HYPER)
    before = [embedding.weight.detach().clone()]
    out = embedding(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match="sparse gradient, expected dense"):
        optimizer.backward(task=out.sum(), distill=out.square().sum())
    assert_emptied(optimizer, [embedding.weight], before)


@pytest.mark.parametrize("astray", ["reentrant checkpoint", "hook"])
def test_gradients_that_go_past_the_buffers(astray):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    params = list(model.parameters())
    optimizer = dotkd.DOT(params, gradients_in_buffers=True, **HYPER)
    before = [p.detach().clone() for p in params]
    hidden = model[0](torch.ones(2, 3))
    if astray == "hook":
        params[2].register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        out = model[1:](hidden)
    else:
        out = checkpoint(model[1:], hidden, use_reentrant=True)
    with pytest.raises(RuntimeError, match=r"shape \(2, 4\) a gradient past its buffer.*use_reentrant=False"):
        optimizer.backward(task=out.sum(), distill=out.square().sum())
    assert_emptied(optimizer, params, before)
