"""The contract of `dotkd.methods.pkt`.

1. Value: the paper's sum over samples and their neighbours, in numpy, divided by the square of the batch.
2. 0 where the angles between samples are the teacher's, so also for embeddings scaled one by one or rotated; never
   negative.
3. Gradient: gradcheck in float64; exactly none at equality.
4. Embeddings of 0, identical and opposite ones give finite values and gradients; one or two samples give 0.
5. Autocast, half precision, torch.compile.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dotkd.methods.activations import Activations
from dotkd.methods.pkt import PKT
from method_cases import activations, anatomy

STUDENT, TEACHER = activations(embedding=6), activations(embedding=9, seed=1)


def shown(embedding: Tensor) -> Activations:
    return Activations(torch.zeros(len(embedding), 2), embedding=embedding)


def loss_of(student: Tensor, teacher: Tensor) -> Tensor:
    return PKT(anatomy(shown(student)), anatomy(shown(teacher)))(shown(student), shown(teacher))


def oracle(student: Tensor, teacher: Tensor) -> float:
    def affinity(a: np.ndarray, b: np.ndarray) -> float:
        return (1 + a @ b / (np.linalg.norm(a) * np.linalg.norm(b))) / 2

    count, total = len(student), 0.0
    for i in range(count):
        others = [j for j in range(count) if j != i]
        p, q = (
            np.array([affinity(x[i], x[j]) for j in others])
            for x in (teacher.double().numpy(), student.double().numpy())
        )
        p, q = p / p.sum(), q / q.sum()
        total += float((p * np.log(p / q)).sum())
    return total / count**2


# 1. Value


@pytest.mark.parametrize("batch", [3, 4, 7])
def test_value(batch: int) -> None:
    student, teacher = activations(batch=batch, embedding=6), activations(batch=batch, embedding=9, seed=1)
    method = PKT(anatomy(student), anatomy(teacher))
    assert method(student, teacher).item() == pytest.approx(oracle(student.embedding, teacher.embedding), rel=1e-12)


def test_by_hand() -> None:
    """Teacher: three samples at right angles, so 1/2 and 1/2 for each. Student: the third opposite to the first."""
    teacher = torch.eye(3, dtype=torch.float64)
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 4.0]], dtype=torch.float64)
    # Cosines: 0, -0.6 and 0.8, so affinities: 0.5, 0.2 and 0.9.
    rows = [(0.5, 0.2), (0.5, 0.9), (0.2, 0.9)]
    expected = sum(-0.5 * math.log(4 * a * b / (a + b) ** 2) for a, b in rows) / 9
    assert loss_of(student, teacher).item() == pytest.approx(expected, rel=1e-12)


# 2. Zero


def test_zero_where_the_angles_are_the_teachers() -> None:
    teacher = TEACHER.embedding
    assert loss_of(teacher, teacher).item() == 0
    lengths = torch.tensor([0.1, 1.0, 7.0, 1e6], dtype=torch.float64)[:, None]
    rotation = torch.linalg.qr(torch.randn(12, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    for same in (teacher * lengths, teacher @ rotation.mT):
        assert loss_of(same, teacher).item() == pytest.approx(0, abs=1e-30)


def test_never_negative() -> None:
    for seed in range(20):
        close = TEACHER.embedding + 1e-3 * activations(embedding=9, seed=seed).embedding
        assert loss_of(close.float(), TEACHER.embedding.float()).item() >= 0


# 3. Gradient


def test_gradient() -> None:
    embedding = STUDENT.embedding.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: loss_of(given, TEACHER.embedding), embedding)


def test_no_gradient_at_equality() -> None:
    embedding = TEACHER.embedding.float().requires_grad_()
    loss_of(embedding, TEACHER.embedding.float()).backward()
    assert embedding.grad is not None
    assert (embedding.grad == 0).all()


# 4. Degenerate input


def degenerate(name: str) -> Tensor:
    embedding = activations(batch=5, embedding=6).embedding.float()
    if name == "one-zero":
        embedding[0] = 0
    elif name == "all-zero":
        embedding[:] = 0
    elif name == "identical":
        embedding[:] = embedding[0].clone()
    elif name == "opposite":
        embedding[1:] = -embedding[0].clone()
    return embedding


@pytest.mark.parametrize("teacher", ["random", "one-zero", "all-zero", "identical", "opposite"])
@pytest.mark.parametrize("student", ["one-zero", "all-zero", "identical", "opposite"])
def test_degenerate(student: str, teacher: str) -> None:
    embedding = degenerate(student).requires_grad_()
    loss = loss_of(embedding, degenerate(teacher))
    loss.backward()
    assert loss.isfinite()
    assert embedding.grad is not None
    assert embedding.grad.abs().max() < 10


def test_a_zero_is_at_right_angles_to_all() -> None:
    student, teacher = degenerate("one-zero"), degenerate("random")
    right = torch.cat([torch.zeros(5, 1), student], dim=1)
    right[0, 0] = 1
    torch.testing.assert_close(loss_of(student, teacher), loss_of(right, teacher))


@pytest.mark.parametrize("batch", [1, 2])
def test_up_to_two_samples_give_zero(batch: int) -> None:
    embedding = STUDENT.embedding[:batch].clone().requires_grad_()
    loss = loss_of(embedding, TEACHER.embedding[:batch])
    loss.backward()
    assert loss.shape == ()
    assert loss.item() == 0
    assert embedding.grad is not None
    assert (embedding.grad == 0).all()


# 5. Surroundings


def test_under_autocast_it_is_computed_in_float32() -> None:
    student, teacher = STUDENT.embedding.bfloat16(), TEACHER.embedding.bfloat16()
    expected = loss_of(student.float(), teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss_of(student, teacher), expected)


def test_float16_embeddings_whose_squares_overflow() -> None:
    student, teacher = (STUDENT.embedding * 1e4).half(), (TEACHER.embedding * 1e4).half()
    torch.testing.assert_close(loss_of(student, teacher), loss_of(student.float(), teacher.float()))


@pytest.mark.parametrize("batch", [1, 5])
def test_compiled(batch: int) -> None:
    student, teacher = activations(batch=batch), activations(batch=batch, seed=1)
    method = PKT(anatomy(student), anatomy(teacher))
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(student, teacher), method(student, teacher))
