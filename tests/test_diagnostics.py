"""The contract of what is measured of the streams (`dotkd.optim.diagnostics`).

- Norms, cosines and shares of the update are those of a literal computation from the gradients that autograd gives, the
  buffers in the state and the way that the parameters moved, for every optimizer and parameters that one stream alone
  reaches; to float32's rounding.
- Gradients are measured as they entered the step: added up, unscaled, clipped. A skipped step gives None. Without
  gradients the buffers alone are known.
- Measuring changes nothing, to the bit, and does not depend on the layout of the parameters or the size of the pieces.
"""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import dotkd
from dotkd.optim import diagnostics
from dotkd.optim.diagnostics import measure
from optim_cases import Batch, Student, fill, identical, linear_losses, make_params, random_grads, snapshot, take, train
from optim_cases import student_losses as losses_of
from parallel_cases import OPTIMIZERS

NEAR = 1e-5
DECAY = {"nesterov": 1e-3, "no task momentum": 1e-3}  # whose shares take the decay as it is after the step


def stepped(name, steps=4):
    """A student and its optimizer after some steps, the last one's gradients still there; and theta before that one."""
    student = Student()
    optimizer = OPTIMIZERS[name](student.parameters(), lr=0.05, weight_decay=DECAY.get(name, 0.05))
    train(student, optimizer, range(steps - 1))
    before = [p.detach().clone() for p in student.parameters()]
    optimizer.backward(**losses_of(student, Batch(steps), optimizer.streams))
    optimizer.step()
    return student, optimizer, before


def joined(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def contributions(optimizer, before):
    """What each stream took from all parameters, by the equations in the docstrings of DOT and DOTAdamW."""
    taken = {name: [] for name in optimizer.streams}
    old = iter(before)
    for group in optimizer.param_groups:
        adamw = "betas" in group
        own = optimizer._beta1s(group) if adamw else optimizer._momenta(group)
        usual = group["betas"][0] if adamw else group["momentum"]
        for p in group["params"]:
            theta, state = next(old), optimizer.state[p]
            grads = {n: optimizer.stream_grad(p, n) for n in optimizer.streams}
            reached = [n for n, g in grads.items() if g is not None]
            decaying = "task" if "task" in reached else (reached or [""])[0]
            for name in optimizer.streams:
                if name not in reached:
                    taken[name].append(torch.zeros_like(p))
                    continue
                m = usual if len(reached) == 1 else own[name]
                if adamw:
                    size = (state["square"] / state["square_weight"]).sqrt() + group["eps"]
                    taken[name].append(group["lr"] * state[f"moment_{name}"] / state[f"moment_{name}_weight"] / size)
                    continue
                grad = -grads[name] if group["maximize"] else grads[name]
                grad = grad + (group["weight_decay"] * theta if name == decaying else 0.0)
                step = state[f"momentum_{name}"] if m else grad
                if group["nesterov"] and m:
                    step = grad + m * step
                share = (1 - m) / (1 - group["momentum"]) if group["normalize"] else 1.0
                taken[name].append(group["lr"] * share * step)
    return {name: joined(parts) for name, parts in taken.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_cosines_and_shares_are_the_literal_ones(name):
    student, optimizer, before = stepped(name)
    found = measure(optimizer).read(4)
    params = list(student.parameters())
    fresh = copy.deepcopy(student)
    with torch.no_grad():
        for p, old in zip(fresh.parameters(), before, strict=True):
            p.copy_(old)
    grads = {}
    for stream, loss in losses_of(fresh, Batch(4), optimizer.streams).items():
        got = torch.autograd.grad(loss, list(fresh.parameters()), retain_graph=True, allow_unused=True)
        grads[stream] = joined([torch.zeros_like(p) if g is None else g for p, g in zip(params, got, strict=True)])
    assert found["grad_norm"] == pytest.approx({s: g.norm().item() for s, g in grads.items()}, rel=NEAR)
    pairs = itertools.combinations(optimizer.streams, 2)
    cosines = {f"{a},{b}": torch.cosine_similarity(grads[a], grads[b], dim=0).item() for a, b in pairs}
    assert found["cosine"] == pytest.approx(cosines, abs=NEAR)
    taken = contributions(optimizer, before)
    moved = joined(before) - joined(params)
    if "AdamW" in name:
        reached = joined([torch.full_like(p, float(bool(optimizer.state[p]))) for p in params])
        moved -= 0.05 * 0.05 * joined(before) * reached
    torch.testing.assert_close(sum(taken.values()), moved, rtol=1e-9, atol=1e-12)
    shares = {s: (part @ moved / (moved @ moved)).item() for s, part in taken.items()}
    assert found["update_share"] == pytest.approx(shares, abs=1e-4 if name in DECAY else NEAR)
    assert sum(found["update_share"].values()) == pytest.approx(1)
    kind = "moment" if "AdamW" in name else "momentum"
    if name == "no task momentum":
        assert found["buffer_norm"].keys() == {"task", "distill"}
        return
    buffers = {s: joined([v[k] for v in optimizer.state.values() if (k := f"{kind}_{s}") in v]) for s in grads}
    assert found["buffer_norm"] == pytest.approx({s: b.norm().item() for s, b in buffers.items()}, rel=NEAR)


def after(sequence, **options):
    (p,) = params = make_params([(50,)])
    optimizer = dotkd.DOT(params, lr=0.01, **options)
    for factors in sequence:
        optimizer.zero_grad()
        fill(optimizer, params, {name: [factor * torch.ones_like(p)] for name, factor in factors.items()})
        optimizer.step()
    return measure(optimizer).read(len(sequence))


def test_streams_that_oppose_each_other():
    found = after([{"task": 1.0, "distill": -0.25}])
    assert found["cosine"] == {"task,distill": pytest.approx(-1)}
    assert found["update_share"] == pytest.approx({"task": 4 / 3, "distill": -1 / 3})
    assert after([{"task": 1.0, "distill": -1.0}])["update_share"] == {}
    assert after([{"task": 1.0, "distill": 0.0}])["cosine"] == {"task,distill": None}


# --- what is measured


def test_one_stream_has_no_cosine():
    params = make_params([(40, 5)])
    optimizer = dotkd.StreamSGD(params, momenta={"total": 0.9}, lr=0.1)
    take(optimizer, params, random_grads(params, ["total"], torch.Generator().manual_seed(0)))
    fill(optimizer, params, random_grads(params, ["total"], torch.Generator().manual_seed(1)))
    optimizer.step()
    found = measure(optimizer).read(2)
    assert found["cosine"] == {}
    assert found["update_share"] == {"total": pytest.approx(1)}
    assert all(found[name]["total"] > 0 for name in ("grad_norm", "buffer_norm"))
    assert found["snr"]["total"] >= 0


def test_gradients_as_they_entered_the_step():
    def norms(scale, micro, clip):
        student = Student(dtype=torch.float32)
        optimizer = dotkd.DOT(student.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scale != 1)
        for _ in range(micro):
            losses = losses_of(student, Batch(0, torch.float32), optimizer.streams)
            scaler.scale(optimizer.join(**losses) / micro).backward()
        if clip:
            optimizer.clip_grad_norm_(scaler.scale(torch.tensor(clip)))
        scaler.step(optimizer)
        return measure(optimizer).read(1)["grad_norm"]

    plain = norms(1, 1, 0.0)
    assert norms(2.0**10, 1, 0.0) == pytest.approx(plain, rel=NEAR)
    assert norms(2.0**10, 2, 0.0) == pytest.approx(plain, rel=1e-4)
    clipped = norms(2.0**10, 1, 0.1)
    assert clipped["task"] < 0.5 * plain["task"]
    assert clipped["task"] / clipped["distill"] == pytest.approx(plain["task"] / plain["distill"], rel=1e-4)


@pytest.mark.parametrize("name", ["DOT", "AdamW"])
def test_a_skipped_step_gives_nothing(name):
    params, generator = make_params(), torch.Generator().manual_seed(0)
    optimizer = OPTIMIZERS[name](params, lr=0.05)
    take(optimizer, params, random_grads(params, optimizer.streams, generator))
    losses = linear_losses(params, random_grads(params, optimizer.streams, generator))
    optimizer.backward(task=losses["task"] * math.inf, distill=losses["distill"])
    optimizer.step()
    assert measure(optimizer).read(1) is None
    optimizer.zero_grad()
    fill(optimizer, params, random_grads(params, optimizer.streams, generator))
    optimizer.step()
    assert measure(optimizer).read(2)["snr"].keys() == {"task", "distill"}


def test_without_gradients_the_buffers_alone_are_known():
    _, optimizer, _ = stepped("normalize")
    whole = measure(optimizer).read(4)
    optimizer.zero_grad()
    student = Student()
    in_place = dotkd.DOT(student.parameters(), lr=0.05, weight_decay=0.05, normalize=True, gradients_in_buffers=True)
    train(student, in_place, (0, 1, 2, 4))
    for found in (measure(optimizer).read(4), measure(in_place).read(4)):
        assert found["grad_norm"] == found["cosine"] == {}
        assert found["snr"] == {"task": None, "distill": None}
        for key in ("buffer_norm", "update_share"):
            assert found[key] == pytest.approx(whole[key], rel=NEAR)


def test_what_cannot_be_measured_is_refused():
    params = make_params()
    optimizer = dotkd.DOT(params)
    with pytest.raises(RuntimeError, match=r"measure\(\) before the first step\(\): there is nothing to measure yet"):
        measure(optimizer)
    with pytest.raises(TypeError, match="expected a StreamSGD or a StreamAdamW, got SGD"):
        measure(torch.optim.SGD(params))
    take(optimizer, params, random_grads(params, optimizer.streams, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="expected `steps` >= 1, got 0"):
        measure(optimizer).read(0)


# --- at no price


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_measuring_changes_no_bit(name):
    ends = []
    for measuring in (False, True):
        student = Student()
        optimizer = OPTIMIZERS[name](student.parameters(), lr=0.05, weight_decay=0.01)
        for step in range(5):
            optimizer.backward(**losses_of(student, Batch(step), optimizer.streams))
            optimizer.step()
            if measuring:
                kept = [g.clone() for p in student.parameters() for g in optimizer._gradients.of.get(p, {}).values()]
                measure(optimizer).read(step + 1)
                now = [g for p in student.parameters() for g in optimizer._gradients.of.get(p, {}).values()]
                assert identical(kept, now)
            optimizer.zero_grad()
        ends.append(snapshot(optimizer))
    assert identical(*ends)


def test_neither_layout_nor_pieces_nor_autocast_matter(monkeypatch):
    def found(layout):
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(6, 4, 3, 3, generator=generator).contiguous(memory_format=layout))
        optimizer = dotkd.DOT([p], lr=0.05, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            fill(optimizer, [p], random_grads([p], optimizer.streams, generator))
            optimizer.step()
        return measure(optimizer).read(3)

    expected = found(torch.contiguous_format)
    with torch.autocast("cpu", torch.bfloat16):
        assert found(torch.channels_last) == {key: pytest.approx(value, rel=NEAR) for key, value in expected.items()}
    monkeypatch.setattr(diagnostics, "_PIECE", 7)
    assert found(torch.channels_last) == {key: pytest.approx(value, rel=NEAR) for key, value in expected.items()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_measuring_does_not_wait_for_the_gpu(name):
    if name == "two groups":
        pytest.skip("its learning rate is a tensor on the host")
    student = Student().cuda()
    optimizer = OPTIMIZERS[name](student.parameters(), lr=0.05, weight_decay=0.01)
    for step in range(3):
        params = list(student.parameters())
        optimizer.zero_grad()
        reached = [p for p in params if p.shape != (2, 2)]
        optimizer.backward(**{n: sum((p * p).sum() for p in reached) * (step + 1) for n in optimizer.streams})
        optimizer.step()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            measured = measure(optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert measured.read(step + 1)["grad_norm"]["task"] > 0
