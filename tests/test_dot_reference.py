"""The contract of DOT and StreamSGD: the fast path equals the literal transcription in `reference.py`.

- For any shapes (0-dim and empty too), groups, hyper-parameters and patterns of which loss reaches what.
- For any memory layout, and in every floating type, also mixed in one group; types are kept.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dotkd
from optim_cases import STREAMS, assert_close, make_params, random_grads, snapshot, take
from reference import dot_step, stream_sgd_step

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}


@st.composite
def runs(draw):
    """Groups of (shapes, hyper-parameters), which stream reaches which parameter in each step, join, seed."""
    shape = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    groups = []
    for _ in range(draw(st.integers(1, 3))):
        momentum = draw(st.floats(0.1, 0.95))
        nesterov = draw(st.booleans())
        hyper = {
            "lr": draw(st.floats(0.0, 0.5)),
            "momentum": momentum,
            "delta": draw(st.floats(0.0, 0.99)) * min(momentum, 1 - momentum),
            "weight_decay": draw(st.sampled_from([0.0, 0.1])),
            "nesterov": nesterov,
            "dampening": 0.0 if nesterov else draw(st.sampled_from([0.0, 0.4])),
            "maximize": draw(st.booleans()),
            "normalize": draw(st.booleans()),
        }
        groups.append((draw(st.lists(shape, min_size=1, max_size=3)), hyper))
    groups[0][0].insert(0, (2,))  # both losses always reach this one: a loss that reaches nothing is refused
    count = sum(len(shapes) for shapes, _ in groups)
    one = st.sampled_from([(True, True), (True, True), (True, False), (False, True), (False, False)])
    step = st.lists(one, min_size=count - 1, max_size=count - 1).map(lambda rest: [(True, True), *rest])
    return (
        groups,
        draw(st.lists(step, min_size=1, max_size=4)),
        draw(st.booleans()),
        draw(st.integers(0, 2**20)),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(runs())
def test_equals_the_literal_reference(run):
    groups, pattern, join, seed = run
    params = make_params([shape for shapes, _ in groups for shape in shapes], seed=seed)
    owners = [hyper for shapes, hyper in groups for _ in shapes]
    remaining = iter(params)
    optimizer = dotkd.DOT([{"params": [next(remaining) for _ in shapes], **hyper} for shapes, hyper in groups])
    expected, buffers = [p.detach().clone() for p in params], [{} for _ in params]
    generator = torch.Generator().manual_seed(seed)
    for reached in pattern:
        grads = random_grads(params, STREAMS, generator)
        for i, hits in enumerate(reached):
            for name, hit in zip(STREAMS, hits, strict=True):
                grads[name][i] = grads[name][i] if hit else None
        take(optimizer, params, grads, join=join)
        for i, hyper in enumerate(owners):
            g_task, g_distill = grads["task"][i], grads["distill"][i]
            momenta = {
                "task": hyper["momentum"] - hyper["delta"],
                "distill": hyper["momentum"] + hyper["delta"],
            }
            others = {key: value for key, value in hyper.items() if key != "delta"}
            gradients, state = {"task": g_task, "distill": g_distill}, dict(buffers[i])
            general = stream_sgd_step(expected[i], gradients, state, momenta=momenta, decay_stream="task", **others)
            expected[i] = dot_step(expected[i], g_task, g_distill, buffers[i], **hyper)
            assert_close([general], [expected[i]], 1e-11)  # the two transcriptions agree with each other
        assert_close(params, expected, 1e-10)
    for p, v in zip(params, buffers, strict=True):
        for name, value in v.items():
            assert_close([optimizer.state[p][f"momentum_{name}"]], [value], 1e-10)


def follow_reference(params, hyper, steps=5, tolerance=1e-12):
    """Train `params` with DOT on random gradients beside the reference in float64; compare by value."""
    expected, buffers = [p.detach().clone().double() for p in params], [{} for _ in params]
    optimizer = dotkd.DOT(params, **hyper)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        grads = random_grads(params, STREAMS, generator)
        take(optimizer, params, grads)
        for i, theta in enumerate(expected):
            g_task, g_distill = grads["task"][i].double(), grads["distill"][i].double()
            expected[i] = dot_step(theta, g_task, g_distill, buffers[i], **hyper)
    for p, theta in zip(params, expected, strict=True):
        limit = max(tolerance, 8 * torch.finfo(p.dtype).eps)
        torch.testing.assert_close(p.detach().double(), theta, rtol=limit, atol=limit)
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"normalize": True}], ids=str)
def test_every_floating_type_is_kept_and_stays_near(dtype, options):
    params = make_params(dtype=dtype)
    optimizer = follow_reference(params, {**HYPER, **options})
    assert len(snapshot(optimizer)) == 9
    assert all(tensor.dtype == dtype for tensor in snapshot(optimizer))


def test_types_may_be_mixed_in_one_group():
    types = (torch.float32, torch.float64, torch.bfloat16, torch.float32)
    params = [make_params([(3,)], dtype=dtype, seed=i)[0] for i, dtype in enumerate(types)]
    follow_reference(params, HYPER)
    assert tuple(p.dtype for p in params) == types


LAYOUTS = {
    "transposed": lambda: torch.randn(4, 6, dtype=torch.float64).t(),
    "channels last": lambda: torch.randn(2, 3, 4, 5, dtype=torch.float64).to(memory_format=torch.channels_last),
    "every other column": lambda: torch.randn(4, 6, dtype=torch.float64)[:, ::2],
    "a row of a larger tensor": lambda: torch.randn(4, 6, dtype=torch.float64)[1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", [{}, {"nesterov": True, "normalize": True}], ids=str)
def test_any_memory_layout(layout, options):
    torch.manual_seed(0)
    tensor = LAYOUTS[layout]()
    base = tensor if tensor._base is None else tensor._base
    before, touched = base.clone(), torch.zeros_like(base, dtype=torch.bool)
    view = touched.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    view.fill_(True)
    follow_reference([nn.Parameter(tensor)], {**HYPER, **options})
    assert torch.equal(base[~touched], before[~touched]), "memory beside the parameter was written to"


def test_a_layout_changed_in_mid_run():
    convolution = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    params = list(convolution.parameters())
    expected, buffers = [p.detach().clone() for p in params], [{} for _ in params]
    optimizer = dotkd.DOT(params, **HYPER)
    generator = torch.Generator().manual_seed(5)
    for step in range(4):
        if step == 2:
            convolution.to(memory_format=torch.channels_last)
        grads = random_grads(params, STREAMS, generator)
        take(optimizer, params, grads)
        for i, theta in enumerate(expected):
            expected[i] = dot_step(theta, grads["task"][i], grads["distill"][i], buffers[i], **HYPER)
    assert_close(params, expected)
