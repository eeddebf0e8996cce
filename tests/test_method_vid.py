"""The contract of `dotkd.methods.vid`.

1. Value: the mean negative log-density of scipy's normal distribution, without its constant, summed over pairs.
2. The variance: starts at `initial_variance`, stays above `min_variance`, and its best value is the mean squared error.
3. Maps of different size are pooled to the smaller one, pairs counted from the deepest.
4. Gradient: gradcheck in float64 for student and variance; every parameter is registered and receives one.
5. Zeros, one pixel, one sample, large maps give finite values and gradients.
6. Autocast, torch.compile, state_dict.
7. Wrong input is refused.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from dotkd.methods.activations import Activations
from dotkd.methods.vid import VID
from method_cases import activations, anatomy, requiring_grad

SHAPES, TEACHER_SHAPES = [(2, 4, 4), (3, 2, 2)], [(4, 4, 4), (5, 2, 2)]
STUDENT, TEACHER = activations(*SHAPES), activations(*TEACHER_SHAPES, seed=1)


def build(student: Activations = STUDENT, teacher: Activations = TEACHER, **options: float) -> VID:
    torch.manual_seed(0)
    return VID(anatomy(student), anatomy(teacher), **options).double()


def convolved(network: nn.Module, maps: np.ndarray) -> np.ndarray:
    first, second, third = (p.detach().numpy()[:, :, 0, 0] for p in network.parameters())
    for weight in (first, second):
        maps = np.maximum(np.einsum("oc,nchw->nohw", weight, maps), 0)
    return np.einsum("oc,nchw->nohw", third, maps)


# 1. Value


def test_value() -> None:
    method, expected = build(), 0.0
    alphas = [torch.linspace(-3, 3, shape[0], dtype=torch.float64) for shape in TEACHER_SHAPES]
    for parameter, values in zip(method.alphas, alphas, strict=True):
        parameter.data.copy_(values)
    for index, (s, t) in enumerate(zip(STUDENT.features, TEACHER.features, strict=True)):
        deviation = np.sqrt(np.log1p(np.exp(alphas[index].numpy())) + 1e-5)[:, None, None]
        density = norm.logpdf(t.numpy(), convolved(method.means[index], s.numpy()), deviation)
        expected += -density.mean() - math.log(2 * math.pi) / 2
    assert method(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-10)


# 2. The variance


@pytest.mark.parametrize("initial", [2e-5, 0.1, 5.0, 1e4])
def test_variance_starts_where_it_is_told(initial: float) -> None:
    method = build(initial_variance=initial).double()
    silent = Activations(STUDENT.logits, tuple(torch.zeros_like(maps) for maps in STUDENT.features))
    nothing = Activations(TEACHER.logits, tuple(torch.zeros_like(maps) for maps in TEACHER.features))
    # Without any error, half the logarithm of the variance is what is left, of each of the two pairs.
    assert method(silent, nothing).item() == pytest.approx(math.log(initial), rel=1e-4)


def test_variance_keeps_its_distance_from_zero() -> None:
    method = build(min_variance=0.25)
    for alpha in method.alphas:
        alpha.data.fill_(-1e3)
    silent = Activations(STUDENT.logits, tuple(torch.zeros_like(maps) for maps in STUDENT.features))
    expected = sum((math.log(0.25) + (t**2).mean().item() / 0.25) / 2 for t in TEACHER.features)
    assert method(silent, TEACHER).item() == pytest.approx(expected, rel=1e-12)


def test_the_best_variance_is_the_mean_squared_error() -> None:
    method = build()
    for index, (s, t) in enumerate(zip(STUDENT.features, TEACHER.features, strict=True)):
        error = (t - method.means[index](s).detach()).square().mean(dim=(0, 2, 3))
        method.alphas[index].data.copy_(torch.log(torch.expm1(error - method.min_variance)))
    method(STUDENT, TEACHER).backward()
    for alpha in method.alphas:
        assert alpha.grad is not None
        assert alpha.grad.abs().max() < 1e-14


# 3. Sizes and pairs


def test_the_larger_map_is_pooled() -> None:
    student, teacher = activations((2, 4, 2)), activations((4, 2, 4), seed=1)
    pooled_s = student._replace(features=(student.features[0].unflatten(2, (2, 2)).mean(3),))
    pooled_t = teacher._replace(features=(teacher.features[0].unflatten(3, (2, 2)).mean(4),))
    torch.testing.assert_close(build(student, teacher)(student, teacher), build(student, teacher)(pooled_s, pooled_t))


def test_pairs_are_counted_from_the_deepest() -> None:
    teacher = activations((9, 8, 8), *TEACHER_SHAPES, seed=1)
    shorter = teacher._replace(features=teacher.features[1:])
    assert torch.equal(build(teacher=teacher)(STUDENT, teacher), build(teacher=shorter)(STUDENT, shorter))


# 4. Gradient


def test_gradient() -> None:
    method = build()
    inputs = [*STUDENT.preactivations, *(alpha.detach() for alpha in method.alphas)]

    def loss(first: Tensor, second: Tensor, *alphas: Tensor) -> Tensor:
        shown = STUDENT._replace(features=(first, second))
        state = {f"alphas.{index}": alpha for index, alpha in enumerate(alphas)}
        return torch.func.functional_call(method, state, (shown, TEACHER))

    assert torch.autograd.gradcheck(loss, [given.clone().requires_grad_() for given in inputs])


def test_every_parameter_is_registered_and_trained() -> None:
    method = build()
    assert {name.split(".")[0] for name, _ in method.named_parameters()} == {"means", "alphas"}
    assert len(list(method.parameters())) == 2 * (3 + 1)
    method(STUDENT, TEACHER).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# 5. Degenerate input


@pytest.mark.parametrize("scale", [0.0, 1e4])
@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 2, 2)])
def test_degenerate(shape: tuple[int, int, int], scale: float) -> None:
    student, teacher = (activations(shape, batch=1, seed=seed, dtype=torch.float32) for seed in (0, 1))
    shown = requiring_grad(student._replace(features=(scale * student.features[0],)))
    aimed = teacher._replace(features=(scale * teacher.features[0],))
    loss = build(student, teacher).float()(shown, aimed)
    loss.backward()
    assert loss.isfinite()
    assert shown.features[0].grad.isfinite().all()  # pyright: ignore[reportOptionalMemberAccess]


def test_float16_maps_whose_squares_overflow() -> None:
    student, teacher = (
        activations(*SHAPES, dtype=torch.float32),
        activations(*TEACHER_SHAPES, seed=1, dtype=torch.float32),
    )
    large = teacher._replace(features=tuple((1e3 * maps).half() for maps in teacher.features))
    assert build(student, teacher).float()(student, large).isfinite()


# 6. Surroundings


def test_autocast_is_close_to_float32() -> None:
    student, teacher = (
        activations(*SHAPES, dtype=torch.float32),
        activations(*TEACHER_SHAPES, seed=1, dtype=torch.float32),
    )
    method = build(student, teacher).float()
    halves = [
        given._replace(features=tuple(maps.bfloat16() for maps in given.features)) for given in (student, teacher)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(*halves)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, method(student, teacher), rtol=2e-2, atol=0)


def test_compiled() -> None:
    method = build()
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER), method(STUDENT, TEACHER))


def test_state_returns() -> None:
    method = build()
    method.alphas[0].data.fill_(0.5)
    torch.manual_seed(7)
    other = VID(anatomy(STUDENT), anatomy(TEACHER)).double()
    assert not torch.equal(other(STUDENT, TEACHER), method(STUDENT, TEACHER))
    other.load_state_dict(method.state_dict())
    assert torch.equal(other(STUDENT, TEACHER), method(STUDENT, TEACHER))


# 7. Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_variance": 0.0}, "expected `min_variance` > 0 and finite, got 0.0"),
        ({"min_variance": math.nan}, "expected `min_variance` > 0 and finite, got nan"),
        ({"initial_variance": 1e-5}, "expected `initial_variance` > min_variance = 1e-05 and finite, got 1e-05"),
        ({"initial_variance": math.inf}, "expected `initial_variance` > min_variance = 1e-05 and finite, got inf"),
    ],
)
def test_wrong_input_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)
