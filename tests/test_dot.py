"""The contract of DOT and StreamSGD: the update rule against torch's own SGD, and the hyper-parameters.

- With both gradients present, DOT is two `torch.optim.SGD` on the same parameters, with gradients taken at the
  same point: (momentum - delta, with weight decay) on the task loss, (momentum + delta, without) on the other.
- A parameter that one loss alone reaches in a step follows SGD(momentum, weight decay); one that no loss reaches
  is left alone, by weight decay too.
- delta = 0 is SGD on the summed loss. N streams are N SGDs. Each group has its own hyper-parameters.
- `normalize` multiplies each stream's move by (1 - m) / (1 - momentum): the steady state is that of plain SGD.
- Hyper-parameters outside their range are refused with the rule and the value, before the group is there.
"""

from __future__ import annotations

import math

import pytest
import torch

import dotkd
from optim_cases import (
    STREAMS,
    Batch,
    Student,
    assert_close,
    identical,
    make_params,
    random_grads,
    student_losses,
    take,
    train,
    train_on_sum,
)

OPTIONS = {
    "plain": {},
    "nesterov": {"nesterov": True},
    "dampening": {"dampening": 0.3},
    "maximize": {"maximize": True, "nesterov": True},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
BODY = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 5e-3}
HEAD = {"lr": 0.02, "momentum": 0.8, "delta": 0.15, "weight_decay": 0.0}
REST = {"lr": 0.03, "momentum": 0.7, "delta": 0.1, "weight_decay": 1e-2}


def sign_of(options):
    return -1.0 if options.get("maximize") else 1.0


def parts(student):
    """Parameters and hyper-parameters: body and head serve both losses, the others one or none."""
    return {
        "body": (list(student.body.parameters()), BODY),
        "head": (list(student.head.parameters()), HEAD),
        "auxiliary": (list(student.auxiliary.parameters()), REST),
        "projector": (list(student.projector.parameters()), REST),
        "unused": (list(student.unused.parameters()), REST),
    }


def dot_for(student, **options):
    groups = parts(student)
    rest = [p for name in ("auxiliary", "projector", "unused") for p in groups[name][0]]
    shared = [{"params": groups[name][0], **groups[name][1]} for name in ("body", "head")]
    return dotkd.DOT([*shared, {"params": rest, **REST}], **options)


def train_with_sgd(student, steps, *, shift=0.0, **options):
    """The golden reference: torch's own SGD, once per loss, both losses' gradients taken before either steps."""
    groups = parts(student)

    def sgd(name, sign, decay):
        params, h = groups[name]
        momentum = h["momentum"] + sign * (h["delta"] + shift)
        weight_decay = h["weight_decay"] if decay else 0.0
        return torch.optim.SGD(params, lr=h["lr"], momentum=momentum, weight_decay=weight_decay, **options)

    task = [sgd("body", -1, True), sgd("head", -1, True), sgd("auxiliary", 0, True), sgd("unused", 0, True)]
    distill = [sgd("body", 1, False), sgd("head", 1, False), sgd("projector", 0, True)]
    params = list(student.parameters())
    for step in steps:
        losses = student_losses(student, Batch(step))
        gradients = {
            name: torch.autograd.grad(sign_of(options) * loss, params, retain_graph=True, allow_unused=True)
            for name, loss in losses.items()
        }
        for name, optimizers in (("task", task), ("distill", distill)):
            for p, g in zip(params, gradients[name], strict=True):
                p.grad = g
            for optimizer in optimizers:
                optimizer.step()


@every_option
def test_equals_two_sgd_over_100_steps(options):
    ours, golden = Student(), Student()
    train(ours, dot_for(ours, **options), range(100), sign=sign_of(options))
    train_with_sgd(golden, range(100), **options)
    assert_close(list(ours.state_dict().values()), list(golden.state_dict().values()))
    assert identical(list(ours.unused.parameters()), list(Student().unused.parameters()))


def test_the_golden_comparison_has_power():
    """A delta wrong by 0.001 in the golden reference is seen at once, so 1e-12 above is no accident."""
    ours, golden = Student(), Student()
    train(ours, dot_for(ours), range(10))
    train_with_sgd(golden, range(10), shift=1e-3)
    assert (ours.body[0].weight - golden.body[0].weight).abs().max() > 1e-6
    assert torch.allclose(ours.projector.weight, golden.projector.weight, atol=1e-3)


@every_option
@pytest.mark.parametrize("momentum", [0.9, 0.5])
def test_delta_zero_is_sgd_on_the_summed_loss(options, momentum):
    ours, theirs = Student(), Student()
    hyper = {"lr": 0.05, "momentum": momentum, "weight_decay": 1e-2, **options}
    train(ours, dotkd.DOT(ours.parameters(), delta=0.0, **hyper), range(40), sign=sign_of(options))
    train_on_sum(theirs, torch.optim.SGD(theirs.parameters(), **hyper), range(40), sign=sign_of(options))
    assert_close(list(ours.parameters()), list(theirs.parameters()))


def compare_with_sgds(optimizer, params, golden, twins, steps=10):
    """`golden`: one torch SGD per stream, the decaying one first, since decay acts at the old point."""
    generator = torch.Generator().manual_seed(4)
    for _ in range(steps):
        grads = random_grads(params, optimizer.streams, generator)
        take(optimizer, params, grads)
        for name, sgd in golden.items():
            for twin, g in zip(twins, grads[name], strict=True):
                twin.grad = g
            sgd.step()
    assert_close(params, twins)


@pytest.mark.parametrize("dampening", [0.0, 0.5])
@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_a_stream_without_momentum_is_plain_gradient_descent(momentum, dampening):
    """delta = momentum leaves the task stream without memory; torch then has no buffer and no dampening."""
    params, twins = make_params(), make_params()
    hyper = {"lr": 0.1, "dampening": dampening}
    optimizer = dotkd.DOT(params, momentum=momentum, delta=momentum, weight_decay=0.1, **hyper)
    golden = {
        "task": torch.optim.SGD(twins, momentum=0.0, weight_decay=0.1, **hyper),
        "distill": torch.optim.SGD(twins, momentum=2 * momentum, **hyper),
    }
    compare_with_sgds(optimizer, params, golden, twins)


@pytest.mark.parametrize("decay_stream", [None, "b"])
@every_option
def test_three_streams_are_three_sgd(decay_stream, options):
    momenta = {"a": 0.5, "b": 0.9, "c": 0.97}
    params, twins = make_params(), make_params()
    chosen = {} if decay_stream is None else {"decay_stream": decay_stream}
    optimizer = dotkd.StreamSGD(params, momenta=momenta, lr=0.05, weight_decay=0.02, **chosen, **options)
    assert optimizer.streams == ("a", "b", "c")
    decaying = decay_stream or "a"
    golden = {
        name: torch.optim.SGD(twins, lr=0.05, momentum=momenta[name], weight_decay=0.02 * (name == decaying), **options)
        for name in sorted(momenta, key=lambda name: name != decaying)
    }
    compare_with_sgds(optimizer, params, golden, twins, steps=30)


def test_stream_sgd_with_the_momenta_of_dot_is_dot():
    ours, general = Student(), Student()
    momenta = {"task": 0.825, "distill": 0.975}
    train(ours, dotkd.DOT(ours.parameters(), lr=0.05, weight_decay=1e-2), range(10))
    optimizer = dotkd.StreamSGD(general.parameters(), momenta=momenta, lr=0.05, weight_decay=1e-2)
    train(general, optimizer, range(10))
    assert_close(list(ours.parameters()), list(general.parameters()))


@pytest.mark.parametrize("normalize", [False, True])
def test_normalize_keeps_the_steady_state_of_plain_sgd(normalize):
    """Under constant gradients every stream moves by lr g / (1 - momentum); without it each by its own."""
    (p,) = make_params([(2,)])
    task, distill = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()
    optimizer = dotkd.DOT([p], lr=0.01, momentum=0.9, delta=0.075, normalize=normalize)
    for _ in range(1200):
        before = p.detach().clone()
        take(optimizer, [p], {"task": [task], "distill": [distill]})
    gain_task, gain_distill = (10, 10) if normalize else (1 / 0.175, 1 / 0.025)
    expected = 0.01 * (gain_task * task + gain_distill * distill)
    torch.testing.assert_close(before - p.detach(), expected, rtol=1e-9, atol=0)


REFUSED = [
    ({"delta": -0.01}, r"expected `delta` in \[0, .*got -0.01"),
    ({"delta": 0.2}, r"expected `delta` in \[0, .*got 0.2"),
    ({"momentum": 0.9, "delta": 0.1}, r"expected `delta` in \[0, .*got 0.1"),  # official code: momentum 1.0
    ({"momentum": 0.3, "delta": 0.4}, r"expected `delta` in \[0, .*got 0.4"),
    ({"delta": math.nan}, r"expected `delta` in \[0, .*got nan"),
    ({"momentum": 1.0, "delta": 0.0}, r"expected `momentum` in \[0, 1\), got 1"),
    ({"momentum": -0.1, "delta": 0.0}, r"expected `momentum` in \[0, 1\), got -0.1"),
    ({"momentum": math.nan}, r"expected `momentum` in \[0, 1\), got nan"),
    ({"lr": -0.1}, "`lr`.*got -0.1"),
    ({"lr": math.nan}, "`lr`.*got nan"),
    ({"weight_decay": -1e-4}, "`weight_decay`.*got -0.0001"),
    ({"weight_decay": math.nan}, "`weight_decay`.*got nan"),
    ({"dampening": math.nan}, "`dampening`.*got nan"),
    ({"nesterov": True, "dampening": 0.1}, "nesterov.*dampening.*0.1"),
    ({"nesterov": True, "momentum": 0.0, "delta": 0.0}, "nesterov.*momentum.*0.0"),
]
CONSTRUCTIONS = {
    "constructor": lambda params, bad: dotkd.DOT(params, **bad),
    "group": lambda params, bad: dotkd.DOT([{"params": params[:1]}, {"params": params[1:], **bad}]),
}


@pytest.mark.parametrize(("bad", "message"), REFUSED)
@pytest.mark.parametrize("construct", CONSTRUCTIONS.values(), ids=CONSTRUCTIONS.keys())
def test_hyper_parameters_out_of_range_are_refused(bad, message, construct):
    with pytest.raises(ValueError, match=message):
        construct(make_params(), bad)


@pytest.mark.parametrize(("bad", "message"), REFUSED)
def test_a_bad_group_is_refused_before_it_is_added(bad, message):
    params = make_params()
    optimizer = dotkd.DOT(params[:1])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": params[1:], **bad})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momenta": {"a": 0.5, "b": 1.0}}, r"'b' in \[0, 1\), got 1"),
        ({"momenta": {"a": -0.5, "b": 0.9}}, r"'a' in \[0, 1\), got -0.5"),
        ({"momenta": {}}, "at least one stream"),
        ({"momenta": {"task": 0.5, "relation": 0.9}, "decay_stream": "relatoin"}, "'relatoin'.*'relation'"),
    ],
)
def test_stream_sgd_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        dotkd.StreamSGD(make_params(), lr=0.1, **options)


def test_hyper_parameters_are_keyword_only_and_have_the_published_defaults():
    with pytest.raises(TypeError, match="positional"):
        dotkd.DOT(make_params(), 0.1)
    with pytest.raises(TypeError, match="momentun"):
        dotkd.DOT(make_params(), momentun=0.9)
    defaults = dotkd.DOT(make_params()).defaults
    assert (defaults["momentum"], defaults["delta"], defaults["weight_decay"]) == (0.9, 0.075, 0)
    assert dotkd.DOT(make_params()).streams == STREAMS


@pytest.mark.parametrize("name", ["lr", "momentum", "delta", "weight_decay", "dampening"])
def test_a_hyper_parameter_of_a_wrong_kind_is_refused_by_name(name):
    with pytest.raises(TypeError, match=name):
        dotkd.DOT(make_params(), **{name: "0.1"})
