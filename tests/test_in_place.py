"""The contract of `gradients_in_buffers=True`: the backward passes add the gradients to the momentum buffers.

- Parameters and buffers are those of the ordinary mode to rounding: for any streams, groups, decay, normalisation,
  pattern of which loss reaches what, micro-batches, `join`, frozen and thawed layers. States load from one mode into
  the other.
- It holds one number per parameter and stream and no more; `p.grad` is None outside of a backward pass.
- A loss that is not finite skips the step without a trace. Finite losses with a gradient that is not finite, an error
  in mid-backward, a micro-batch that spoils the step, `zero_grad()`: no parameter moves, and the buffers that the step
  had entered are zero. Nothing that is not finite ever stays in one.
- What needs a gradient by itself is refused in words, before anything changes.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import dotkd
from dotkd.bench.memory import peak_bytes
from optim_cases import (
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
    take,
    train,
)
from reference import stream_sgd_step

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}
MOMENTA = {"task": 0.825, "distill": 0.975, "relation": 0.5}


def in_place(params, **changes):
    return dotkd.DOT(params, gradients_in_buffers=True, **{**HYPER, **changes})


def bad_start(seed=0):
    """Parameters, an optimizer with a step behind it, and gradients for the next."""
    params = make_params()
    optimizer = in_place(params)
    generator = torch.Generator().manual_seed(seed)
    take(optimizer, params, random_grads(params, STREAMS, generator))
    return params, optimizer, random_grads(params, STREAMS, generator)


PATTERNS = [(True, True), (True, False), (False, True), (False, False), (True, True)]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("names", [("task",), ("task", "distill"), ("task", "distill", "relation")])
def test_equals_the_literal_reference(names, join, normalize):
    """Two groups, four micro-steps, and in every step other parameters that a stream does not reach."""
    params = make_params([(3, 2), (4,), (), (0,), (2, 2)])
    common = {"momentum": 0.9, "decay_stream": names[-1], "normalize": normalize}
    rates = [{"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.02, "weight_decay": 0.0}]
    momenta = {name: MOMENTA[name] for name in names} if len(names) > 1 else {"task": common["momentum"]}
    groups = [{"params": params[:3], **rates[0]}, {"params": params[3:], **rates[1]}]
    optimizer = dotkd.StreamSGD(groups, momenta=momenta, gradients_in_buffers=True, **common)
    expected, buffers = [p.detach().clone() for p in params], [{} for _ in params]
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        total = [dict.fromkeys(names) for _ in params]
        for _ in range(1 + step % 2):
            grads = random_grads(params, names, generator)
            for i in range(1, len(params)):
                for k, name in enumerate(names):
                    if not PATTERNS[(step + i) % len(PATTERNS)][k % 2]:
                        grads[name][i] = None
            for i, by_stream in enumerate(total):
                for name in names:
                    if (g := grads[name][i]) is not None:
                        by_stream[name] = g if by_stream[name] is None else by_stream[name] + g
            fill(optimizer, params, grads, join=join)
            assert all(p.grad is None for p in params)
        optimizer.step()
        for i, theta in enumerate(expected):
            rate = rates[0] if i < 3 else rates[1]
            expected[i] = stream_sgd_step(theta, total[i], buffers[i], momenta=momenta, **common, **rate)
    assert_close(params, expected, 1e-14)
    for p, by_stream in zip(params, buffers, strict=True):
        assert_close([optimizer.state[p][f"momentum_{name}"] for name in by_stream], list(by_stream.values()), 1e-14)


def test_equals_the_ordinary_mode_on_a_network_whose_layers_freeze_and_thaw():
    students = [Student(), Student()]
    optimizers = [dotkd.DOT(students[0].parameters(), **HYPER), in_place(students[1].parameters())]
    for frozen in (False, True, False):
        for student, optimizer in zip(students, optimizers, strict=True):
            student.body[0].requires_grad_(not frozen)
            train(student, optimizer, range(5))
    assert_close(*(snapshot(optimizer) for optimizer in optimizers), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_the_types_of_the_parameters(dtype):
    pairs = []
    for optimizer_of in (lambda p: dotkd.DOT(p, **HYPER), in_place):
        params = make_params(dtype=dtype)
        optimizer = optimizer_of(params)
        generator = torch.Generator().manual_seed(0)
        for _ in range(4):
            take(optimizer, params, random_grads(params, STREAMS, generator))
        pairs.append(snapshot(optimizer))
    assert {value.dtype for value in pairs[1]} == {dtype}
    assert_close(*pairs, 1e-6 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("into", [True, False])
def test_a_state_goes_on_in_the_other_mode(into):
    """Strides too: what was stored contiguous serves parameters with the channels last."""
    twin = Student()
    whole = dotkd.DOT(twin.parameters(), **HYPER)
    train(twin, whole, range(8))
    student = Student()
    optimizer = dotkd.DOT(student.parameters(), gradients_in_buffers=not into, **HYPER)
    train(student, optimizer, range(4))
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = dotkd.DOT(student.parameters(), gradients_in_buffers=into, **HYPER)
    optimizer.load_state_dict(state)
    train(student, optimizer, range(4, 8))
    assert_close(snapshot(optimizer), snapshot(whole), 1e-13)
    assert [sorted(entry) for entry in optimizer.state_dict()["state"].values()] == [
        sorted(entry) for entry in whole.state_dict()["state"].values()
    ]


def test_a_buffer_that_lies_otherwise_is_laid_out_anew():
    results = []
    for mode in (False, True):
        (p,) = make_params([(2, 3, 4, 4)])
        p = nn.Parameter(p.detach().to(memory_format=torch.channels_last))
        optimizer = dotkd.DOT([p], gradients_in_buffers=mode, **HYPER)
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            take(optimizer, [p], random_grads([p], STREAMS, generator))
            for name in STREAMS:
                optimizer.state[p][f"momentum_{name}"] = optimizer.state[p][f"momentum_{name}"].contiguous()
        results.append(snapshot(optimizer))
    assert_close(*results, 1e-14)


def test_holds_one_number_a_stream_and_parameter():
    """Twelve equal parameters: what exists for one of them at a time hardly shows in the peak."""

    def most(mode):
        params = [nn.Parameter(torch.ones(1000)) for _ in range(12)]
        optimizer = dotkd.DOT(params, gradients_in_buffers=mode, **HYPER)

        def work():
            for _ in range(3):
                losses = {name: torch.stack([p.sum() for p in params]).sum() for name in STREAMS}
                optimizer.backward(**losses)
                optimizer.step()
                optimizer.zero_grad()
            return optimizer

        return peak_bytes(work, torch.device("cpu")) / (12 * 1000 * 4)

    assert most(True) < 2.5
    assert most(False) > 4.5  # or the measure cannot tell


def test_the_gradient_is_the_buffer_while_the_pass_runs():
    params = make_params()
    optimizer = in_place(params)
    seen = []
    params[0].register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    take(optimizer, params, random_grads(params, STREAMS, torch.Generator().manual_seed(0)))
    assert [id(grad) for grad in seen] == [id(optimizer.state[params[0]][f"momentum_{name}"]) for name in STREAMS]


def test_a_compiled_model_fills_the_buffers():
    students = [Student(), Student()]
    optimizers = [dotkd.DOT(students[0].parameters(), **HYPER), in_place(students[1].parameters())]
    for student, optimizer in zip(students, optimizers, strict=True):
        compiled = torch.compile(student, backend="aot_eager")
        for step in range(3):
            optimizer.backward(**student_losses(compiled, Batch(step)))
            optimizer.step()
            optimizer.zero_grad()
    assert_close(*(snapshot(optimizer) for optimizer in optimizers), 1e-13)


# --- steps that cannot be taken


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
    params, optimizer, grads = bad_start()
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
    params, optimizer, grads = bad_start()
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
    params, optimizer, grads = bad_start()
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
    params, optimizer, grads = bad_start()
    before = [p.detach().clone() for p in params]
    fill(optimizer, params, grads)
    optimizer.zero_grad()
    assert_started_again(optimizer, params, before)
    held = snapshot(optimizer)
    optimizer.zero_grad()  # between steps it has nothing to give up
    assert identical(snapshot(optimizer), held)
