"""The contract of `dotkd.methods.nst`.

1. Value: the kernels' means over all pairs of channels, one by one in numpy, for any numbers of channels and whichever
   of its two forms the polynomial kernel is computed in.
2. 0 where the teacher is met, also with its channels in another order, repeated or scaled; never negative.
3. Maps of different size are pooled to the smaller one; the pairs add up.
4. Gradient: gradcheck in float64; none where the teacher is met.
5. Channels without activity, whole maps of zeros, one pixel and one sample give finite values and gradients.
6. Autocast, half precision, torch.compile.
7. An unknown kernel is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from dotkd.methods.activations import Activations
from dotkd.methods.nst import NST
from method_cases import activations, anatomy, requiring_grad

Array = NDArray[np.float64]
KERNELS: dict[str, Callable[[Array, Array], float]] = {
    "polynomial": lambda x, y: float(x @ y) ** 2,
    "linear": lambda x, y: float(x @ y),
}
each = pytest.mark.parametrize("kernel", KERNELS)
# Few pixels and many channels, and the other way round: each form of the polynomial kernel.
FEW_PIXELS = activations((6, 2, 2)), activations((5, 2, 2), seed=1)
MANY_PIXELS = activations((3, 3, 2)), activations((4, 3, 2), seed=1)


def loss_of(student: Activations, teacher: Activations, **options: object) -> Tensor:
    return NST(anatomy(student), anatomy(teacher), **options)(student, teacher)  # pyright: ignore[reportArgumentType]


def oracle(student: Tensor, teacher: Tensor, kernel: str) -> float:
    """(N, C, H, W) maps of one size."""
    k, total = KERNELS[kernel], 0.0
    for s_map, t_map in zip(student.flatten(2).numpy(), teacher.flatten(2).numpy(), strict=True):
        s, t = ([c / np.linalg.norm(c) if c.any() else c for c in channels] for channels in (s_map, t_map))

        def mean(a: list[Array], b: list[Array]) -> float:
            return float(np.mean([k(x, y) for x, y in itertools.product(a, b)]))

        total += mean(t, t) + mean(s, s) - 2 * mean(s, t)
    return total / len(student)


def one(maps: Tensor) -> Activations:
    return Activations(torch.zeros(len(maps), 2, dtype=maps.dtype), (maps,))


# 1. Value


@each
@pytest.mark.parametrize("case", [FEW_PIXELS, MANY_PIXELS], ids=["few-pixels", "many-pixels"])
def test_value(kernel: str, case: tuple[Activations, Activations]) -> None:
    student, teacher = case
    expected = oracle(student.features[0], teacher.features[0], kernel)
    assert loss_of(student, teacher, kernel=kernel).item() == pytest.approx(expected, rel=1e-11)


def test_the_polynomial_kernel_is_the_default() -> None:
    assert torch.equal(loss_of(*MANY_PIXELS), loss_of(*MANY_PIXELS, kernel="polynomial"))


def test_by_hand() -> None:
    """A student channel on the first of two pixels, a teacher channel on the second: 1 + 1 - 0; on both: 1 + 1 - 1."""
    student = one(torch.tensor([3.0, 0.0]).reshape(1, 1, 1, 2))
    assert loss_of(student, one(torch.tensor([0.0, 5.0]).reshape(1, 1, 1, 2))).item() == pytest.approx(2)
    assert loss_of(student, one(torch.tensor([5.0, 5.0]).reshape(1, 1, 1, 2))).item() == pytest.approx(1)


# 2. Zero


@each
@pytest.mark.parametrize("shape", [(6, 2, 2), (3, 3, 2)])
def test_zero_where_the_channels_are_the_teachers(kernel: str, shape: tuple[int, int, int]) -> None:
    maps = activations(shape).features[0] + 0.01
    shuffled = maps[:, torch.randperm(shape[0], generator=torch.Generator().manual_seed(0))]
    scaled = maps * torch.arange(1.0, shape[0] + 1)[:, None, None]
    assert loss_of(one(maps), one(maps), kernel=kernel).item() == 0
    for same in (shuffled, scaled, maps.repeat(1, 2, 1, 1)):
        assert loss_of(one(same), one(maps), kernel=kernel).item() == pytest.approx(0, abs=1e-14)


@each
def test_never_negative(kernel: str) -> None:
    for seed in range(20):
        assert loss_of(activations((4, 3, 2), seed=seed), activations((3, 3, 2), seed=-1), kernel=kernel).item() > 0


# 3. Sizes and pairs


def test_the_larger_map_is_pooled() -> None:
    student, teacher = activations((3, 4, 2)), activations((4, 2, 4), seed=1)
    pooled_s = student.features[0].unflatten(2, (2, 2)).mean(3)
    pooled_t = teacher.features[0].unflatten(3, (2, 2)).mean(4)
    assert loss_of(student, teacher).item() == pytest.approx(oracle(pooled_s, pooled_t, "polynomial"), rel=1e-11)


def test_pairs_add_up_from_the_deepest() -> None:
    student = activations((2, 3, 3), (3, 2, 2))
    teacher = activations((9, 5, 5), (4, 3, 3), (5, 2, 2), seed=1)
    parts = [loss_of(one(s), one(t)) for s, t in zip(student.features, teacher.features[1:], strict=True)]
    torch.testing.assert_close(loss_of(student, teacher), parts[0] + parts[1])


# 4. Gradient


@each
@pytest.mark.parametrize("case", [FEW_PIXELS, MANY_PIXELS], ids=["few-pixels", "many-pixels"])
def test_gradient(kernel: str, case: tuple[Activations, Activations]) -> None:
    maps = case[0].preactivations[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: loss_of(one(given), case[1], kernel=kernel), maps)


@each
def test_no_gradient_where_the_teacher_is_met(kernel: str) -> None:
    shown = requiring_grad(MANY_PIXELS[1])
    loss_of(shown, MANY_PIXELS[1], kernel=kernel).backward()
    assert shown.features[0].grad.abs().max() < 1e-15  # pyright: ignore[reportOptionalMemberAccess]


# 5. Degenerate input


@each
@pytest.mark.parametrize("shape", [(4, 6, 3, 2), (1, 6, 3, 2), (4, 6, 1, 2), (1, 1, 2, 1)])
@pytest.mark.parametrize("silent", [slice(0, 1), slice(None)], ids=["one-channel", "all"])
def test_silent_channels(kernel: str, shape: tuple[int, int, int, int], silent: slice) -> None:
    generator = torch.Generator().manual_seed(0)
    maps, teacher = torch.rand(2, *shape, generator=generator)
    maps[:, silent] = 0
    maps.requires_grad_()
    loss = loss_of(one(maps), one(teacher), kernel=kernel)
    loss.backward()
    assert loss.item() == pytest.approx(oracle(maps.detach().double(), teacher.double(), kernel), rel=1e-5, abs=1e-6)
    assert maps.grad is not None
    assert maps.grad.abs().max() < 10


# 6. Surroundings


@each
@pytest.mark.parametrize("case", [FEW_PIXELS, MANY_PIXELS], ids=["few-pixels", "many-pixels"])
def test_under_autocast_it_is_computed_in_float32(kernel: str, case: tuple[Activations, Activations]) -> None:
    halves = [one(given.features[0].bfloat16()) for given in case]
    expected = loss_of(*(one(given.features[0].float()) for given in halves), kernel=kernel)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss_of(*halves, kernel=kernel), expected)


def test_float16_maps_whose_squares_overflow() -> None:
    student, teacher = (one(given.features[0] * 1e4) for given in MANY_PIXELS)
    halves = [one(given.features[0].half()) for given in (student, teacher)]
    torch.testing.assert_close(loss_of(*halves), loss_of(student, teacher).float(), rtol=1e-2, atol=0)


@each
@pytest.mark.parametrize("case", [FEW_PIXELS, MANY_PIXELS], ids=["few-pixels", "many-pixels"])
def test_compiled(kernel: str, case: tuple[Activations, Activations]) -> None:
    method = NST(anatomy(case[0]), anatomy(case[1]), kernel=kernel)  # pyright: ignore[reportArgumentType]
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*case), method(*case))


# 7. Errors


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="expected `kernel` to be one of polynomial, linear, got 'gaussian'"):
        loss_of(*MANY_PIXELS, kernel="gaussian")


@each
def test_maps_of_one_pixel_alone_are_refused(kernel: str) -> None:
    with pytest.raises(ValueError, match=r"expected feature maps of more than one pixel, .* got 1 of one pixel"):
        loss_of(activations((3, 1, 1)), activations((5, 4, 4)), kernel=kernel)
