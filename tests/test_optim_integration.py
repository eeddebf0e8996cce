"""The contract of the optimizers where other machinery owns part of the loop.

- A student under torch.compile trains as the plain one does, through `backward` and through `join`, except that
  every parameter inside the compiled graph counts as reached by both losses. A graph that cannot serve two backward
  passes is named in the error.
- With Accelerate, `accelerator.backward(optimizer.join(...))` gives the weights of the plain loop, with clipping and
  gradient accumulation too.
"""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dotkd
from optim_cases import Batch, Student, assert_close, identical, student_losses

HYPER = {"lr": 0.05, "momentum": 0.9, "delta": 0.075, "weight_decay": 0.01}
BACKENDS = [
    ("aot_eager", "backward"),
    ("aot_eager", "join"),
    pytest.param("inductor", "backward", marks=pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler")),
]
# Compiling imports much of torch and of Python's own old corners; their deprecations are not ours.
quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def step(optimizer, losses, way):
    optimizer.join(**losses).backward() if way == "join" else optimizer.backward(**losses)
    optimizer.step()
    optimizer.zero_grad()


def logits_losses(model, number):
    batch = Batch(number, torch.float32)
    logits = model(batch.inputs)
    kl = F.kl_div(logits.log_softmax(1), batch.teacher.softmax(1), reduction="batchmean")
    return {"task": F.cross_entropy(logits, batch.targets), "distill": kl}


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


@quiet
@pytest.mark.parametrize(("backend", "way"), BACKENDS)
def test_a_compiled_student_trains_like_a_plain_one(backend, way):
    torch._dynamo.reset()
    student, plain = small_model(), small_model()
    optimizer, other = dotkd.DOT(student.parameters(), **HYPER), dotkd.DOT(plain.parameters(), **HYPER)
    compiled = torch.compile(student, backend=backend)
    for number in range(4):
        step(optimizer, logits_losses(compiled, number), way)
        step(other, logits_losses(plain, number), "backward")
    assert_close(list(student.parameters()), list(plain.parameters()), 1e-5)


@quiet
def test_a_compiled_graph_hands_out_zeros_where_an_eager_one_hands_out_nothing():
    """The documented exception: inside a compiled model every parameter counts as reached by both losses."""
    torch._dynamo.reset()
    student, plain = Student(dtype=torch.float32), Student(dtype=torch.float32)
    optimizer, other = dotkd.DOT(student.parameters(), **HYPER), dotkd.DOT(plain.parameters(), **HYPER)
    compiled = torch.compile(student, backend="aot_eager")
    for number in range(4):
        step(optimizer, student_losses(compiled, Batch(number, torch.float32)), "backward")
    inside = [name for name, _ in student.named_parameters() if optimizer.state[student.get_parameter(name)]]
    for number in range(4):
        losses = student_losses(plain, Batch(number, torch.float32))
        nothing = sum(0.0 * plain.get_parameter(name).sum() for name in inside)
        step(other, {name: loss + nothing for name, loss in losses.items()}, "backward")
    assert_close(list(student.parameters()), list(plain.parameters()), 1e-5)


@quiet
def test_a_student_compiled_and_run_before_the_optimizer_existed_works_or_is_named(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch._functorch.config, "donated_buffer", True)  # torch's default
    student, plain = small_model(), small_model()
    compiled = torch.compile(student, backend="aot_eager")
    logits_losses(compiled, 0)
    plain(Batch(0, torch.float32).inputs)
    optimizer = dotkd.DOT(student.parameters(), **HYPER)
    try:
        step(optimizer, logits_losses(compiled, 1), "backward")
    except RuntimeError as error:
        text = str(error)
        assert "compile" in text, text
        assert identical(list(student.parameters()), list(plain.parameters()))
    else:
        step(dotkd.DOT(plain.parameters(), **HYPER), logits_losses(plain, 1), "backward")
        assert_close(list(student.parameters()), list(plain.parameters()), 1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_accelerate_with_join_gives_equal_weights(accumulation):
    accelerate = pytest.importorskip("accelerate")
    student, plain = Student(), Student()
    raw, other = dotkd.DOT(student.parameters(), **HYPER), dotkd.DOT(plain.parameters(), **HYPER)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    model, optimizer = accelerator.prepare(student, raw)
    for number in range(6):
        with accelerator.accumulate(model):
            accelerator.backward(raw.join(**student_losses(model, Batch(number))))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        losses = student_losses(plain, Batch(number))
        other.backward(**{name: loss / accumulation for name, loss in losses.items()})
        if (number + 1) % accumulation == 0:
            other.clip_grad_norm_(0.5)
            other.step()
            other.zero_grad()
    assert_close(list(student.parameters()), list(plain.parameters()), 1e-12)
    assert not identical(list(student.parameters()), list(Student().parameters()))
