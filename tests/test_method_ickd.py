"""The contract of `dotkd.methods.ickd`.

1. Value: all pairs of channels, one by one in NumPy, after the projection; only the last maps count.
2. 0 where the correlations are met: also with other places and another scale, but not with channels exchanged.
3. The projection is a 1x1 convolution and batch normalisation.
4. Gradient: gradcheck in float64; the projection receives one, of the student's maps only the last.
5. One sample of one pixel, and maps of zeros, give finite values and gradients.
6. Autocast, half precision, torch.compile, state_dict.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dotkd.methods.activations import Activations
from dotkd.methods.ickd import ICKD, correlations
from method_cases import activations, anatomy, requiring_grad

STUDENT, TEACHER = activations((2, 4, 4), (3, 2, 2)), activations((4, 4, 4), (5, 3, 2), seed=1)


def build(student: Activations = STUDENT, teacher: Activations = TEACHER) -> ICKD:
    torch.manual_seed(0)
    return ICKD(anatomy(student), anatomy(teacher)).double()


def oracle(student: Tensor, teacher: Tensor) -> float:
    """The loss of maps with equal numbers of channels."""

    def rows(maps: np.ndarray) -> list[np.ndarray]:
        g = [np.array([float((a * b).sum()) for b in maps]) for a in maps]
        return [row / np.linalg.norm(row) if row.any() else row for row in g]

    losses: list[float] = []
    for s_map, t_map in zip(student.detach().numpy(), teacher.numpy(), strict=True):
        gaps = [((s - t) ** 2).sum() for s, t in zip(rows(s_map), rows(t_map), strict=True)]
        losses.append(sum(gaps) / len(t_map))
    return float(np.mean(losses))


# 1. Value


def test_value() -> None:
    method = build()
    expected = oracle(method.project(STUDENT.features[-1]), TEACHER.features[-1])
    assert method(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-12)


def test_correlations_by_hand() -> None:
    """Channels (3, 4) and (4, -3): orthogonal, so that the rows are (1, 0) and (0, 1); and a silent third."""
    maps = torch.tensor([3.0, 4.0, 4.0, -3.0, 0.0, 0.0]).reshape(1, 3, 1, 2)
    assert correlations(maps).tolist() == [[[1, 0, 0], [0, 1, 0], [0, 0, 0]]]


# 2. Zero


def test_zero_where_the_correlations_are_met() -> None:
    method = build()
    method.project = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    maps = TEACHER.features[-1]
    assert method(TEACHER, TEACHER).item() == 0
    other_places = (3 * maps).flip(3).repeat(1, 1, 2, 1)
    assert method(TEACHER._replace(features=(other_places,)), TEACHER).item() == pytest.approx(0, abs=1e-28)
    assert method(TEACHER._replace(features=(maps.flip(1),)), TEACHER).item() > 1e-2


# 3. Projection


def test_the_projection() -> None:
    project = build().project
    weight = project[0].weight.detach().numpy()[:, :, 0, 0]
    mapped = np.einsum("oc,nchw->nohw", weight, STUDENT.features[-1].numpy())
    mean, variance = mapped.mean(axis=(0, 2, 3), keepdims=True), mapped.var(axis=(0, 2, 3), keepdims=True)
    expected = (mapped - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(project(STUDENT.features[-1]).detach(), expected, rtol=1e-9)


# 4. Gradient


def test_gradient() -> None:
    method = build()

    def loss(maps: Tensor) -> Tensor:
        return method(STUDENT._replace(features=(STUDENT.features[0], maps)), TEACHER)

    assert torch.autograd.gradcheck(loss, STUDENT.features[-1].clone().requires_grad_())


def test_what_receives_a_gradient() -> None:
    method, shown = build(), requiring_grad(STUDENT)
    method(shown, TEACHER).backward()
    assert [maps.grad is not None for maps in shown.features] == [False, True]
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# 5. Degenerate input


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 2, 2), (4, 3, 1, 1)])
@pytest.mark.parametrize("scale", [1, 0])
def test_degenerate_batches(shape: tuple[int, ...], scale: int) -> None:
    student = activations((shape[1], shape[2], shape[3]), batch=shape[0])
    teacher = activations((4, 1, 1), batch=shape[0], seed=1)
    shown = requiring_grad(student._replace(features=(student.features[0] * scale,)))
    loss = build(student, teacher)(shown, teacher)
    loss.backward()
    assert loss.isfinite()
    assert shown.features[0].grad.isfinite().all()  # pyright: ignore[reportOptionalMemberAccess]
    assert build(student, teacher)(student, teacher._replace(features=(teacher.features[0] * 0,))).isfinite()


# 6. Surroundings


def cast(given: Activations, dtype: torch.dtype, scale: float = 1.0) -> Activations:
    return given._replace(features=tuple((maps * scale).to(dtype) for maps in given.features))


def test_autocast_is_close_to_float32() -> None:
    expected = build().float()(cast(STUDENT, torch.float32), cast(TEACHER, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        loss = build().float()(cast(STUDENT, torch.bfloat16), cast(TEACHER, torch.bfloat16))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=5e-2, atol=0)


def test_float16_maps_whose_squares_overflow() -> None:
    maps = TEACHER.features[-1]
    torch.testing.assert_close(correlations((1e4 * maps).half()), correlations(maps).float(), rtol=1e-2, atol=1e-3)


def test_compiled() -> None:
    method = build()
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER), method(STUDENT, TEACHER))


def test_state_returns() -> None:
    method, other = build(), build()
    method(STUDENT, TEACHER)
    nn.init.zeros_(other.project[0].weight)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.eval()(STUDENT, TEACHER), method.eval()(STUDENT, TEACHER))
