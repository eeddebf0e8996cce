"""The contract of torch.optim in a training loop that changes, kept by every optimizer of dotkd.

- Groups can be added in mid-run; schedulers drive lr and momentum; lr may be a tensor; closures run with gradients on.
- Hooks fire once per step. Missing, frozen and thawed parameters are skipped and resumed as in torch.
- Sparse and complex gradients are refused before anything changes; duplicates and other slips meet torch's own
  answers. Named parameters are taken, as in torch.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import dotkd
from optim_cases import (
    OPTIMIZERS,
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
from reference import dot_adamw_step, dot_step, stream_sgd_step

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def reference_step(name, theta, grads, state):
    """One literal step with the table's optimizer `name` at lr = 0.1, weight decay = 0.1 and its own defaults."""
    common = {"lr": 0.1, "weight_decay": 0.1}
    if name == "DOT":
        return dot_step(theta, grads["task"], grads["distill"], state, momentum=0.9, delta=0.075, **common)
    if name == "DOTAdamW":
        betas = (0.9, 0.999)
        return dot_adamw_step(theta, grads["task"], grads["distill"], state, betas=betas, delta=0.075, **common)
    momenta = {"task": 0.825, "distill": 0.975, "relation": 0.5}
    return stream_sgd_step(theta, grads, state, momentum=0.9, momenta=momenta, decay_stream="task", **common)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_missing_frozen_and_thawed_parameters(name):
    """Parameter 0 always; 1 missing in steps 2-3; 2 frozen in steps 1-4; 3 reached by one stream in turn; 4 never."""
    params = make_params([(3, 2), (4,), (), (2,), (5,)])
    optimizer = OPTIMIZERS[name](params, lr=0.1, weight_decay=0.1)
    expected, states = [p.detach().clone() for p in params], [{} for _ in params]
    generator = torch.Generator().manual_seed(0)
    for step in range(8):
        params[2].requires_grad_(not 1 <= step <= 4)
        grads = random_grads(params, optimizer.streams, generator)
        for k, stream in enumerate(optimizer.streams):
            missing = {1: step in (2, 3), 3: step % 2 != min(k, 1), 4: True}
            for i, gone in missing.items():
                grads[stream][i] = None if gone else grads[stream][i]
        fill(optimizer, params, grads, join=step % 3 == 0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        for i, theta in enumerate(expected):
            frozen = i == 2 and 1 <= step <= 4
            got = {s: None if frozen else grads[s][i] for s in optimizer.streams}
            if any(g is not None for g in got.values()):
                expected[i] = reference_step(name, theta, got, states[i])
        if step % 2 == 0:
            assert_close(params, expected)
        else:  # gradients set to zero, not none, stay present in torch: drop them before the next step
            optimizer.zero_grad()
    assert_close(params, expected)
    assert identical([params[4]], [make_params([(3, 2), (4,), (), (2,), (5,)])[4]])


@every_optimizer
def test_a_group_added_in_mid_run_has_its_own_state_and_hyper_parameters(make):
    params, twins = make_params(), make_params()
    optimizer = make(params[:1], lr=0.1, weight_decay=0.1)
    first, later = make(twins[:1], lr=0.1, weight_decay=0.1), make(twins[1:], lr=0.02, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        if step == 3:
            optimizer.add_param_group({"params": params[1:], "lr": 0.02})
        grads = random_grads(params, optimizer.streams, generator)
        take(optimizer, params, grads)
        for p in params:
            p.grad = None  # those that are not in a group yet collect the sum, as after any backward
        take(first, twins[:1], {name: gs[:1] for name, gs in grads.items()})
        if step >= 3:
            take(later, twins[1:], {name: gs[1:] for name, gs in grads.items()})
    assert_close(params, twins)


def linear_lr(optimizer):
    return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)


def cosine_lr(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=8)


def one_cycle(optimizer):
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.2, total_steps=12, base_momentum=0.8, max_momentum=0.9
    )


@pytest.mark.parametrize("schedule", [linear_lr, cosine_lr, one_cycle])
def test_schedulers_drive_lr_and_momentum(schedule):
    params = make_params()
    optimizer = dotkd.DOT(params, **HYPER)
    scheduler = schedule(optimizer)
    expected, buffers, seen = [p.detach().clone() for p in params], [{} for _ in params], set()
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        now = {key: float(optimizer.param_groups[0][key]) for key in ("lr", "momentum")}
        seen.add(tuple(now.values()))
        grads = random_grads(params, STREAMS, generator)
        take(optimizer, params, grads)
        scheduler.step()
        for i, theta in enumerate(expected):
            g_task, g_distill = grads["task"][i], grads["distill"][i]
            expected[i] = dot_step(theta, g_task, g_distill, buffers[i], **{**HYPER, **now})
    assert len({lr for lr, _ in seen}) > 4
    assert (len({momentum for _, momentum in seen}) > 4) == (schedule is one_cycle)
    assert_close(params, expected)


def test_one_cycle_drives_beta1():
    params = make_params()
    optimizer = dotkd.DOTAdamW(params, lr=0.01)
    scheduler = one_cycle(optimizer)
    expected, states = [p.detach().clone() for p in params], [{} for _ in params]
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        group = optimizer.param_groups[0]
        now = {key: group[key] for key in ("lr", "betas")}
        grads = random_grads(params, STREAMS, generator)
        take(optimizer, params, grads)
        scheduler.step()
        for i, theta in enumerate(expected):
            expected[i] = dot_adamw_step(theta, grads["task"][i], grads["distill"][i], states[i], delta=0.075, **now)
    assert_close(params, expected, 1e-10)


def test_momentum_cycled_out_of_range_is_refused_at_the_step():
    """OneCycleLR's own default of 0.95 makes momentum + delta > 1, which would diverge silently."""
    params = make_params()
    optimizer = dotkd.DOT(params, **HYPER)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    fill(optimizer, params, random_grads(params, STREAMS, torch.Generator()))
    with pytest.raises(ValueError, match="delta"):
        optimizer.step()
    assert identical(params, make_params())


@every_optimizer
def test_a_tensor_lr_is_followed_as_it_changes_in_place(make):
    params, twins = make_params(), make_params()
    lr = torch.tensor(0.1, dtype=torch.float64)
    optimizer, plain = make(params, lr=lr, weight_decay=0.1), make(twins, lr=0.1, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        lr.fill_(0.1 / (step + 1))
        plain.param_groups[0]["lr"] = 0.1 / (step + 1)
        grads = random_grads(params, optimizer.streams, generator)
        for each, its in ((optimizer, params), (plain, twins)):
            take(each, its, grads)
    assert_close(params, twins, 1e-14)
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    with pytest.raises(ValueError, match=r"`lr`.*\(2,\)"):
        make(make_params(), lr=torch.tensor([0.1, 0.2]))


@every_optimizer
@pytest.mark.parametrize("lr_type", [torch.float32, torch.float64])
def test_a_tensor_lr_of_another_type_than_the_parameters(make, lr_type):
    types = (torch.float32, torch.float64, torch.bfloat16)
    params, twins = ([make_params([(3,)], dtype=dtype)[0] for dtype in types] for _ in range(2))
    optimizer, plain = make(params, lr=torch.tensor(0.125, dtype=lr_type)), make(twins, lr=0.125)
    grads = random_grads(params, optimizer.streams, torch.Generator())
    take(optimizer, params, grads)
    take(plain, twins, grads)
    assert tuple(p.dtype for p in params) == types
    assert_close(params, twins, 1e-6)


@every_optimizer
def test_hooks_fire_once_per_step(make):
    params = make_params()
    optimizer = make(params, lr=0.1)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("state"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    for _ in range(2):
        take(optimizer, params, random_grads(params, optimizer.streams, torch.Generator()))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["pre", "post", "pre", "post", "state", "loaded"]


@every_optimizer
def test_a_closure_runs_with_gradients_on_and_its_loss_is_returned(make):
    student, twin = Student(), Student()
    optimizer, plain = make(student.parameters(), lr=0.01), make(twin.parameters(), lr=0.01)
    train(twin, plain, range(3))
    for step in range(3):

        def closure(step=step):
            optimizer.zero_grad()
            losses = student_losses(student, Batch(step), optimizer.streams)
            optimizer.backward(**losses)
            return losses["task"].item() + step

        returned = optimizer.step(closure)
        assert step < returned < step + 5
    assert identical(snapshot(optimizer), snapshot(plain))


def test_duplicates_in_a_group_warn_as_in_torch():
    (p,) = make_params([(2,)])
    with pytest.warns(UserWarning, match="duplicate parameters"):
        dotkd.DOT([p, p])


TORCH_REFUSES = {
    "in two groups": (lambda p: [{"params": [p]}, {"params": [p]}], ValueError, "more than one parameter group"),
    "empty": (lambda p: [], ValueError, "empty parameter list"),
    "not tensors": (lambda p: [1.0], TypeError, "Tensor"),
    "not a leaf": (lambda p: [p * 2], ValueError, "leaf"),
    "a bare tensor": (lambda p: p, TypeError, "iterable"),
    "a set, whose order is not defined": (lambda p: [{"params": {p}}], TypeError, "ordered"),
}


@pytest.mark.parametrize("slip", TORCH_REFUSES)
@every_optimizer
def test_torchs_own_refusals_stand(make, slip):
    params, error, message = TORCH_REFUSES[slip]
    (p,) = make_params([(2,)])
    with pytest.raises(error, match=message):
        torch.optim.SGD(params(p), lr=0.1)
    with pytest.raises(error, match=message):
        make(params(p), lr=0.1)


@every_optimizer
def test_named_parameters_are_taken_and_named_in_the_state(make):
    student = Student()
    optimizer = make(student.named_parameters(), lr=0.1)
    train(student, optimizer, [0])
    names = [name for name, _ in student.named_parameters()]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names


@every_optimizer
@pytest.mark.parametrize("way", ["backward", "join"])
def test_sparse_gradients_are_refused_before_anything_changes(make, way):
    embedding = nn.Embedding(4, 3, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = make(embedding.parameters(), lr=0.1)
    out = embedding(torch.tensor([1, 2]))
    losses = {name: out.sum() for name in optimizer.streams}
    run = optimizer.join(**losses).backward if way == "join" else functools.partial(optimizer.backward, **losses)
    with pytest.raises(TypeError, match="sparse"):
        run()
    assert embedding.weight.grad is None
    assert torch.equal(embedding.weight, before)
    assert not optimizer.state_dict()["state"]


@every_optimizer
def test_complex_parameters_are_refused(make):
    with pytest.raises(TypeError, match="complex64"):
        make([nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=0.1)
