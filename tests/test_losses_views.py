"""What is particular to the objectives on two views, `mlkd` and `crld`.

1. mlkd: 0 where student equals teacher in both views; its masks select samples and classes, the strong view enters
   by its instance term alone; further temperatures add up.
2. crld: 0 where all four agree; thresholds select samples by the teacher's certainty in one view each; the two
   weights.
3. A second view that does not fit is refused, and so are options outside their range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from dotkd.losses import crld, kd, mlkd
from loss_oracles import sample

F64 = torch.float64


# 1. mlkd


def test_mlkd_is_zero_where_both_views_agree() -> None:
    _, t, _ = sample(6, 5)
    s = t.clone().requires_grad_()
    loss = mlkd(s, t, student_strong=s, teacher_strong=t)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, s)[0].count_nonzero() == 0


def test_mlkd_at_one_temperature_by_hand() -> None:
    """Two samples of two classes; the second is the less sure one and the first class the less likely one."""
    t = torch.tensor([[0.1, 0.9], [0.4, 0.6]], dtype=F64).log()
    s = torch.tensor([[0.3, 0.7], [0.5, 0.5]], dtype=F64).log()
    zero = torch.zeros(2, 2, dtype=F64)
    value = mlkd(s, t, student_strong=zero, teacher_strong=zero, temperature=1.0, further=())
    instance = (0.4 * math.log(0.4 / 0.5) + 0.6 * math.log(0.6 / 0.5)) / 2
    batch = ((0.1 * 0.4 + 0.9 * 0.6 - 0.5) ** 2 + (0.16 + 0.36 - 0.5) ** 2) / 2  # the pairs with the second sample
    first = (0.01 + 0.16 - 0.09 - 0.25) ** 2  # the first class with itself, then with the second
    second = (0.1 * 0.9 + 0.4 * 0.6 - 0.3 * 0.7 - 0.25) ** 2
    assert value.item() == pytest.approx(instance + batch + (first + second) / 2, rel=1e-12)


def test_mlkd_weak_instance_term_keeps_the_less_sure_samples() -> None:
    _, t, _ = sample(5, 6)
    order = t.softmax(-1).amax(-1).argsort()
    sure, unsure = order[3:], order[:3]  # five samples: the middle one is at the median, and counts
    for rows, selected in ((sure, False), (unsure, True)):
        s = t.clone()
        s[rows] += torch.randn(s[rows].shape, generator=torch.Generator().manual_seed(0), dtype=F64)
        q = s.clone().requires_grad_()
        loss = mlkd(q, t, student_strong=t, teacher_strong=t, quantile=0.5)
        (grad,) = torch.autograd.grad(loss, q)
        assert (grad[rows].abs().amax(-1) > 1e-9).all()  # the class level sees every sample
        everything = mlkd(s, t, student_strong=t, teacher_strong=t, quantile=1.0)
        instance = sum(kd(s, t, temperature=tau).item() for tau in (2.0, 3.0, 4.0, 5.0, 6.0))
        assert (everything.item() - loss.item() > 0.9 * instance) != selected


def test_mlkd_strong_view_enters_as_kd_at_every_temperature() -> None:
    s, t, _ = sample(6, 5)
    value = mlkd(t, t, student_strong=s, teacher_strong=t, temperature=4.0)
    expected = sum(kd(s, t, temperature=tau).item() for tau in (2.0, 3.0, 4.0, 5.0, 6.0))
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_mlkd_temperatures_add_up() -> None:
    s, t, _ = sample(6, 5)
    at = partial(mlkd, s, t, student_strong=t, teacher_strong=s)
    parts = sum(at(temperature=tau, further=()).item() for tau in (1.0, 2.0, 3.5))
    assert at(temperature=1.0, further=(2.0, 3.5)).item() == pytest.approx(parts, rel=1e-10)


# 2. crld


def test_crld_is_zero_where_all_four_agree() -> None:
    _, t, _ = sample(6, 5)
    s = t.clone().requires_grad_()
    loss = crld(s, t, student_strong=s, teacher_strong=t, threshold_weak=0.0, threshold_strong=0.0)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, s)[0].abs().max().item() == 0.0


def test_crld_without_thresholds_is_kd_within_and_across() -> None:
    s, t, _ = sample(6, 5)
    s2, t2, _ = sample(6, 5, seed=1)
    value = crld(
        s, t, student_strong=s2, teacher_strong=t2, within=3.0, cross=0.25, threshold_weak=0.0, threshold_strong=0.0
    )
    expected = 3.0 * (kd(s, t) + kd(s2, t2)) + 0.25 * (kd(s2, t) + kd(s, t2))
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)


def test_crld_thresholds_select_samples() -> None:
    """Probabilities 0.95 and 0.8 in the weak view, 0.15 at most and 0.6 in the strong one, ten classes."""
    weak, strong = torch.zeros(2, 10, dtype=F64), torch.zeros(2, 10, dtype=F64)
    for row, p in ((0, 0.95), (1, 0.8)):
        weak[row, 3] = math.log(9 * p / (1 - p))
    for row, p in ((0, 0.15), (1, 0.6)):
        strong[row, 3] = math.log(9 * p / (1 - p))
    s, s2, _ = sample(2, 10)
    value = crld(s, weak, student_strong=s2, teacher_strong=strong)
    within = kd(s[0], weak[0]) + kd(s2[0], strong[0])
    cross = kd(s2[1], weak[1]) + kd(s[1], strong[1])
    assert value.item() == pytest.approx((2.0 * within + 0.5 * cross).item() / 2, rel=1e-12)


# 3. Wrong input


ZEROS = torch.zeros(4, 3)


@pytest.mark.parametrize("loss", [mlkd, crld])
@pytest.mark.parametrize(
    ("second", "error", "message"),
    [
        (
            {"student_strong": torch.zeros(4, 2)},
            ValueError,
            "expected `student_strong` of the weak view's shape (4, 3), got (4, 2)",
        ),
        (
            {"teacher_strong": torch.zeros(5, 3)},
            ValueError,
            "expected `teacher_strong` of the weak view's shape (4, 3), got (5, 3)",
        ),
        (
            {"teacher_strong": torch.zeros(4, 3, dtype=torch.int64)},
            TypeError,
            "expected floating-point `teacher_strong`, got torch.int64",
        ),
    ],
)
def test_refuses_a_view_that_does_not_fit(
    loss: Callable[..., Tensor], second: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        loss(ZEROS, ZEROS, **{"student_strong": ZEROS, "teacher_strong": ZEROS, **second})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(mlkd, further=(2.0, 0.0)), "expected every temperature in `further` > 0 and finite, got 0.0"),
        (partial(mlkd, quantile=1.5), "expected `quantile` in [0, 1], got 1.5"),
        (partial(crld, within=-1.0), "expected `within` >= 0 and finite, got -1.0"),
        (partial(crld, cross=math.nan), "expected `cross` >= 0 and finite, got nan"),
        (partial(crld, threshold_weak=1.1), "expected `threshold_weak` in [0, 1], got 1.1"),
        (partial(crld, threshold_strong=-0.1), "expected `threshold_strong` in [0, 1], got -0.1"),
    ],
)
def test_refuses_wrong_options(call: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call(ZEROS, ZEROS, student_strong=ZEROS, teacher_strong=ZEROS)
