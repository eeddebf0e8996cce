"""The contract of `gradients_in_buffers=True`: the backward passes add the gradients to the momentum buffers.

- Parameters and buffers are those of the ordinary mode to rounding: for any streams, groups, decay, normalisation,
  pattern of which loss reaches what, micro-batches, `join`, layers that freeze, thaw or come later. States load from
  one mode into the other; copies of an optimizer keep the mode.
- It holds one number per parameter and stream and no more; `p.grad` is None outside of a backward pass.
(Steps that cannot be taken are in test_in_place_faults, refusals in test_in_place_refusals.)
"""

from __future__ import annotations

import copy

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


def test_a_group_may_come_later():
    students = [Student(), Student()]
    optimizers = [dotkd.DOT(students[0].body.parameters(), **HYPER), in_place(students[1].body.parameters())]
    for student, optimizer in zip(students, optimizers, strict=True):
        train(student, optimizer, range(3))
        optimizer.add_param_group({"params": student.head.parameters(), "lr": 0.1, "delta": 0.05})
        student.zero_grad()  # the head has collected the sum, as parameters of no optimizer do
        train(student, optimizer, range(3, 6))
    assert_close(*(snapshot(optimizer) for optimizer in optimizers), 1e-13)


def test_a_copy_goes_on_in_the_same_mode():
    student = Student()
    optimizer = in_place(student.parameters())
    train(student, optimizer, range(3))
    student_copy, optimizer_copy = copy.deepcopy((student, optimizer))
    for one, own in ((student, optimizer), (student_copy, optimizer_copy)):
        train(one, own, range(3, 6))
        assert all(p.grad is None for p in one.parameters())
    assert identical(snapshot(optimizer), snapshot(optimizer_copy))


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
