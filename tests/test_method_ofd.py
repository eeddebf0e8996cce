"""The contract of `dotkd.methods.ofd`.

1. Value: margin ReLU, partial distance and the weights of the stages, written out with loops in NumPy.
2. 0 where the student meets the target, and wherever it is below a target that is not positive.
3. A margin is the mean of all negative values of its channel, over all batches of training; 0 where there were none.
   Eval mode, and values that are not finite, leave it as it is.
4. Maps of different size are pooled to the smaller one; pairs count from the deepest.
5. Gradient: gradcheck in float64; the connectors receive one.
6. One sample of one pixel and maps of zeros give finite values and gradients.
7. Autocast, torch.compile, state_dict.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dotkd.methods.activations import Activations
from dotkd.methods.ofd import OFD, Margin, partial_distance
from method_cases import activations, anatomy, requiring_grad

STUDENT, TEACHER = activations((2, 4, 4), (3, 2, 2)), activations((4, 4, 4), (5, 2, 2), seed=1)


def build(student: Activations = STUDENT, teacher: Activations = TEACHER) -> OFD:
    torch.manual_seed(0)
    return OFD(anatomy(student), anatomy(teacher)).double()


def oracle(student: Tensor, teacher: Tensor) -> float:
    """d of connected maps of one size, with the margins of this batch."""
    s, t = student.detach().numpy(), teacher.numpy()
    total = 0.0
    for c in range(t.shape[1]):
        negative = t[:, c][t[:, c] < 0]
        margin = negative.mean() if negative.size else 0.0
        for value, response in zip(s[:, c].flatten(), t[:, c].flatten(), strict=True):
            target = max(response, margin)
            total += 0.0 if value <= target <= 0 else (value - target) ** 2
    return total / len(t)


# 1. Value


def test_value() -> None:
    method = build()
    loss = method(STUDENT, TEACHER)
    shallow, deep = (
        oracle(connector(s), t)
        for connector, s, t in zip(method.connectors, STUDENT.preactivations, TEACHER.preactivations, strict=True)
    )
    assert loss.item() == pytest.approx(shallow / 2 + deep, rel=1e-12)


def test_the_connector() -> None:
    torch.manual_seed(0)
    convolution, norm = build(activations((50, 1, 1)), activations((200, 1, 1))).connectors[0]
    assert convolution.bias is None
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.05)
    maps = activations((50, 1, 1)).preactivations[0]
    mapped = np.einsum("oc,nchw->nohw", convolution.weight.detach().numpy()[:, :, 0, 0], maps.numpy())
    expected = (mapped - mapped.mean(axis=0)) / np.sqrt(mapped.var(axis=0) + 1e-5)
    np.testing.assert_allclose(norm(convolution(maps)).detach(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("student", "target", "expected"),
    [(-2.0, -1.0, 0.0), (-1.0, -1.0, 0.0), (0.5, -1.0, 2.25), (-1.0, 2.0, 9.0), (3.0, 2.0, 1.0), (-1.0, 0.0, 0.0)],
)
def test_partial_distance_of_one_value(student: float, target: float, expected: float) -> None:
    one = torch.ones(1, 1, 1, 1)
    assert partial_distance(student * one, target * one).item() == expected


# 2. Zero


def test_zero_where_the_target_is_met_or_both_are_silent() -> None:
    target = TEACHER.preactivations[0]
    assert partial_distance(target, target).item() == 0
    silent = -target.abs()
    assert partial_distance(silent - 1, silent).item() == 0
    assert partial_distance(silent + 0.1, silent).item() > 0


# 3. Margins


def test_margins_are_means_over_all_batches() -> None:
    margin = Margin(4).double()
    batches = [activations((4, 4, 4), seed=seed, batch=seed + 1).preactivations[0] for seed in range(5)]
    for count in range(1, 6):
        found = margin(batches[count - 1])
        seen = torch.cat(batches[:count]).numpy()
        expected = [seen[:, c][seen[:, c] < 0].mean() for c in range(4)]
        np.testing.assert_allclose(found.flatten(), expected, rtol=1e-12)
    assert found.shape == (4, 1, 1)
    margin.eval()
    assert torch.equal(margin(batches[0] - 5), found)


def test_a_channel_that_was_never_negative_has_the_margin_0() -> None:
    maps = torch.tensor([-1.0, 2.0, -3.0, 4.0]).reshape(2, 2, 1, 1)
    assert Margin(2)(maps).flatten().tolist() == [-2, 0]
    assert Margin(2).eval()(maps).flatten().tolist() == [0, 0]


def test_values_that_are_not_finite_are_left_out() -> None:
    margin = Margin(1)
    values = torch.tensor([-1.0, -math.inf, math.nan, math.inf, -3.0]).reshape(5, 1, 1, 1)
    assert margin(values).item() == -2
    huge = torch.full((5, 1, 1, 1), -torch.finfo(torch.float32).max)  # whose sum is not finite
    assert margin(huge).item() == -2
    assert margin.count.tolist() == [2]


# 4. Sizes and pairs


def test_the_larger_map_is_pooled() -> None:
    student, teacher = activations((3, 4, 2)), activations((4, 2, 4), seed=1)
    method = build(student, teacher)
    connected = F.avg_pool2d(method.connectors[0](student.preactivations[0]), (2, 1))
    pooled = F.avg_pool2d(teacher.preactivations[0], (1, 2))
    assert method(student, teacher).item() == pytest.approx(oracle(connected, pooled), rel=1e-12)


def test_pairs_count_from_the_deepest() -> None:
    deep = Activations(STUDENT.logits, (), STUDENT.preactivations[1:])
    method = build(deep)
    assert len(method.margins) == 1
    expected = oracle(method.connectors[0](deep.preactivations[0]), TEACHER.preactivations[1])
    assert method(deep, TEACHER).item() == pytest.approx(expected, rel=1e-12)


# 5. Gradient


@pytest.mark.parametrize("training", [True, False])
def test_gradient(training: bool) -> None:
    method = build()
    method(STUDENT, TEACHER)
    method.train(training)

    def loss(shallow: Tensor, deep: Tensor) -> Tensor:
        return method(STUDENT._replace(preactivations=(shallow, deep)), TEACHER)

    assert torch.autograd.gradcheck(loss, requiring_grad(STUDENT).preactivations)


def test_the_connectors_receive_a_gradient() -> None:
    method = build()
    method(STUDENT, TEACHER).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# 6. Degenerate input


def test_one_value_a_channel_and_zeros() -> None:
    student, teacher = activations((3, 1, 1), batch=1), activations((4, 1, 1), batch=1, seed=1)
    for scale in (1, 0):
        shown = requiring_grad(student._replace(preactivations=(student.preactivations[0] * scale,)))
        loss = build(student, teacher)(shown, teacher)
        loss.backward()
        assert loss.isfinite()
        assert shown.preactivations[0].grad.isfinite().all()  # pyright: ignore[reportOptionalMemberAccess]


# 7. Surroundings


def test_autocast_is_close_to_float32() -> None:
    def cast(given: Activations, dtype: torch.dtype) -> Activations:
        return given._replace(preactivations=tuple(maps.bfloat16().to(dtype) for maps in given.preactivations))

    expected = build().float()(cast(STUDENT, torch.float32), cast(TEACHER, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        loss = build().float()(cast(STUDENT, torch.bfloat16), cast(TEACHER, torch.bfloat16))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)


def test_compiled() -> None:
    method, eager = build(), build()
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    for seed in range(2):
        student = activations((2, 4, 4), (3, 2, 2), seed=seed)
        torch.testing.assert_close(compiled(student, TEACHER), eager(student, TEACHER))
    assert all(torch.equal(value, eager.state_dict()[name]) for name, value in method.state_dict().items())


def test_state_returns() -> None:
    method, other = build(), build()
    method(STUDENT, TEACHER)
    other.load_state_dict(method.state_dict())
    again = activations((4, 4, 4), (5, 2, 2), seed=9)
    assert torch.equal(other(STUDENT, again), method(STUDENT, again))
