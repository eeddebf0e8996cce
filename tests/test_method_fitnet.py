"""The contract of `dotkd.methods.fitnet`.

1. Value: the mean squared difference of the teacher's map and ReLU(BatchNorm(conv(student's map))), against numpy.
2. 0 where the regression hits the hint.
3. The regression brings any size to the teacher's: by a convolution for ratios of 1, 2 and 1/2 a side, else after
   pooling both to the smaller height and width.
4. The hint is the middle pair by default, the shallower of two; only that pair receives a gradient.
5. Gradient: gradcheck in float64; the regressor receives one.
6. One value a channel is normalised by the running estimates; maps of zeros give finite values and gradients.
7. Autocast, torch.compile, state_dict.
8. A hint that does not exist is refused.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dotkd.methods.activations import Activations
from dotkd.methods.fitnet import FitNet
from method_cases import activations, anatomy, requiring_grad

SHAPES = [(2, 4, 4), (3, 4, 4), (5, 2, 2)]
TEACHER_SHAPES = [(4, 4, 4), (6, 4, 4), (7, 2, 2)]
STUDENT, TEACHER = activations(*SHAPES), activations(*TEACHER_SHAPES, seed=1)


def build(student: Activations = STUDENT, teacher: Activations = TEACHER, **options: object) -> FitNet:
    torch.manual_seed(0)
    return FitNet(anatomy(student), anatomy(teacher), **options).double()  # pyright: ignore[reportArgumentType]


# 1, 2. Value


def test_value() -> None:
    method = build()
    weight = method.regressor.conv.weight.detach().numpy()[:, :, 0, 0]
    mapped = np.einsum("oc,nchw->nohw", weight, STUDENT.features[1].numpy())
    mean, variance = mapped.mean(axis=(0, 2, 3), keepdims=True), mapped.var(axis=(0, 2, 3), keepdims=True)
    regressed = np.maximum((mapped - mean) / np.sqrt(variance + 1e-5), 0)
    expected = ((regressed - TEACHER.features[1].numpy()) ** 2).mean()
    assert method(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-12)


def test_without_rectification_negative_values_can_be_reached() -> None:
    rectified, free = build(), build(rectified=False)
    shown = requiring_grad(STUDENT)
    assert (rectified.regressor(shown.features[1]) >= 0).all()
    assert (free.regressor(shown.features[1]) < 0).any()
    torch.testing.assert_close(free.regressor(shown.features[1]).relu(), rectified.regressor(shown.features[1]))


def test_zero_where_the_regression_hits_the_hint() -> None:
    method = build()
    hit = TEACHER._replace(features=(TEACHER.features[0], method.regressor(STUDENT.features[1]), TEACHER.features[2]))
    assert method(STUDENT, hit).item() == 0


# 3. Sizes


@pytest.mark.parametrize(
    ("size", "wanted", "kernel", "transposed"),
    [
        ((4, 4), (4, 4), (1, 1), False),
        ((4, 4), (2, 2), (3, 3), False),
        ((2, 2), (4, 4), (4, 4), True),
        ((1, 1), (2, 2), (4, 4), True),
        ((2, 2), (1, 1), (3, 3), False),
        ((1, 6), (1, 3), (1, 3), False),
        ((1, 3), (1, 6), (1, 4), True),
        ((7, 7), (4, 4), (1, 1), False),
        ((3, 5), (7, 7), (1, 1), False),
        ((2, 4), (4, 2), (1, 1), False),
    ],
)
def test_sizes(size: tuple[int, int], wanted: tuple[int, int], kernel: tuple[int, int], transposed: bool) -> None:
    student, teacher = activations((3, *size)), activations((4, *wanted), seed=1)
    method = build(student, teacher)
    conv = method.regressor.conv
    assert conv.kernel_size == kernel
    assert isinstance(conv, nn.ConvTranspose2d) == transposed
    pooled = kernel == (1, 1) and size != wanted
    smaller = (min(size[0], wanted[0]), min(size[1], wanted[1]))
    source, hint = student.features[0], teacher.features[0]
    if pooled:
        source, hint = (nn.functional.adaptive_avg_pool2d(maps, smaller) for maps in (source, hint))
    regressed = method.regressor(source)
    assert regressed.shape[2:] == (smaller if pooled else wanted)
    assert method(student, teacher).item() == pytest.approx(((regressed - hint) ** 2).mean().item(), rel=1e-12)


def test_a_size_other_than_the_anatomy_that_rounds_differently_is_pooled() -> None:
    method = build(activations((3, 8, 8)), activations((4, 4, 4)))
    assert method(activations((3, 9, 9)), activations((4, 4, 4))).isfinite()


# 4. Which pair


@pytest.mark.parametrize(("pairs", "middle"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_the_middle_pair_by_default(pairs: int, middle: int) -> None:
    shown = activations(*[(2, 2, 2)] * pairs)
    assert build(shown, shown).hint == middle


@pytest.mark.parametrize("hint", [0, 1, 2])
def test_only_the_hint_receives_a_gradient(hint: int) -> None:
    shown = requiring_grad(STUDENT)
    build(hint=hint)(shown, TEACHER).backward()
    assert [maps.grad is not None for maps in shown.features] == [index == hint for index in range(3)]


def test_pairs_are_counted_from_the_deepest() -> None:
    student = activations((5, 2, 2))
    assert build(student, TEACHER).regressor.conv.weight.shape[:2] == (7, 5)


# 5. Gradient


def test_gradient() -> None:
    method = build()

    def loss(maps: Tensor) -> Tensor:
        return method(STUDENT._replace(features=(STUDENT.features[0], maps, STUDENT.features[2])), TEACHER)

    assert torch.autograd.gradcheck(loss, STUDENT.features[1].clone().requires_grad_())
    method(STUDENT, TEACHER).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# 6. Degenerate input


def test_one_value_a_channel_is_normalised_by_the_running_estimates() -> None:
    student, teacher = activations((3, 1, 1), batch=1), activations((4, 1, 1), batch=1, seed=1)
    method, shown = build(student, teacher), requiring_grad(student)
    method.regressor.norm.running_mean.fill_(0.5)
    loss = method(shown, teacher)
    loss.backward()
    mapped = method.regressor.conv(student.features[0])
    expected = (((mapped - 0.5) / (1 + 1e-5) ** 0.5).relu() - teacher.features[0]).square().mean()
    torch.testing.assert_close(loss, expected)
    assert shown.features[0].grad.isfinite().all()  # pyright: ignore[reportOptionalMemberAccess]
    assert (method.regressor.norm.running_mean == 0.5).all()


def test_zeros() -> None:
    nothing = requiring_grad(STUDENT._replace(features=tuple(torch.zeros_like(maps) for maps in STUDENT.features)))
    loss = build()(nothing, TEACHER)
    loss.backward()
    assert loss.isfinite()
    assert nothing.features[1].grad.isfinite().all()  # pyright: ignore[reportOptionalMemberAccess]


# 7. Surroundings


def test_autocast_is_close_to_float32() -> None:
    student = activations(*SHAPES, dtype=torch.float32)
    teacher = activations(*TEACHER_SHAPES, seed=1, dtype=torch.float32)
    method = build(student, teacher).float()
    expected = method(student, teacher)
    halves = [
        given._replace(features=tuple(maps.bfloat16() for maps in given.features)) for given in (student, teacher)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(*halves)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)


def test_compiled() -> None:
    method = build()
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER), method(STUDENT, TEACHER))


def test_state_returns() -> None:
    method = build()
    method(STUDENT, TEACHER)
    other = build(activations(*SHAPES, seed=7))
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.eval()(STUDENT, TEACHER), method.eval()(STUDENT, TEACHER))


# 8. Errors


@pytest.mark.parametrize("hint", [-1, 3])
def test_a_hint_that_does_not_exist_is_refused(hint: int) -> None:
    with pytest.raises(ValueError, match=rf"expected `hint` in \[0, 3\), the number of pairs .*, got {hint}"):
        build(hint=hint)


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected `hint` in \[0, 0\)"):
        build(activations())
