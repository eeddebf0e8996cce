"""The contract of `dotkd.methods.sp`.

1. Value: all pairs of samples, one by one in NumPy; only the last maps count, of any sizes and channels.
2. 0 where the teacher is met up to the scale and rotation of the features.
3. Gradient: gradcheck in float64; only the last map receives one.
4. One sample, identical samples, samples without activity and one pixel give finite values and gradients.
5. Autocast, half precision, torch.compile.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from dotkd.methods.activations import Activations
from dotkd.methods.sp import SP
from method_cases import activations, anatomy, requiring_grad

STUDENT, TEACHER = activations((2, 4, 4), (3, 2, 3)), activations((4, 4, 4), (5, 3, 1), seed=1)


def loss_of(student: Activations, teacher: Activations) -> Tensor:
    return SP(anatomy(student), anatomy(teacher))(student, teacher)


def one(maps: Tensor) -> Activations:
    return Activations(torch.zeros(len(maps), 2), (maps,))


def oracle(student: Tensor, teacher: Tensor) -> float:
    def rows(maps: Tensor) -> list[np.ndarray]:
        q = maps.detach().numpy().reshape(len(maps), -1)
        g = [np.array([a @ b for b in q]) for a in q]
        return [row / np.linalg.norm(row) if row.any() else row for row in g]

    s, t = rows(student), rows(teacher)
    pairs = itertools.product(range(len(s)), repeat=2)
    return sum((s[i][j] - t[i][j]) ** 2 for i, j in pairs) / len(s) ** 2


# 1. Value


def test_value() -> None:
    expected = oracle(STUDENT.features[-1], TEACHER.features[-1])
    assert loss_of(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-12)


def test_by_hand() -> None:
    """Rows (1, 0), (0, 1) of the student; all of 1 / sqrt 2 in the teacher, whose samples are alike."""
    student, teacher = torch.eye(2).reshape(2, 2, 1, 1), torch.ones(2, 1, 1, 1)
    half = 0.5**0.5
    expected = (2 * (1 - half) ** 2 + 2 * half**2) / 4
    assert loss_of(one(student), one(teacher)).item() == pytest.approx(expected)


# 2. Zero


def test_zero_up_to_scale_and_rotation() -> None:
    assert loss_of(TEACHER, TEACHER).item() == 0
    maps = TEACHER.features[-1]
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(20, 15, generator=generator, dtype=torch.float64))
    turned = (7 * maps.flatten(1) @ rotation.T).reshape(4, 5, 2, 2)
    assert loss_of(one(turned), TEACHER).item() == pytest.approx(0, abs=1e-28)
    assert loss_of(STUDENT, TEACHER).item() > 1e-3


# 3. Gradient


def test_gradient() -> None:
    maps = STUDENT.preactivations[-1].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: loss_of(one(given), TEACHER), maps)


def test_only_the_last_map_receives_a_gradient() -> None:
    shown = requiring_grad(STUDENT)
    loss_of(shown, TEACHER).backward()
    assert [maps.grad is not None for maps in shown.features] == [False, True]


# 4. Degenerate input


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (4, 3, 2, 2), (4, 1, 1, 1)])
@pytest.mark.parametrize("fill", [None, 0.0, 1.0], ids=["silent-sample", "zero", "identical"])
def test_degenerate_batches(shape: tuple[int, ...], fill: float | None) -> None:
    maps, teacher = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    if fill is None:
        maps[0] = 0
    else:
        maps.fill_(fill)
    maps.requires_grad_()
    loss = loss_of(one(maps), one(teacher))
    loss.backward()
    assert loss.item() == pytest.approx(oracle(maps.double(), teacher.double()), rel=1e-5, abs=1e-12)
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_one_sample_has_loss_0() -> None:
    assert loss_of(activations((3, 2, 2), batch=1), activations((4, 2, 2), batch=1, seed=1)).item() == 0


# 5. Surroundings


def test_under_autocast_it_is_computed_in_float32() -> None:
    halves = [one(given.features[-1].bfloat16()) for given in (STUDENT, TEACHER)]
    expected = loss_of(*(one(given.features[-1].float()) for given in halves))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss_of(*halves), expected)


def test_float16_maps_whose_products_overflow() -> None:
    halves = [one((given.features[-1] * 1e4).half()) for given in (STUDENT, TEACHER)]
    torch.testing.assert_close(loss_of(*halves), loss_of(STUDENT, TEACHER).float(), rtol=1e-2, atol=0)


def test_compiled() -> None:
    method = SP(anatomy(STUDENT), anatomy(TEACHER))
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER), method(STUDENT, TEACHER))
