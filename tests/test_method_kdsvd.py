"""The contract of `dotkd.methods.kdsvd`.

1. Value: the docstring's definition over numpy's singular value decomposition, one sample at a time.
2. 0 where student equals teacher, whatever the scale of its maps or the order of their pixels.
3. Gradient: gradcheck in float64 where singular values are apart; projectors receive one where channels differ.
4. Where singular values meet or vanish (one pixel, constant, rank one, orthogonal, zeros), value and gradient are
   finite, and the value is that of numpy where it is defined.
5. A map that is not finite gives NaN and does not raise.
6. Autocast, torch.compile, state_dict.
7. Wrong input is refused.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dotkd.methods.activations import Activations
from dotkd.methods.kdsvd import KDSVD, _right_vectors
from method_cases import activations, anatomy, requiring_grad

Array = NDArray[np.float64]
# More pixels than channels in the first map, fewer in the last.
SHAPES = [(3, 4, 4), (5, 3, 2), (7, 2, 2)]
STUDENT, TEACHER = activations(*SHAPES, batch=3), activations((3, 2, 2), *SHAPES[1:], batch=3, seed=1)


def build(student: Activations = STUDENT, teacher: Activations = TEACHER, *, k: int = 1) -> KDSVD:
    torch.manual_seed(0)
    return KDSVD(anatomy(student), anatomy(teacher), k=k).to(student.features[0].dtype)


def with_maps(*maps: Tensor) -> Activations:
    return Activations(torch.zeros(len(maps[0]), 2), maps)


def decomposed(maps: Tensor, sample: int) -> tuple[Array, Array]:
    """Singular values, and right singular vectors as rows."""
    channels = maps[sample].double().flatten(1).numpy()
    _, values, vectors = np.linalg.svd(channels.T, full_matrices=False)
    return values, vectors


def oracle(student: Activations, teacher: Activations, k: int) -> float:
    total, samples = 0.0, len(student.features[0])
    for sample in range(samples):
        weighted: list[tuple[Array, Array]] = []
        for s_map, t_map in zip(student.features, teacher.features, strict=True):
            own, offered = decomposed(s_map, sample)
            # To float32 rounding, there is no direction where the value is 0.
            offered = [row for value, row in zip(own, offered, strict=True) if value > 2e-3 * own[0]][: k + 3]
            values, wanted = (part[:k] for part in decomposed(t_map, sample))
            s_rows, t_rows = [], []
            for vector, weight in zip(wanted, values / np.linalg.norm(values), strict=True):
                vector = vector if vector.sum() >= 0 else -vector
                nearest = max(offered, key=lambda row: abs(float(row @ vector)))
                s_rows.append(weight * nearest * np.sign(nearest @ vector))
                t_rows.append(weight * vector)
            weighted.append((np.array(s_rows), np.array(t_rows)))
        for (s, t), (below_s, below_t) in itertools.pairwise(weighted):
            for i, j, component in itertools.product(range(s.shape[1]), range(below_s.shape[1]), range(k)):
                of_student = math.exp(-((s[component, i] - below_s[component, j]) ** 2) / 8)
                of_teacher = math.exp(-((t[component, i] - below_t[component, j]) ** 2) / 8)
                total += (of_student - of_teacher) ** 2
    return total / samples


# 1. Value


@pytest.mark.parametrize("k", [1, 2, 3])
def test_value(k: int) -> None:
    student, teacher = (Activations(given.logits, given.preactivations) for given in (STUDENT, TEACHER))
    assert build(k=k)(student, teacher).item() == pytest.approx(oracle(student, teacher, k), rel=1e-9)


def test_float32_is_close() -> None:
    student, teacher = (with_maps(*(maps.float() for maps in given.features)) for given in (STUDENT, TEACHER))
    assert build(student, teacher, k=2)(student, teacher).item() == pytest.approx(oracle(student, teacher, 2), rel=1e-4)


def test_by_hand() -> None:
    """Two maps of one pixel: the vectors are the pixels themselves, divided by their norm."""
    student = with_maps(torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1), torch.tensor([[[[2.0]]]]))
    teacher = with_maps(torch.tensor([5.0, 0.0]).reshape(1, 2, 1, 1), torch.tensor([[[[7.0]]]]))
    # Student (0.6, 0.8) against (1), teacher (1, 0) against (1).
    expected = (math.exp(-0.02) - 1) ** 2 + (math.exp(-0.005) - math.exp(-0.125)) ** 2
    assert build(student, teacher)(student, teacher).item() == pytest.approx(expected, rel=1e-4)


# 2. Zero


@pytest.mark.parametrize("k", [1, 3])
def test_zero_where_the_maps_are_the_teachers(k: int) -> None:
    method = build(TEACHER, TEACHER, k=k)
    assert method(TEACHER, TEACHER).item() == 0
    for change in (lambda maps: 7.0 * maps, lambda maps: -maps, lambda maps: maps.flip(2, 3)):
        same = with_maps(*(change(maps) for maps in TEACHER.features))
        assert method(same, TEACHER).item() == pytest.approx(0, abs=1e-20)


# 3. Gradient


@pytest.mark.parametrize("k", [1, 2])
def test_gradient(k: int) -> None:
    student, teacher = (activations((2, 3, 1), (4, 2, 1), batch=2, seed=seed) for seed in (0, 1))
    method, maps = build(student, teacher, k=k), [maps.clone().requires_grad_() for maps in student.preactivations]
    assert torch.autograd.gradcheck(lambda *given: method(with_maps(*given), teacher), maps)


def test_projectors_where_channels_differ() -> None:
    student = activations((2, 4, 4), (5, 3, 2), (9, 2, 2), batch=3)
    method = build(student)
    assert [isinstance(projector, nn.Conv2d) for projector in method.projectors] == [True, False, True]
    shown = requiring_grad(student)
    method(shown, TEACHER).backward()
    for parameter in (*method.parameters(), *shown.features):
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_a_gap_of_a_hundredth_is_nearly_exact_in_float32() -> None:
    """Of X = diag(1, s), to first order: X X^T gets s dX_12 + dX_21 off its diagonal, and v_1 turns by that / gap."""
    smaller = 0.99
    maps = torch.diag(torch.tensor([1.0, smaller])).reshape(1, 2, 2, 1).requires_grad_()
    vectors, _ = _right_vectors(maps, 1)
    (gradient,) = torch.autograd.grad(vectors[0, 1, 0] / vectors[0, 0, 0].detach(), maps)
    gap = 1 - smaller**2
    expected = torch.tensor([[0.0, smaller / gap], [1 / gap, 0.0]])
    torch.testing.assert_close(gradient.reshape(2, 2), expected, rtol=1e-3, atol=1e-3)


# 4. Where singular values meet or vanish


def degenerate(name: str, channels: int, pixels: int) -> Tensor:
    """(2, channels, pixels, 1) in float32."""
    generator = torch.Generator().manual_seed(channels)
    maps = torch.rand(2, channels, pixels, generator=generator)
    if name == "constant":
        maps = torch.ones_like(maps)
    elif name == "rank-one":
        maps = maps[:, :, :1] * maps[:, :1, :]
    elif name == "orthogonal":
        maps = torch.eye(channels, pixels).expand(2, -1, -1).clone()
    elif name == "zeros":
        maps = torch.zeros_like(maps)
    elif name == "one-channel":
        maps[:, 1:] = 0
    return maps[..., None]


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("sizes", [((3, 9), (5, 4)), ((6, 2), (4, 4)), ((4, 1), (3, 1))])
@pytest.mark.parametrize("teacher", ["constant", "orthogonal", "zeros", "random"])
@pytest.mark.parametrize("student", ["constant", "rank-one", "orthogonal", "zeros", "one-channel"])
def test_degenerate(student: str, teacher: str, sizes: tuple[tuple[int, int], ...], k: int) -> None:
    shown = with_maps(*(degenerate(student, *size).requires_grad_() for size in sizes))
    aimed = with_maps(*(degenerate(teacher, *size) for size in sizes))
    loss = build(shown, aimed, k=k)(shown, aimed)
    loss.backward()
    assert loss.isfinite()
    for maps in shown.features:
        assert maps.grad is not None
        # No term of 1 / gap exceeds 1 / (2 sqrt(eps) lambda_1), which is 1448 / lambda_1 in float32.
        assert maps.grad.abs().max() < 3000


@pytest.mark.parametrize("student", ["constant", "rank-one", "one-channel"])
def test_a_single_direction_equals_numpy(student: str) -> None:
    shown, aimed = (with_maps(degenerate(name, 3, 9), degenerate(name, 5, 4)) for name in (student, "random"))
    assert build(shown, aimed)(shown, aimed).item() == pytest.approx(oracle(shown, aimed, 1), rel=1e-4)


def test_directions_that_are_rounding_are_not_picked() -> None:
    """The teacher's second vector is offered a student of rank one: nothing of it is near, and rounding is not."""
    shown = with_maps(degenerate("rank-one", 5, 16), degenerate("rank-one", 6, 4))
    vectors, values = _right_vectors(shown.features[0], 4)
    assert (vectors[:, :, 1:] == 0).all()
    assert (values[:, 0] > 0).all()
    assert (_right_vectors(shown.features[1], 4)[0][:, :, 1:] == 0).all()


def test_equal_singular_values_have_no_pull() -> None:
    maps = torch.eye(3, dtype=torch.float64).reshape(1, 3, 3, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(_right_vectors(maps, 1)[0].sum(), maps)
    assert (gradient == 0).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_pull_of_values_that_are_equal_but_for_rounding_is_bounded(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right, aim = torch.randn(3, 4, 4, generator=generator)
    values = torch.tensor([1.0, 1.0, 1.0, 0.5])
    maps = (torch.linalg.qr(left).Q * values @ torch.linalg.qr(right).Q).reshape(1, 4, 4, 1).requires_grad_()
    (gradient,) = torch.autograd.grad((_right_vectors(maps, 1)[0][0, :, 0] * aim[0] / aim[0].norm()).sum(), maps)
    # Twice the largest singular value, 1, times the bound on 1 / gap.
    assert gradient.norm() < 1 / math.sqrt(torch.finfo(torch.float32).eps)


# 5. Not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_not_finite_is_passed_on(value: float, index: int) -> None:
    spoilt = [maps.clone() for maps in STUDENT.features]
    spoilt[index][0, 0, 0, 0] = value
    assert build()(with_maps(*spoilt), TEACHER).isnan()
    spoilt[index][0] = value
    assert build()(with_maps(*spoilt), TEACHER).isnan()


# 6. Surroundings


def test_under_autocast_it_is_computed_in_float32() -> None:
    halves = [with_maps(*(maps.bfloat16() for maps in given.features)) for given in (STUDENT, TEACHER)]
    lifted = [with_maps(*(maps.float() for maps in given.features)) for given in halves]
    method = build(*lifted)
    expected = method(*lifted)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(method(*halves), expected)


def test_autocast_with_projectors() -> None:
    student = activations((2, 4, 4), (4, 3, 2), (9, 2, 2), batch=3, dtype=torch.float32)
    teacher = with_maps(*(maps.float() for maps in TEACHER.features))
    method = build(student, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        loss = method(student, teacher)
    torch.testing.assert_close(loss, method(student, teacher), rtol=5e-2, atol=0)


def test_compiled() -> None:
    student, teacher = with_maps(*STUDENT.features[:2]), with_maps(*TEACHER.features[:2])
    compiled = torch.compile(build(student, teacher), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(student, teacher), build(student, teacher)(student, teacher))


def test_state_returns() -> None:
    student = activations((2, 4, 4), (4, 3, 2), (9, 2, 2), batch=3)
    method = build(student)
    torch.manual_seed(7)
    other = KDSVD(anatomy(student), anatomy(TEACHER)).double()
    assert not torch.equal(other(student, TEACHER), method(student, TEACHER))
    other.load_state_dict(method.state_dict())
    assert torch.equal(other(student, TEACHER), method(student, TEACHER))


# 7. Errors


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="expected `k` >= 1, got 0"):
        build(k=0)
    with pytest.raises(ValueError, match=r"expected at least 2 pairs of feature maps, .*, got 1"):
        build(activations((3, 2, 2)))
