"""The contract of a step on named streams: what may happen to the gradients between backward and step.

- A rescaling of `p.grad` as a whole (torch's clip_grad_norm_, say) reaches both streams with the same factor; every
  other change of `p.grad` is refused, for the streams could not follow it. `p.grad = None` takes a parameter out.
- `clip_grad_norm_` returns the norm of the summed gradient and clips both streams with one factor.
- A loss or gradient that is not finite, in either stream, skips the step: parameters and state stay bitwise the same,
  and it is counted. A skipped first step does not count as the first.
"""

from __future__ import annotations

import copy
import math

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
    make_params,
    random_grads,
    snapshot,
    student_losses,
    take,
    train,
)
from reference import clip_factor, dot_step

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


EXACTLY, NEARLY = 1.0, 1 - 2.0**-40


def filled(*, dtype=torch.float64, cancel=0.0):
    """DOT with both streams filled. `cancel`: how far they cancel at parameter 1, whose p.grad then shows no factor."""
    params = make_params(dtype=dtype)
    optimizer = dotkd.DOT(params, **HYPER)
    grads = random_grads(params, STREAMS, torch.Generator().manual_seed(0))
    grads["task"][0].zero_()  # p.grad of this one is the distillation gradient alone
    if cancel:
        grads["distill"][1].copy_(-cancel * grads["task"][1])
    fill(optimizer, params, grads)
    return params, optimizer, grads


def assert_stepped(optimizer, params, grads, factors, tolerance=1e-12):
    """Parameters and both buffers are those of one literal step with the gradients times `factors`."""
    for i, (p, old) in enumerate(zip(params, make_params(dtype=params[0].dtype), strict=True)):
        v = {}
        g_task, g_distill = (factors[i] * grads[name][i].double() for name in STREAMS)
        expected = {"theta": dot_step(old.detach().double(), g_task, g_distill, v, **HYPER), **v}
        got = {"theta": p.detach(), **{name: optimizer.state[p][f"momentum_{name}"] for name in STREAMS}}
        for key, value in expected.items():
            torch.testing.assert_close(got[key].double(), value, rtol=tolerance, atol=tolerance)


RESCALINGS = {
    "clip_grad_norm_": lambda params: torch.nn.utils.clip_grad_norm_(params, 0.7),
    "clip, not binding": lambda params: torch.nn.utils.clip_grad_norm_(params, 1e6),
    "mul_": lambda params: [p.grad.mul_(0.25) for p in params],
    "foreach mul": lambda params: torch._foreach_mul_([p.grad for p in params], 0.25),
    "div_ by a tensor": lambda params: [p.grad.div_(torch.tensor(3.0)) for p in params],
    "two in a row": lambda params: [p.grad.mul_(0.25).mul_(3.0) for p in params],
    "negative": lambda params: [p.grad.neg_() for p in params],
}


@pytest.mark.parametrize("rescaling", RESCALINGS)
@pytest.mark.parametrize("cancel", [0.0, EXACTLY, NEARLY])
def test_a_rescaled_grad_rescales_both_streams(rescaling, cancel):
    params, optimizer, grads = filled(cancel=cancel)
    before = params[0].grad.clone()
    RESCALINGS[rescaling](params)
    factor = (params[0].grad / before).flatten()[0].item()
    assert (factor == 1) == (rescaling == "clip, not binding")
    optimizer.step()
    assert_stepped(optimizer, params, grads, [factor] * 3)


def test_micro_batches_after_a_rescaling_are_added_to_the_rescaled_streams():
    params, optimizer, grads = filled()
    RESCALINGS["mul_"](params)
    fill(optimizer, params, grads)
    optimizer.step()
    assert_stepped(optimizer, params, grads, [1.25] * 3)


def test_rescaling_one_parameter_alone_is_followed_or_refused():
    params, optimizer, grads = filled()
    params[0].grad.mul_(0.5)
    try:
        optimizer.step()
    except RuntimeError:
        assert identical(params, make_params())
    else:
        assert_stepped(optimizer, params, grads, [0.5, 1.0, 1.0])


ALTERATIONS = {
    "value clipped": lambda params: torch.nn.utils.clip_grad_value_(params, 0.1),
    "one entry": lambda params: params[0].grad[0, 0].mul_(0.5),
    "replaced": lambda params: setattr(params[0], "grad", torch.randn_like(params[0])),
    "noise": lambda params: [p.grad.add_(torch.full_like(p, 1e-3)) for p in params],
    "noise on a vanishing sum": lambda params: params[1].grad.add_(1e-3),
    "another loss": lambda params: (params[0] ** 2).sum().backward(),
    "another loss on a scalar": lambda params: (params[2] ** 2).sum().backward(),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("cancel", [EXACTLY, NEARLY])
def test_any_other_change_of_grad_is_refused(alteration, cancel):
    params, optimizer, _ = filled(cancel=cancel)
    ALTERATIONS[alteration](params)
    with pytest.raises(RuntimeError, match="grad"):
        optimizer.step()
    assert identical(params, make_params())
    assert not optimizer.state_dict()["state"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("where", [0, 3])
def test_a_loss_outside_the_streams_is_refused(when, where):
    """An ordinary backward() beside the streams, on a parameter that they reach (0) or do not (3)."""
    params = make_params([(3, 2), (4,), (), (2,)])
    optimizer = dotkd.DOT(params, **HYPER)
    grads = random_grads(params, STREAMS, torch.Generator().manual_seed(0))
    grads["task"][3] = grads["distill"][3] = None

    def run():
        if when == "before":
            (params[where] ** 2).sum().backward()
        fill(optimizer, params, grads)
        if when == "after":
            (params[where] ** 2).sum().backward()
        optimizer.step()

    with pytest.raises(RuntimeError, match="stream"):
        run()
    assert identical(params, make_params([(3, 2), (4,), (), (2,)]))


def test_grad_set_to_none_takes_the_parameter_out_of_the_step():
    params, optimizer, grads = filled()
    params[0].grad = None
    optimizer.step()
    assert identical(params[:1], make_params()[:1])
    v = {}
    expected = dot_step(make_params()[1].detach(), grads["task"][1], grads["distill"][1], v, **HYPER)
    assert_close([params[1]], [expected])


TOLERANCES = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("max_norm", [0.5, 1e3])
@pytest.mark.parametrize("own", [True, False])
def test_clipping_treats_both_streams_alike(dtype, tolerance, max_norm, own):
    params, optimizer, grads = filled(dtype=dtype)
    norm, factor = clip_factor([{n: grads[n][i] for n in STREAMS} for i in range(3)], max_norm)
    assert (factor < 1) == (max_norm < 1)
    total = optimizer.clip_grad_norm_(max_norm) if own else torch.nn.utils.clip_grad_norm_(params, max_norm)
    assert total.shape == ()
    torch.testing.assert_close(total.double(), torch.full_like(total, norm).double(), rtol=tolerance, atol=0)
    optimizer.step()
    assert_stepped(optimizer, params, grads, [factor] * 3, tolerance)


def test_own_clipping_shows_in_every_stream_and_in_grad():
    params, optimizer, grads = filled()
    _, factor = clip_factor([{n: grads[n][i] for n in STREAMS} for i in range(3)], 0.5)
    optimizer.clip_grad_norm_(0.5)
    for i, p in enumerate(params):
        assert_close([p.grad], [factor * (grads["task"][i] + grads["distill"][i])])
        for name in STREAMS:
            assert_close([optimizer.stream_grad(p, name)], [factor * grads[name][i]])
    with pytest.raises(ValueError, match=r"max_norm.*-1"):
        optimizer.clip_grad_norm_(-1.0)


@every_optimizer
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("clip", [None, "torch", "own"])
def test_a_non_finite_gradient_skips_the_whole_step(make, bad, stream, join, clip):
    params, twins = make_params(), make_params()
    optimizer, plain = make(params, lr=0.1, weight_decay=0.1), make(twins, lr=0.1, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        grads = random_grads(params, optimizer.streams, generator)
        poisoned = step in (0, 3, 4)
        if poisoned:
            grads[stream][1][2] = bad
        else:
            fill(plain, twins, grads)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(twins, 0.5)
            plain.step()
            plain.zero_grad()
        before = snapshot(optimizer)
        fill(optimizer, params, grads, join=join)
        if clip == "torch":
            torch.nn.utils.clip_grad_norm_(params, 0.5)
        elif clip == "own":
            optimizer.clip_grad_norm_(0.5)
        optimizer.step()
        optimizer.zero_grad()
        if poisoned and step:
            assert identical(snapshot(optimizer), before)
        assert optimizer.skipped_in_a_row == {0: 1, 3: 1, 4: 2}.get(step, 0)
    assert isinstance(optimizer.skipped_steps, int)
    assert optimizer.skipped_steps == 3
    assert_close(params, twins, 1e-13)


@pytest.mark.parametrize("bad", [(math.inf, -math.inf), (math.nan, math.nan)], ids=str)
def test_infinities_that_cancel_in_the_sum_are_seen(bad):
    params = make_params()
    optimizer = dotkd.DOT(params, **HYPER)
    grads = random_grads(params, STREAMS, torch.Generator().manual_seed(0))
    for name, value in zip(STREAMS, bad, strict=True):
        grads[name][0][0, 0] = value
    take(optimizer, params, grads)
    assert identical(params, make_params())
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("dampening", [0.0, 0.4])
def test_a_skipped_first_step_is_not_the_first_step(dampening):
    """The undampened first step is the first one that is taken."""
    params = make_params()
    expected, buffers = [p.detach().clone() for p in params], [{} for _ in params]
    optimizer = dotkd.DOT(params, dampening=dampening, **HYPER)
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        grads = random_grads(params, STREAMS, generator)
        if step == 0:
            grads["task"][0].fill_(math.nan)
        take(optimizer, params, grads)
        for i, theta in enumerate(expected if step else []):
            g_task, g_distill = grads["task"][i], grads["distill"][i]
            expected[i] = dot_step(theta, g_task, g_distill, buffers[i], dampening=dampening, **HYPER)
    assert_close(params, expected, 1e-13)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("join", [False, True])
def test_a_non_finite_loss_with_finite_gradients_skips_too(stream, join):
    student = Student()
    optimizer = dotkd.DOT(student.parameters(), **HYPER)
    losses = student_losses(student, Batch(0))
    losses[stream] = losses[stream] + math.nan
    optimizer.join(**losses).backward() if join else optimizer.backward(**losses)
    optimizer.step()
    assert identical(list(student.parameters()), list(Student().parameters()))
    assert optimizer.skipped_steps == 1


ZEROINGS = {
    "optimizer": lambda optimizer, model: optimizer.zero_grad(),
    "optimizer, to zero": lambda optimizer, model: optimizer.zero_grad(set_to_none=False),
    "model": lambda optimizer, model: model.zero_grad(),
    "model, to zero": lambda optimizer, model: model.zero_grad(set_to_none=False),
}


@pytest.mark.parametrize("zeroing", ZEROINGS)
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_after_a_skip_every_way_of_zeroing_makes_a_clean_start(zeroing, bad):
    student, plain = Student(), Student()
    del student.unused, plain.unused
    optimizer, other = dotkd.DOT(student.parameters(), **HYPER), dotkd.DOT(plain.parameters(), **HYPER)
    train(plain, other, [1, 2])
    statistics = copy.deepcopy(student.state_dict())
    losses = student_losses(student, Batch(0))
    losses["distill"] = losses["distill"] + math.nan if bad == "loss" else losses["distill"] * math.inf
    optimizer.backward(**losses)
    optimizer.step()
    ZEROINGS[zeroing](optimizer, student)
    student.load_state_dict(statistics)  # BatchNorm saw the skipped batch
    for step in (1, 2):
        optimizer.backward(**student_losses(student, Batch(step)))
        optimizer.step()
        ZEROINGS[zeroing](optimizer, student)
    assert (optimizer.skipped_steps, optimizer.skipped_in_a_row) == (1, 0)
    assert_close(list(student.parameters()), list(plain.parameters()))
