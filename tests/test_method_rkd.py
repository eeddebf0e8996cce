"""The contract of `dotkd.methods.rkd`.

1. Value: distances and angles of all pairs and triples, one by one in NumPy.
2. 0 where the teacher is met, and where it is met up to motion and scale; embeddings may differ in length.
3. The two weights scale their terms.
4. Gradient: gradcheck in float64, also where samples coincide.
5. One sample, two, samples that coincide, batches without any difference and embeddings far from the origin or tiny.
6. Autocast, half precision, torch.compile.
7. Errors.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dotkd.methods.activations import Activations
from dotkd.methods.rkd import RKD, potentials
from method_cases import activations, anatomy, requiring_grad

STUDENT, TEACHER = activations(embedding=3, batch=5), activations(embedding=4, batch=5, seed=1)


def holding(embedding: Tensor) -> Activations:
    return Activations(torch.zeros(len(embedding), 2), embedding=embedding)


def loss_of(student: Activations, teacher: Activations, **options: float) -> Tensor:
    return RKD(anatomy(student), anatomy(teacher), **options)(student, teacher)


def oracle(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """The two terms without their weights."""

    def huber(x: float, y: float) -> float:
        return (x - y) ** 2 / 2 if abs(x - y) <= 1 else abs(x - y) - 0.5

    def unit(difference: np.ndarray) -> np.ndarray:
        return difference / np.linalg.norm(difference) if difference.any() else difference

    a, b = student.detach().numpy(), teacher.numpy()
    pairs, samples = list(itertools.permutations(range(len(a)), 2)), range(len(a))
    means = [float(np.mean([np.linalg.norm(e[i] - e[j]) for i, j in pairs])) for e in (a, b)]
    distance = [
        huber(*(np.linalg.norm(e[i] - e[j]) / mu for e, mu in zip((a, b), means, strict=True))) for i, j in pairs
    ]
    angle = [
        huber(*(float(unit(e[i] - e[j]) @ unit(e[k] - e[j])) for e in (a, b)))
        for i, j, k in itertools.product(samples, repeat=3)
    ]
    return sum(distance) / len(a) ** 2, sum(angle) / len(a) ** 3


# 1. Value


def test_value() -> None:
    distance, angle = oracle(STUDENT.embedding, TEACHER.embedding)
    assert loss_of(STUDENT, TEACHER).item() == pytest.approx(25 * distance + 50 * angle, rel=1e-12)


def test_by_hand() -> None:
    """On a line at 0, 1, 3: mean distance 2. The cosine at a point is 1 for neighbours on one side, else -1."""
    distances, angles = potentials(torch.tensor([[0.0], [1.0], [3.0]]))
    assert distances.tolist() == [[0, 0.5, 1.5], [0.5, 0, 1], [1.5, 1, 0]]
    assert angles[0].tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]
    assert angles[1].tolist() == [[1, 0, -1], [0, 0, 0], [-1, 0, 1]]


def test_differences_beyond_1_are_linear() -> None:
    """Distances of 0.03 and 1.49 of their mean in the student, the other way round in the teacher."""
    student = torch.tensor([[0.0], [0.01], [1.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0], [1.0], [0.01]], dtype=torch.float64)
    distance, angle = oracle(student, teacher)
    assert loss_of(holding(student), holding(teacher)).item() == pytest.approx(25 * distance + 50 * angle, rel=1e-12)


# 2. Zero


def test_zero_up_to_motion_and_scale() -> None:
    assert loss_of(TEACHER, TEACHER).item() == 0
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(7, 4, generator=generator, dtype=torch.float64))
    moved = holding(3 * TEACHER.embedding @ rotation.T + 10)  # from 4 into 7 dimensions
    assert loss_of(moved, TEACHER).item() == pytest.approx(0, abs=1e-24)
    assert loss_of(STUDENT, TEACHER).item() > 1e-2


# 3. Weights


def test_weights() -> None:
    distance, angle = oracle(STUDENT.embedding, TEACHER.embedding)
    assert loss_of(STUDENT, TEACHER, angle_weight=0).item() == pytest.approx(25 * distance, rel=1e-12)
    loss = loss_of(STUDENT, TEACHER, distance_weight=0, angle_weight=3)
    assert loss.item() == pytest.approx(3 * angle, rel=1e-12)


# 4. Gradient


def test_gradient() -> None:
    embedding = STUDENT.embedding.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: loss_of(holding(e), TEACHER), embedding)


# 5. Degenerate input


@pytest.mark.parametrize(
    "embedding",
    [
        torch.ones(1, 3),
        torch.tensor([[0.0, 1.0], [2.0, 3.0]]),
        torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 3.0], [5.0, 3.0]]),
        torch.zeros(4, 3),
    ],
    ids=["one", "two", "coinciding", "all-zero"],
)
def test_degenerate_batches(embedding: Tensor) -> None:
    teacher = activations(embedding=3, batch=len(embedding), dtype=torch.float32)
    shown = requiring_grad(holding(embedding))
    loss = loss_of(shown, teacher)
    loss.backward()
    assert loss.isfinite()
    assert shown.embedding.grad.isfinite().all()  # pyright: ignore[reportOptionalMemberAccess]
    assert loss_of(teacher, holding(embedding)).isfinite()
    if len(embedding) == 1:
        assert loss.item() == 0


def test_coinciding_samples_have_no_direction() -> None:
    embedding = torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
    teacher = holding(TEACHER.embedding[:3])
    distance, angle = oracle(embedding, teacher.embedding)
    assert loss_of(holding(embedding), teacher).item() == pytest.approx(25 * distance + 50 * angle, rel=1e-12)


@pytest.mark.parametrize(("scale", "shift"), [(1e-10, 0.0), (1e10, 0.0), (1.0, 1000.0)])
def test_scale_and_origin_hardly_matter_in_float32(scale: float, shift: float) -> None:
    moved = holding((STUDENT.embedding * scale + shift).float())
    torch.testing.assert_close(loss_of(moved, TEACHER).item(), loss_of(STUDENT, TEACHER).item(), rtol=1e-3, atol=0)


# 6. Surroundings


def test_under_autocast_it_is_computed_in_float32() -> None:
    halves = [holding(given.embedding.bfloat16()) for given in (STUDENT, TEACHER)]
    expected = loss_of(*(holding(given.embedding.float()) for given in halves))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(*halves), expected)


def test_float16_embeddings_whose_squares_overflow() -> None:
    halves = [holding((given.embedding * 1e4).half()) for given in (STUDENT, TEACHER)]
    torch.testing.assert_close(loss_of(*halves), loss_of(STUDENT, TEACHER).float(), rtol=1e-2, atol=0)


def test_compiled() -> None:
    method = RKD(anatomy(STUDENT), anatomy(TEACHER))
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER), method(STUDENT, TEACHER))


# 7. Errors


@pytest.mark.parametrize("name", ["distance_weight", "angle_weight"])
@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan])
def test_weights_out_of_range(name: str, weight: float) -> None:
    with pytest.raises(ValueError, match=f"expected `{name}` >= 0 and finite, got {weight}"):
        loss_of(STUDENT, TEACHER, **{name: weight})
