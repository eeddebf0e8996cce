"""The contract of DOTAdamW: the update rule.

- A first moment per stream: m_s <- b_s m_s + (1 - b_s) g_s with b_task = beta1 - delta, b_distill = beta1 + delta, and
  beta1 itself for a stream that alone reaches the parameter in this step.
- Bias correction per stream, by one minus the product of the betas that stream has used.
- One second moment, of the summed gradient: v <- beta2 v + (1 - beta2) (g_task + g_distill)^2.
- Decoupled decay: theta <- theta (1 - lr wd) - lr sum_s m_s_hat / (sqrt(v_hat) + eps).
- delta = 0 is torch.optim.AdamW on the summed loss. A parameter that no loss reaches is left alone.
- A skipped step (non-finite gradient) does not age the bias correction.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dotkd
from optim_cases import (
    STREAMS,
    Student,
    assert_close,
    identical,
    make_params,
    random_grads,
    take,
    train,
    train_on_sum,
)
from reference import dot_adamw_step

BODY = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.05, "eps": 1e-8}
REST = {"lr": 0.003, "betas": (0.8, 0.999), "weight_decay": 0.0, "eps": 1e-6}


def groups_of(student):
    body = list(student.body.parameters())
    rest = [p for name, p in student.named_parameters() if not name.startswith("body")]
    return [{"params": body, **BODY}, {"params": rest, **REST}]


@pytest.mark.parametrize("maximize", [False, True])
def test_delta_zero_is_adamw_on_the_summed_loss(maximize):
    """On a network with BatchNorm, two groups, task-only and distill-only parameters, over 100 steps."""
    ours, theirs = Student(), Student()
    sign = -1.0 if maximize else 1.0
    train(ours, dotkd.DOTAdamW(groups_of(ours), delta=0.0, maximize=maximize), range(100), sign=sign)
    train_on_sum(theirs, torch.optim.AdamW(groups_of(theirs), maximize=maximize), range(100), sign=sign)
    assert_close(list(ours.state_dict().values()), list(theirs.state_dict().values()))
    assert identical(list(ours.unused.parameters()), list(Student().unused.parameters()))


def test_the_comparison_with_adamw_has_power():
    ours, theirs = Student(), Student()
    train(ours, dotkd.DOTAdamW(groups_of(ours), delta=1e-3), range(10))
    train(theirs, dotkd.DOTAdamW(groups_of(theirs), delta=0.0), range(10))
    assert (ours.body[0].weight - theirs.body[0].weight).abs().max() > 1e-7
    assert_close([ours.projector.weight], [theirs.projector.weight], 0.05)


@pytest.mark.parametrize("delta", [0.0, 0.05, 0.09])
def test_the_first_step_moves_each_parameter_by_lr_whatever_the_delta(delta):
    """Bias correction per stream: after one step each corrected moment is the gradient itself."""
    params, old = make_params(), make_params()
    optimizer = dotkd.DOTAdamW(params, lr=0.01, delta=delta, weight_decay=0.0, eps=1e-30)
    grads = random_grads(params, STREAMS, torch.Generator().manual_seed(1))
    take(optimizer, params, grads)
    for p, q, a, b in zip(params, old, grads["task"], grads["distill"], strict=True):
        torch.testing.assert_close(p.detach(), q.detach() - 0.01 * torch.sign(a + b), rtol=0, atol=1e-12)


def test_the_distillation_stream_remembers_longer():
    """After one impulse in one stream, then zero gradients, the distill stream's share decays more slowly."""
    moved = {}
    for stream in STREAMS:
        (p,) = make_params([()])
        optimizer = dotkd.DOTAdamW([p], lr=0.01, delta=0.075, weight_decay=0.0)
        for step in range(20):
            before = p.detach().clone()
            impulse = {name: [torch.tensor(float(step == 0 and name == stream)).double()] for name in STREAMS}
            take(optimizer, [p], impulse)
        moved[stream] = (before - p.detach()).item()
    expected = {name: (1 - b) * b**19 / (1 - b**20) for name, b in (("task", 0.825), ("distill", 0.975))}
    assert moved["distill"] / moved["task"] == pytest.approx(expected["distill"] / expected["task"], rel=1e-9)
    assert moved["distill"] > 5 * moved["task"]


@st.composite
def runs(draw):
    shape = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        beta1 = draw(st.floats(0.1, 0.95))
        hyper = {
            "lr": draw(st.floats(0.0, 0.1)),
            "betas": (beta1, draw(st.floats(0.1, 0.999))),
            "delta": draw(st.floats(0.0, 0.99)) * min(beta1, 1 - beta1),
            "weight_decay": draw(st.sampled_from([0.0, 0.1])),
            "eps": draw(st.sampled_from([1e-8, 1e-3])),
            "maximize": draw(st.booleans()),
        }
        groups.append((draw(st.lists(shape, min_size=1, max_size=3)), hyper))
    groups[0][0].insert(0, (2,))  # both losses always reach this one: a loss that reaches nothing is refused
    count = sum(len(shapes) for shapes, _ in groups)
    one = st.sampled_from([(True, True), (True, True), (True, False), (False, True), (False, False)])
    step = st.lists(one, min_size=count - 1, max_size=count - 1).map(lambda rest: [(True, True), *rest])
    return groups, draw(st.lists(step, min_size=1, max_size=5)), draw(st.booleans()), draw(st.integers(0, 2**20))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(runs())
def test_equals_the_literal_reference(run):
    groups, pattern, join, seed = run
    params = make_params([shape for shapes, _ in groups for shape in shapes], seed=seed)
    owners = [hyper for shapes, hyper in groups for _ in shapes]
    remaining = iter(params)
    optimizer = dotkd.DOTAdamW([{"params": [next(remaining) for _ in shapes], **hyper} for shapes, hyper in groups])
    expected = [p.detach().clone() for p in params]
    states = [{} for _ in params]
    generator = torch.Generator().manual_seed(seed)
    for reached in pattern:
        grads = random_grads(params, STREAMS, generator)
        for i, hits in enumerate(reached):
            for name, hit in zip(STREAMS, hits, strict=True):
                grads[name][i] = grads[name][i] if hit else None
        take(optimizer, params, grads, join=join)
        for i, hyper in enumerate(owners):
            expected[i] = dot_adamw_step(expected[i], grads["task"][i], grads["distill"][i], states[i], **hyper)
        assert_close(params, expected, 1e-9)


HYPER = {"lr": 0.01, "betas": (0.9, 0.999), "delta": 0.075, "weight_decay": 0.1}


def reference_steps(expected, states, grads):
    for i, theta in enumerate(expected):
        g_task, g_distill = (grads[name][i].to(theta.dtype) for name in STREAMS)
        expected[i] = dot_adamw_step(theta, g_task, g_distill, states[i], **HYPER)


@pytest.mark.parametrize("skipped", [(0,), (3,), (0, 1, 4)])
def test_a_skipped_step_leaves_no_trace(skipped):
    """Neither moments nor bias correction nor decay: the run goes on as if those batches had never been seen."""
    params = make_params()
    expected, states = [p.detach().clone() for p in params], [{} for _ in params]
    optimizer = dotkd.DOTAdamW(params, **HYPER)
    generator = torch.Generator().manual_seed(2)
    for step in range(8):
        grads = random_grads(params, STREAMS, generator)
        if step in skipped:
            grads["distill"][1].fill_(math.nan)
        else:
            reference_steps(expected, states, grads)
        take(optimizer, params, grads)
        assert_close(params, expected, 1e-10)
    assert optimizer.skipped_steps == len(skipped)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision_keeps_its_type_and_stays_near(dtype, tolerance):
    params = make_params(dtype=dtype)
    expected, states = [p.detach().double() for p in params], [{} for _ in params]
    optimizer = dotkd.DOTAdamW(params, **HYPER)
    generator = torch.Generator().manual_seed(5)
    for _ in range(5):
        grads = random_grads(params, STREAMS, generator)
        take(optimizer, params, grads)
        reference_steps(expected, states, grads)
    for p, theta in zip(params, expected, strict=True):
        assert p.dtype == dtype
        torch.testing.assert_close(p.detach().double(), theta, rtol=tolerance, atol=tolerance)


def test_strided_and_mixed_parameters_in_one_group():
    torch.manual_seed(0)
    tensors = [torch.randn(4, 6).double()[:, ::2], torch.randn(4, 6).double().t(), torch.randn(3)]
    params = [nn.Parameter(tensor) for tensor in tensors]
    expected, states = [p.detach().clone() for p in params], [{} for _ in params]
    optimizer = dotkd.DOTAdamW(params, **HYPER)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        grads = random_grads(params, STREAMS, generator)
        take(optimizer, params, grads)
        reference_steps(expected, states, grads)
    assert_close(params[:2], expected[:2])
    assert_close(params[2:], expected[2:], 1e-5)


REFUSED = [
    ({"delta": -0.01}, r"expected `delta` in \[0, .*beta.*got -0.01"),
    ({"delta": 0.2}, r"expected `delta` in \[0, .*beta.*got 0.2"),
    ({"betas": (0.9, 0.999), "delta": 0.1}, r"expected `delta` in \[0, .*beta.*got 0.1"),
    ({"betas": (0.3, 0.999), "delta": 0.4}, r"expected `delta` in \[0, .*beta.*got 0.4"),
    ({"delta": math.nan}, r"expected `delta` in \[0, .*beta.*got nan"),
    ({"betas": (1.0, 0.999), "delta": 0.0}, "beta.*got 1"),
    ({"betas": (0.9, 1.0)}, "beta.*got 1"),
    ({"betas": (0.9, -0.1)}, "beta.*got -0.1"),
    ({"betas": (0.9, math.nan)}, "beta.*got nan"),
    ({"eps": -1e-8}, "`eps`.*got -1e-08"),
    ({"eps": math.nan}, "`eps`.*got nan"),
    ({"lr": -0.1}, "`lr`.*got -0.1"),
    ({"lr": math.nan}, "`lr`.*got nan"),
    ({"weight_decay": -1e-4}, "`weight_decay`.*got -0.0001"),
]
CONSTRUCTIONS = {
    "constructor": lambda params, bad: dotkd.DOTAdamW(params, **bad),
    "group": lambda params, bad: dotkd.DOTAdamW([{"params": params[:1]}, {"params": params[1:], **bad}]),
}


@pytest.mark.parametrize(("bad", "message"), REFUSED)
@pytest.mark.parametrize("construct", CONSTRUCTIONS.values(), ids=CONSTRUCTIONS.keys())
def test_hyper_parameters_out_of_range_are_refused(bad, message, construct):
    """The message speaks of `betas`, the argument that the user gave."""
    with pytest.raises(ValueError, match=message):
        construct(make_params(), bad)


@pytest.mark.parametrize(("bad", "message"), REFUSED)
def test_a_bad_group_is_refused_before_it_is_added(bad, message):
    params = make_params()
    optimizer = dotkd.DOTAdamW(params[:1])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": params[1:], **bad})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("betas", [0.9, (0.9,), (0.9, 0.99, 0.999), ("0.9", 0.999)], ids=str)
def test_betas_of_a_wrong_kind_are_refused_by_name(betas):
    with pytest.raises((TypeError, ValueError), match="betas"):
        dotkd.DOTAdamW(make_params(), betas=betas)
