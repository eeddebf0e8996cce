"""The contract of `dotkd.methods.attention`.

1. Value: the attention maps and their mean squared difference, in numpy, summed over pairs, for any power.
2. 0 where the attention is the teacher's: with channels in another order, of another sign, repeated, scaled.
3. Maps of different size are pooled to the smaller one, pairs counted from the deepest.
4. Gradient: finite differences of the numpy form; exactly none at equality.
5. Zeros and one pixel, one sample give finite values and gradients; one pixel has no loss.
6. Autocast, half precision, torch.compile.
7. A power that is not positive is refused.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dotkd.methods.activations import Activations
from dotkd.methods.attention import AT
from method_cases import activations, anatomy, requiring_grad

STUDENT, TEACHER = activations((3, 3, 2), (4, 2, 2)), activations((5, 3, 2), (2, 2, 2), seed=1)


def loss_of(student: Activations, teacher: Activations, **options: float) -> Tensor:
    return AT(anatomy(student), anatomy(teacher), **options)(student, teacher)


def one(maps: Tensor) -> Activations:
    return Activations(torch.zeros(len(maps), 2), (maps,))


def oracle(student: NDArray[np.float64], teacher: NDArray[np.float64], p: float = 2.0) -> float:
    """(N, C, H, W) maps of one size."""
    total = 0.0
    for s_map, t_map in zip(student, teacher, strict=True):
        s, t = ((np.abs(maps) ** p).mean(axis=0).flatten() for maps in (s_map, t_map))
        total += float(((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2).mean())
    return total / len(student)


# 1. Value


@pytest.mark.parametrize("p", [1.0, 2.0, 2.5, 4.0])
def test_value(p: float) -> None:
    pairs = zip(STUDENT.preactivations, TEACHER.preactivations, strict=True)
    expected = sum(oracle(s.numpy(), t.numpy(), p) for s, t in pairs)
    student, teacher = (Activations(given.logits, given.preactivations) for given in (STUDENT, TEACHER))
    assert loss_of(student, teacher, p=p).item() == pytest.approx(expected, rel=1e-5)


def test_by_hand() -> None:
    """Attention (9, 16) / sqrt(337) of channels (3, 0), (0, 4), against (1, 0)."""
    student = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).reshape(1, 2, 1, 2)
    teacher = torch.tensor([[-7.0, 0.0]]).reshape(1, 1, 1, 2)
    expected = ((1 - 9 / math.sqrt(337)) ** 2 + 256 / 337) / 2
    assert loss_of(one(student), one(teacher)).item() == pytest.approx(expected, rel=1e-6)


# 2. Zero


def test_zero_where_the_attention_is_the_teachers() -> None:
    maps = TEACHER.preactivations[0]
    assert loss_of(one(maps), one(maps)).item() == 0
    for same in (maps.flip(1), -maps, maps.repeat(1, 3, 1, 1), 7 * maps):
        assert loss_of(one(same), one(maps)).item() == pytest.approx(0, abs=1e-13)
    assert loss_of(one(maps.flip(2)), one(maps)).item() > 1e-3


# 3. Sizes and pairs


def test_the_larger_map_is_pooled() -> None:
    student, teacher = activations((3, 4, 2)), activations((4, 2, 4), seed=1)
    pooled_s = student.features[0].unflatten(2, (2, 2)).mean(3)
    pooled_t = teacher.features[0].unflatten(3, (2, 2)).mean(4)
    assert loss_of(student, teacher).item() == pytest.approx(oracle(pooled_s.numpy(), pooled_t.numpy()), rel=1e-5)


def test_pairs_are_counted_from_the_deepest() -> None:
    longer = activations((9, 5, 5), seed=2).features + TEACHER.features
    assert torch.equal(loss_of(STUDENT, Activations(TEACHER.logits, longer)), loss_of(STUDENT, TEACHER))


# 4. Gradient


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_gradient(p: float) -> None:
    maps, teacher, step = STUDENT.preactivations[0], TEACHER.features[0].numpy(), 1e-6
    differences = np.zeros(maps.numel())
    for place in range(maps.numel()):
        shift = np.zeros(maps.numel())
        shift[place] = step
        ahead, behind = (oracle(maps.numpy() + sign * shift.reshape(maps.shape), teacher, p) for sign in (1, -1))
        differences[place] = (ahead - behind) / (2 * step)
    shown = maps.clone().requires_grad_()
    loss_of(one(shown), one(TEACHER.features[0]), p=p).backward()
    assert shown.grad is not None
    np.testing.assert_allclose(shown.grad.flatten().numpy(), differences, rtol=1e-4, atol=1e-7)


def test_no_gradient_at_equality() -> None:
    shown = requiring_grad(TEACHER)
    loss_of(shown, TEACHER).backward()
    for maps in shown.features:
        assert maps.grad is not None
        assert (maps.grad == 0).all()


# 5. Degenerate input


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("shape", [(4, 3, 3, 2), (1, 3, 3, 2), (2, 3, 1, 2)])
@pytest.mark.parametrize("of", ["student", "teacher", "both"])
def test_zeros(of: str, shape: tuple[int, int, int, int], p: float) -> None:
    student, teacher = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    if of != "teacher":
        student = torch.zeros_like(student)
    if of != "student":
        teacher = torch.zeros_like(teacher)
    student.requires_grad_()
    loss = loss_of(one(student), one(teacher), p=p)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_pair_of_one_pixel_adds_no_loss() -> None:
    last = activations((3, 1, 1)).features
    longer = [Activations(given.logits, given.features + last) for given in (STUDENT, TEACHER)]
    assert loss_of(*longer).item() == pytest.approx(loss_of(STUDENT, TEACHER).item(), abs=1e-12)


# 6. Surroundings


def test_under_autocast_it_is_computed_in_float32() -> None:
    halves = [one(given.features[0].bfloat16()) for given in (STUDENT, TEACHER)]
    expected = loss_of(*(one(given.features[0].float()) for given in halves))
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(*halves)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


def test_float16_maps_whose_squares_overflow() -> None:
    student, teacher = (one(given.features[0]) for given in (STUDENT, TEACHER))
    large = [one((given.features[0] * 1e4).half()) for given in (student, teacher)]
    torch.testing.assert_close(loss_of(*large), loss_of(student, teacher).float(), rtol=1e-2, atol=0)


def test_compiled() -> None:
    method = AT(anatomy(STUDENT), anatomy(TEACHER))
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER), method(STUDENT, TEACHER))


# 7. Errors


@pytest.mark.parametrize("p", [0.5, -1.0, math.nan, math.inf])
def test_a_power_below_1_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=f"expected `p` >= 1 and finite, got {p}"):
        loss_of(STUDENT, TEACHER, p=p)


def test_maps_of_one_pixel_alone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected feature maps of more than one pixel, .* got 2 of one pixel"):
        loss_of(activations((3, 1, 2), (3, 1, 1)), activations((5, 2, 1), (5, 1, 1)))
