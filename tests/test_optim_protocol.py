"""The contract of torch.optim, kept by every optimizer of dotkd: state and copies.

- `state_dict` round trips, through `torch.save` and `torch.load(weights_only=True)` too, and the run continues bit for
  bit. State of torch's SGD and of the official DOT is migrated; other state is refused by name.
- State of other shapes, groups or optimizers leaves the optimizer as it was.
- A deep copy or a pickle of model and optimizer together continues alike, apart from the original.
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

import dotkd
from optim_cases import (
    OPTIMIZERS,
    STREAMS,
    Batch,
    Student,
    assert_close,
    identical,
    make_params,
    random_grads,
    snapshot,
    student_losses,
    take,
    train,
    train_on_sum,
)
from reference import dot_step

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def through_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


TRIPS = {"in memory": copy.deepcopy, "through a file": through_file}


@every_optimizer
@pytest.mark.parametrize("trip", TRIPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_loaded_run_continues_bit_for_bit(make, trip, dtype):
    student = Student(dtype=dtype)
    optimizer = make(student.parameters(), lr=0.01, weight_decay=0.1)
    train(student, optimizer, range(4), dtype=dtype)
    saved, weights = TRIPS[trip](optimizer.state_dict()), copy.deepcopy(student.state_dict())
    train(student, optimizer, range(4, 9), dtype=dtype)

    other = Student(seed=1, dtype=dtype)
    loaded = make(other.parameters(), lr=0.5)
    train(other, loaded, range(2), dtype=dtype)  # its own state must not survive
    other.load_state_dict(weights)
    loaded.load_state_dict(saved)
    train(other, loaded, range(4, 9), dtype=dtype)
    assert identical(snapshot(loaded), snapshot(optimizer))
    assert loaded.param_groups[0]["lr"] == 0.01
    assert loaded.param_groups[0]["weight_decay"] == 0.1


@every_optimizer
def test_a_loaded_run_of_bfloat16_parameters_continues_bit_for_bit(make):
    """torch casts floating state to the parameter's type on loading; bias corrections must not suffer from it."""
    params = make_params(dtype=torch.bfloat16)
    optimizer = make(params, lr=0.05)
    generator = torch.Generator().manual_seed(0)
    batches = [random_grads(params, optimizer.streams, generator) for _ in range(8)]

    def go(optimizer, params, batches):
        for grads in batches:
            take(optimizer, params, grads)

    go(optimizer, params, batches[:5])
    twins = copy.deepcopy(params)
    loaded = make(twins, lr=0.05)
    loaded.load_state_dict(through_file(optimizer.state_dict()))
    go(optimizer, params, batches[5:])
    go(loaded, twins, batches[5:])
    assert identical(snapshot(loaded), snapshot(optimizer))


@every_optimizer
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_a_copy_of_model_and_optimizer_continues_alike(make, steps, duplicate):
    student = Student()
    optimizer = make(student.parameters(), lr=0.01, weight_decay=0.1)
    train(student, optimizer, range(steps))
    other, other_optimizer = duplicate((student, optimizer))
    train(student, optimizer, range(steps, 6))
    frozen = [p.detach().clone() for p in student.parameters()]
    train(other, other_optimizer, range(steps, 6))
    assert identical(snapshot(other_optimizer), snapshot(optimizer))
    assert other_optimizer.streams == optimizer.streams
    assert identical(list(student.parameters()), frozen), "the copy must not touch the original"


@every_optimizer
def test_a_state_loads_into_an_optimizer_that_has_loaded_one_before(make):
    student = Student()
    optimizer = make(student.parameters(), lr=0.01)
    train(student, optimizer, range(2))
    early = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(copy.deepcopy(early))
    train(student, optimizer, range(2, 4))
    optimizer.load_state_dict(copy.deepcopy(early))
    held = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    assert identical(held, [value for entry in early["state"].values() for value in entry.values()])


def test_state_has_the_documented_names():
    student = Student()
    optimizer = dotkd.DOT(student.parameters(), **HYPER)
    train(student, optimizer, range(2))
    assert set(optimizer.state[student.head.weight]) == {"momentum_task", "momentum_distill"}
    assert "momentum_distill" not in optimizer.state[student.auxiliary.weight]
    assert "momentum_task" not in optimizer.state[student.projector.weight]
    assert not optimizer.state.get(student.unused.weight)


def after_five_steps_of_sgd(**options):
    student = Student()
    student.projector.requires_grad_(False)  # distill-only: its one buffer would go to a stream that never comes
    sgd = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, **options)
    train_on_sum(student, sgd, range(5), sign=sign_of(options))
    return student, sgd


def sign_of(options):
    return -1.0 if options.get("maximize") else 1.0


SGD_OPTIONS = pytest.mark.parametrize("options", [{}, {"nesterov": True}, {"maximize": True}], ids=str)


@SGD_OPTIONS
def test_with_delta_zero_a_run_of_torch_sgd_continues_unchanged(options):
    student, sgd = after_five_steps_of_sgd(**options)
    other = copy.deepcopy(student)
    optimizer = dotkd.DOT(other.parameters(), lr=0.5, momentum=0.5, delta=0.0)
    optimizer.load_state_dict(through_file(sgd.state_dict()))
    train_on_sum(student, sgd, range(5, 15), sign=sign_of(options))
    train(other, optimizer, range(5, 15), sign=sign_of(options))
    assert_close(list(other.parameters()), list(student.parameters()))


@SGD_OPTIONS
def test_state_of_torch_sgd_goes_to_the_task_stream_and_distill_starts_fresh(options):
    student, sgd = after_five_steps_of_sgd(**options)
    weight = student.head.weight
    optimizer = dotkd.DOT(student.parameters(), lr=0.5, momentum=0.5, delta=0.075)
    optimizer.load_state_dict(through_file(sgd.state_dict()))
    group = optimizer.param_groups[0]
    expected_group = {**HYPER, "nesterov": False, "maximize": False, **options}
    assert {key: group[key] for key in expected_group} == expected_group
    assert not {"foreach", "fused", "differentiable"} & set(group), "what DOT does not know must not look as if it did"
    buffer = sgd.state[weight]["momentum_buffer"].clone()
    assert set(optimizer.state[weight]) == {"momentum_task"}
    assert torch.equal(optimizer.state[weight]["momentum_task"], buffer)
    losses = student_losses(student, Batch(5)).values()
    sign = sign_of(options)
    g_task, g_kd = (torch.autograd.grad(sign * loss, weight, retain_graph=True)[0] for loss in losses)
    expected = dot_step(weight.detach().clone(), g_task, g_kd, {"task": buffer}, **{**HYPER, **options})
    train(student, optimizer, [5], sign=sign)
    assert_close([weight], [expected])


def official_state(params, *, momentum, momentum_kd):
    """The shape of a state_dict of mdistiller's DistillationOrientedTrainer after the first step, and its buffers."""
    generator = torch.Generator().manual_seed(7)
    buffers = [{n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n in STREAMS} for p in params]
    group = {
        "lr": 0.05,
        "momentum": momentum,
        "momentum_kd": momentum_kd,
        "dampening": 0,
        "weight_decay": 0.01,
    }
    names = {"task": "momentum_buffer", "distill": "momentum_kd_buffer"}
    state = {i: {names[n]: v.clone() for n, v in by_name.items()} for i, by_name in enumerate(buffers)}
    return {"state": state, "param_groups": [{**group, "params": list(range(len(params)))}]}, buffers


def test_state_of_the_official_implementation_is_migrated():
    params = make_params()
    saved, buffers = official_state(params, momentum=0.9 - 0.075, momentum_kd=0.9 + 0.075)
    optimizer = dotkd.DOT(params, lr=0.5, momentum=0.5, delta=0.3)
    optimizer.load_state_dict(through_file(saved))
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["delta"]) == pytest.approx((0.9, 0.075))
    assert "momentum_kd" not in group
    assert group["lr"] == 0.05
    expected = [p.detach().clone() for p in params]
    generator = torch.Generator().manual_seed(8)
    for _ in range(3):
        grads = random_grads(params, STREAMS, generator)
        take(optimizer, params, grads)
        for i, theta in enumerate(expected):
            expected[i] = dot_step(theta, grads["task"][i], grads["distill"][i], buffers[i], **HYPER)
    assert_close(params, expected)


def test_official_state_with_a_momentum_that_diverges_is_refused():
    params = make_params()
    saved, _ = official_state(params, momentum=0.8, momentum_kd=1.0)
    optimizer = dotkd.DOT(params, **HYPER)
    with pytest.raises(ValueError, match="delta"):
        optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert not optimizer.state_dict()["state"]


def foreign_state(name, steps):
    """The state_dict of another optimizer on parameters of the same shapes, after `steps` steps."""
    params = make_params()
    makers = {
        "SGD": lambda: torch.optim.SGD(params, momentum=0.9),
        "Adam": lambda: torch.optim.Adam(params),
        "AdamW": lambda: torch.optim.AdamW(params),
        "RMSprop": lambda: torch.optim.RMSprop(params),
        "DOT": lambda: dotkd.DOT(params),
        "DOTAdamW": lambda: dotkd.DOTAdamW(params),
        "other streams": lambda: dotkd.StreamSGD(params, momenta={"a": 0.5, "b": 0.9}, lr=0.1),
    }
    optimizer = makers[name]()
    for _ in range(steps):
        if isinstance(optimizer, dotkd.optim.StreamOptimizer):
            take(optimizer, params, random_grads(params, optimizer.streams, torch.Generator()))
        else:
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
    return optimizer.state_dict()


FOREIGN = [
    ("DOT", "Adam", "exp_avg"),
    ("DOT", "RMSprop", "square_avg"),
    ("DOT", "DOTAdamW", "moment_task"),
    ("DOT", "other streams", "momentum_a"),
    ("DOTAdamW", "SGD", "momentum_buffer"),
    ("DOTAdamW", "AdamW", "exp_avg"),
    ("DOTAdamW", "DOT", "momentum_task"),
    ("StreamSGD", "other streams", "momentum_a"),
]


@pytest.mark.parametrize(("name", "source", "key"), FOREIGN)
def test_foreign_state_is_refused_by_name(name, source, key):
    optimizer = OPTIMIZERS[name](make_params(), lr=0.25)
    with pytest.raises(ValueError, match=key):
        optimizer.load_state_dict(foreign_state(source, steps=1))
    assert not optimizer.state_dict()["state"]
    assert optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("source", ["SGD", "Adam", "AdamW", "DOT", "DOTAdamW", "other streams"])
@pytest.mark.parametrize("steps", [0, 1])
def test_state_that_loads_can_be_trained_on(name, source, steps):
    """Also state with no buffers yet: migrated or refused with the optimizer unchanged, never half understood."""
    params = make_params()
    optimizer = OPTIMIZERS[name](params, lr=0.25)
    keys = set(optimizer.param_groups[0])
    try:
        optimizer.load_state_dict(foreign_state(source, steps))
    except ValueError:
        assert optimizer.param_groups[0]["lr"] == 0.25
    assert set(optimizer.param_groups[0]) == keys
    take(optimizer, params, random_grads(params, optimizer.streams, torch.Generator()))


@every_optimizer
def test_state_of_other_shapes_or_groups_is_refused(make):
    params = make_params()
    optimizer = make(params, lr=0.1)
    take(optimizer, params, random_grads(params, optimizer.streams, torch.Generator()))
    fewer = make(make_params()[:2], lr=0.1)
    with pytest.raises(ValueError, match="group"):
        fewer.load_state_dict(optimizer.state_dict())
    turned = make(make_params([(2, 3), (4,), ()]), lr=0.1)
    with pytest.raises(ValueError, match=r"(2, 3).*(3, 2)|(3, 2).*(2, 3)"):
        turned.load_state_dict(optimizer.state_dict())
    assert not turned.state_dict()["state"]
