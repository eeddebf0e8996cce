"""What `dist`, `ls_kd`, `nkd`, `mlkd`, `crld`, `deepkd` and `adakd` of `dotkd.losses` have in common.

1. Value: the published formula, written out in `loss_oracles`, for any shape (..., C); the defaults.
2. Zero and a zero gradient where student equals teacher (all but nkd, a cross-entropy, and crld and mlkd across two
   different views); unchanged when a row's logits are shifted.
3. Gradient: gradcheck in float64 (for adakd with a fixed temperature: its temperatures are constants).
4. Half precision is computed in float32, float64 stays; logits of size 1e4 and extreme temperatures stay finite.
5. A class masked on both sides leaves loss and gradient finite; one masked by the teacher alone too; NaN comes out.
6. One sample; two classes; nothing but a target on the CPU is read; wrong input is refused in words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dotkd import losses
from dotkd.losses import adakd, crld, deepkd, dist, ls_kd, mlkd, nkd
from loss_oracles import (
    adakd_oracle,
    crld_oracle,
    deepkd_oracle,
    dist_oracle,
    ls_kd_oracle,
    mlkd_oracle,
    nkd_oracle,
    sample,
    views,
)


class Case(NamedTuple):
    loss: Callable[..., Tensor]
    """(student, teacher, target, temperature=...)"""
    oracle: Callable[..., float]
    temperature: float
    """The default."""
    zero: bool = True
    """Whether the loss is 0 where the student equals the teacher."""
    views: Callable[..., Tensor] | None = None
    """The objective itself, where it takes two views."""


def without_target(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda s, t, y, **options: loss(s, t, **options)


def added_up(s: Tensor, t: Tensor, y: Tensor, **options: Any) -> Tensor:
    parts = deepkd(s, t, y, progress=0.5, plateau=0.6, **options)
    return parts["target"] + parts["nontarget"]


def added_up_oracle(s: Any, t: Any, y: Any, temperature: float) -> float:
    others = s.shape[1] - 1
    return sum(deepkd_oracle(s, t, y, temperature, k=min(others, max(2, round(0.6 * others)))).values())


CASES = {
    "dist": Case(without_target(dist), dist_oracle, 4.0),
    "dist-inter": Case(without_target(partial(dist, gamma=0.0)), partial(dist_oracle, gamma=0.0), 4.0),
    "dist-intra": Case(without_target(partial(dist, beta=0.0)), partial(dist_oracle, beta=0.0), 4.0),
    "ls_kd": Case(without_target(ls_kd), ls_kd_oracle, 2.0),
    "nkd": Case(nkd, nkd_oracle, 1.0, False),
    "nkd-3.5": Case(partial(nkd, gamma=3.5), partial(nkd_oracle, gamma=3.5), 1.0, False),
    "mlkd": Case(views(mlkd), mlkd_oracle, 4.0, False, mlkd),
    "crld": Case(views(crld), crld_oracle, 4.0, False, crld),
    "deepkd": Case(added_up, added_up_oracle, 4.0),
    "adakd": Case(without_target(adakd), adakd_oracle, 1.0),
    "adakd-half": Case(without_target(partial(adakd, ratio=0.5)), partial(adakd_oracle, ratio=0.5), 1.0),
    "adakd-forward": Case(without_target(partial(adakd, beta=0.0)), partial(adakd_oracle, beta=0.0), 1.0),
}
DISTS = [CASES[name] for name in ("dist", "dist-inter", "dist-intra")]
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def gradient(case: Case, s: Tensor, t: Tensor, y: Tensor, **options: Any) -> Tensor:
    s = s.clone().requires_grad_()
    (grad,) = torch.autograd.grad(case.loss(s, t, y, **options), s)
    return grad


def expected(case: Case, s: Tensor, t: Tensor, y: Tensor, temperature: float) -> float:
    rows = (x.double().reshape(-1, x.shape[-1]).numpy() for x in (s, t))
    return case.oracle(*rows, y.flatten().numpy(), temperature)


# 1. Value


@each
@pytest.mark.parametrize("shape", [(1, 7), (2, 3), (3, 2, 5), (9, 12), (4, 2)])
@pytest.mark.parametrize("temperature", [0.8, 4.0])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_equals_the_published_formula(case: Case, shape: tuple[int, ...], temperature: float, scale: float) -> None:
    for seed in range(3):
        s, t, y = sample(*shape, seed=seed, scale=scale)
        value = case.loss(s, t, y, temperature=temperature)
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(expected(case, s, t, y, temperature), rel=1e-8, abs=1e-11)


@each
def test_default_temperature(case: Case) -> None:
    s, t, y = sample(6, 5)
    assert case.loss(s, t, y).item() == pytest.approx(expected(case, s, t, y, case.temperature), rel=1e-10)


def test_losses_by_name() -> None:
    for name in ("dist", "ls_kd", "nkd", "mlkd", "crld", "deepkd", "adakd"):
        assert losses.LOSSES[name] is getattr(losses, name)
        assert name in losses.__all__


# 2. Identity and shifts


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.zero])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_zero_at_identity(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    s, _, y = sample(8, 10, dtype=dtype)
    assert case.loss(s, s.clone(), y).item() == 0.0
    assert gradient(case, s, s.clone(), y).abs().max().item() <= 1e-6


@each
def test_shift_of_rows_changes_nothing(case: Case) -> None:
    s, t, y = (x.mul(64).round() / 64 if x.is_floating_point() else x for x in sample(8, 6))
    shifts = torch.arange(8.0, dtype=torch.float64).unsqueeze(-1) * 16
    value = case.loss(s, t, y).item()
    assert case.loss(s + shifts, t, y).item() == pytest.approx(value, rel=1e-9)
    assert case.loss(s, t + shifts, y).item() == pytest.approx(value, rel=1e-9)


# 3. Gradient


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("adakd")])
def test_gradcheck_to_both_arguments(name: str) -> None:
    case = CASES[name]
    s, t, y = sample(5, 4)
    loss = partial(case.loss, temperature=2.0)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, y), (s.requires_grad_(), t.requires_grad_()))


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_gradcheck_of_adakd_at_one_temperature(ratio: float) -> None:
    s, t, _ = sample(2, 3, 4)
    loss = partial(adakd, temperature=2.0, strength=0.0, ratio=ratio)
    assert torch.autograd.gradcheck(loss, (s.requires_grad_(), t.requires_grad_()))


# 4. Numerics


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    s, t, y = sample(16, 10, dtype=dtype)
    value = case.loss(s, t, y)
    assert value.dtype == torch.float32
    wide = case.loss(s.double(), t.double(), y).item()  # the tests' second view is made in half precision
    assert value.item() == pytest.approx(wide, rel=2e-2 if case.views else 1e-5)
    assert gradient(case, s, t, y).dtype == dtype


@each
def test_float32_is_right_to_five_digits(case: Case) -> None:
    s, t, y = sample(16, 10, dtype=torch.float32)
    assert case.loss(s, t, y).item() == pytest.approx(case.loss(s.double(), t.double(), y).item(), rel=1e-5)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e4, 1e9])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_stays_finite(case: Case, dtype: torch.dtype, temperature: float, scale: float) -> None:
    s, t, y = sample(8, 6, scale=scale, dtype=dtype)
    assert case.loss(s, t, y, temperature=temperature).isfinite()
    if case in DISTS and dtype is torch.float16 and temperature > 1.0:
        return  # T^2 times a correlation's gradient exceeds what float16 can hold
    assert gradient(case, s, t, y, temperature=temperature).isfinite().all()


@each
def test_equal_logits_stay_finite(case: Case) -> None:
    """A student at its start may give every class one value."""
    _, t, y = sample(8, 6, dtype=torch.float32)
    zeros = torch.zeros_like(t)
    for pair in ((zeros, t), (t, zeros), (zeros, zeros)):
        assert case.loss(*pair, y).isfinite()
        assert gradient(case, *pair, y).isfinite().all()


# 5. Masked classes, NaN


@each
def test_class_masked_on_both_sides(case: Case) -> None:
    s, t, y = sample(8, 5)
    masked = torch.full((8, 1), -math.inf, dtype=torch.float64)
    wide_s, wide_t = (torch.cat((x[:, :2], masked, x[:, 2:]), dim=-1) for x in (s, t))
    wide_y = torch.where(y < 2, y, y + 1)
    value, grad = case.loss(wide_s, wide_t, wide_y), gradient(case, wide_s, wide_t, wide_y)
    assert value.isfinite()
    assert grad.isfinite().all()
    assert (grad[:, 2] == 0).all()
    if case not in (CASES["mlkd"], CASES["deepkd"]):  # these count the classes
        assert value.item() == pytest.approx(case.loss(s, t, y).item(), rel=1e-9)


@each
def test_class_masked_by_the_teacher_alone(case: Case) -> None:
    s, t, y = sample(8, 5)
    t[:, 3] = -math.inf
    y = y.clamp(max=2)
    value = case.loss(s, t, y)
    assert not value.isnan()
    if not case.loss(s, t, y).isinf():  # reverse KL divides by what the teacher masks
        assert gradient(case, s, t, y).isfinite().all()


@each
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_non_finite_logits_are_not_hidden(case: Case, bad: float, side: int) -> None:
    pair, y = list(sample(8, 5)[:2]), torch.zeros(8, dtype=torch.int64)
    pair[side][2, 3] = bad
    assert not case.loss(*pair, y).isfinite()


# 6. Devices and wrong input


@each
def test_reads_no_value_off_the_cpu(case: Case) -> None:
    s, t, y = (x.to("meta") for x in sample(8, 5))
    assert case.loss(s, t, y).device.type == "meta"


@pytest.mark.parametrize("name", ["dist", "ls_kd", "nkd", "mlkd", "crld", "deepkd", "adakd-half"])
def test_compiles_without_graph_break(name: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    s, t, y = sample(8, 5)
    torch.testing.assert_close(compiled(s, t, y), case.loss(s, t, y))


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@each
@pytest.mark.parametrize(
    ("s", "t", "error", "message"),
    [
        (logits(4, 3), logits(4, 5), ValueError, "of one shape (..., classes), got (4, 3) and (4, 5)"),
        (logits(4, 1), logits(4, 1), ValueError, "with at least 2 classes, got (4, 1)"),
        (logits(0, 3), logits(0, 3), ValueError, "at least one sample, got logits of shape (0, 3)"),
        (logits(4, 3, dtype=torch.int64), logits(4, 3), TypeError, "`student_logits`, got torch.int64"),
    ],
)
def test_refuses_wrong_logits(case: Case, s: Tensor, t: Tensor, error: type[Exception], message: str) -> None:
    loss = case.loss
    if case.views:  # a second view that is right, so that the first is what is refused
        loss = without_target(partial(case.views, student_strong=logits(4, 3), teacher_strong=logits(4, 3)))
    with pytest.raises(error, match=re.escape(message)):
        loss(s, t, torch.zeros(s.shape[:-1], dtype=torch.int64))


@each
@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_refuses_wrong_temperature(case: Case, temperature: float) -> None:
    with pytest.raises(ValueError, match=re.escape("expected `temperature` > 0 and finite, its square in the range")):
        case.loss(logits(4, 3), logits(4, 3), torch.zeros(4, dtype=torch.int64), temperature=temperature)


Y = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (partial(dist, beta=-1.0), ValueError, "expected `beta` >= 0 and finite, got -1.0"),
        (partial(dist, gamma=math.nan), ValueError, "expected `gamma` >= 0 and finite, got nan"),
        (partial(nkd, target=Y, gamma=math.inf), ValueError, "expected `gamma` >= 0 and finite, got inf"),
        (partial(nkd, target=Y + 3), ValueError, "expected `target` in [0, 3), the number of classes, got 3"),
        (partial(nkd, target=Y.float()), TypeError, "expected `target` of dtype torch.int64, got torch.float32"),
    ],
)
def test_refuses_wrong_options(call: Callable[..., Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(logits(4, 3), logits(4, 3))
