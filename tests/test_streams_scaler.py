"""The contract of named streams in mixed precision.

- GradScaler, through `join` or through scaled losses in `backward`, with and without `unscale_` and clipping: one
  shared scale; what does not overflow is the run without a scaler.
- An overflow in either stream skips both, and one `update()` halves the scale once.
- Under bf16 autocast the gradients and buffers of float32 parameters stay float32.
"""

from __future__ import annotations

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
    linear_losses,
    make_params,
    random_grads,
    snapshot,
    student_losses,
    take,
    train,
)

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def scaled_backward(scaler, optimizer, losses, way):
    if way == "join":
        scaler.scale(optimizer.join(**losses)).backward()
    else:
        optimizer.backward(**{name: scaler.scale(loss) for name, loss in losses.items()})


@every_optimizer
@pytest.mark.parametrize("order", ["step", "unscale, step", "unscale, clip, step", "unscale, own clip, step"])
@pytest.mark.parametrize("way", ["join", "backward"])
def test_grad_scaler_changes_nothing_when_nothing_overflows(make, order, way):
    """Powers of two scale float32 exactly: the run with a (growing) scale equals the one without to the bit."""
    scaled, plain = Student(dtype=torch.float32), Student(dtype=torch.float32)
    one, two = make(scaled.parameters(), lr=0.01), make(plain.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for step in range(6):
        batch = Batch(step, torch.float32)
        scaled_backward(scaler, one, student_losses(scaled, batch, one.streams), way)
        two.backward(**student_losses(plain, batch, two.streams))
        if "unscale" in order:
            scaler.unscale_(one)
        if "clip" in order:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        if "own clip" in order:
            one.clip_grad_norm_(0.1)
        elif "clip" in order:
            torch.nn.utils.clip_grad_norm_(scaled.parameters(), 0.1)
        scaler.step(one)
        scaler.update()
        two.step()
        one.zero_grad()
        two.zero_grad()
    assert scaler.get_scale() == 2.0**13
    assert one.skipped_steps == 0
    if "clip" in order:
        assert_close(snapshot(one), snapshot(two), 1e-6)
    else:
        assert identical(snapshot(one), snapshot(two))


@every_optimizer
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("way", ["join", "backward"])
def test_an_overflow_in_either_stream_skips_both_and_halves_the_scale_once(make, stream, unscale, way):
    params, twins = make_params(dtype=torch.float32), make_params(dtype=torch.float32)
    optimizer, plain = make(params, lr=0.1, weight_decay=0.1), make(twins, lr=0.1, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=1000)
    generator = torch.Generator().manual_seed(0)
    scales = []
    for step in range(5):
        grads = random_grads(params, optimizer.streams, generator)
        if step in (0, 2):
            grads[stream][1][3] = 1e36  # finite; times 2**15 it is not, in float32
        else:
            take(plain, twins, grads)
        before = snapshot(optimizer)
        scaled_backward(scaler, optimizer, linear_losses(params, grads), way)
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if step == 2:
            assert identical(snapshot(optimizer), before)
        scales.append(scaler.get_scale())
    assert scales == [2.0**15, 2.0**15, 2.0**14, 2.0**14, 2.0**14]
    assert optimizer.skipped_steps == 2
    assert identical(params, twins)


@pytest.mark.parametrize("unscale", [False, True])
def test_an_overflow_of_the_sum_alone_is_the_scalers_to_judge(unscale):
    """Each stream fits float32, their sum in p.grad does not: the scaler backs off, so no step may be taken."""
    params = make_params(dtype=torch.float32)
    optimizer = dotkd.DOT(params, **HYPER)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**15)
    grads = {name: [torch.full_like(p, 1e34) for p in params] for name in STREAMS}
    scaled_backward(scaler, optimizer, linear_losses(params, grads), "join")
    assert all(optimizer.stream_grad(p, name).isfinite().all() for p in params for name in STREAMS)
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**14
    assert identical(params, make_params(dtype=torch.float32))


def test_accumulation_and_one_parameter_alone_under_a_scaler():
    """Two micro-batches in one scaled step, a task-only and a distill-only parameter, and a vanishing sum."""
    params, twins = (make_params([(3, 2), (4,), (), (2,)], dtype=torch.float32) for _ in range(2))
    optimizer, plain = dotkd.DOT(params, **HYPER), dotkd.DOT(twins, **HYPER)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        for _ in range(2):
            grads = random_grads(params, STREAMS, generator)
            grads["task"][1] = grads["distill"][2] = None
            grads["distill"][3] = -grads["task"][3]
            scaled_backward(scaler, optimizer, linear_losses(params, grads), "join")
            plain.backward(**linear_losses(twins, grads))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        plain.step()
        optimizer.zero_grad()
        plain.zero_grad()
    assert_close(snapshot(optimizer), snapshot(plain), 1e-6)


@pytest.mark.parametrize("join", [False, True])
def test_bf16_autocast_on_the_cpu_keeps_gradients_in_float32(join):
    student, exact = Student(dtype=torch.float32), Student(dtype=torch.float32)
    optimizer, plain = dotkd.DOT(student.parameters(), **HYPER), dotkd.DOT(exact.parameters(), **HYPER)
    train(exact, plain, range(5), dtype=torch.float32)
    for step in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            losses = student_losses(student, Batch(step, torch.float32))
        optimizer.join(**losses).backward() if join else optimizer.backward(**losses)
        assert optimizer.stream_grad(student.head.weight, "distill").dtype == torch.float32
        optimizer.step()
        optimizer.zero_grad()
    assert all(tensor.dtype == torch.float32 for tensor in snapshot(optimizer))
    for p, q in zip(student.parameters(), exact.parameters(), strict=True):
        assert (p - q).norm() < 0.05 * (1 + q.norm())
    assert not identical(list(student.parameters()), list(exact.parameters()))
