"""The contract of `dotkd.losses`: kd, dkd, jsd.

1. Value: each equals its paper's formula, written out here with scipy and numpy in float64, for any shape
   (..., C) and temperature; the mean runs over all leading axes and carries the factor temperature^2.
2. Ends and special cases: jsd is forward KL at beta = 0 and reverse KL at beta = 1, and near them a multiple
   of these, as GKD's formula is; dkd with beta = 1 - p_t is kd; for two classes dkd is alpha kd, NCKD and its
   gradient exactly 0.
3. Zero where student equals teacher, never negative, unchanged when either side's logits are shifted.
4. Gradient: gradcheck in float64, to both arguments and to second order; kd's closed form T (q - p) / N.
5. Numerics: logits of size 1e4, extreme temperatures, float16 and bfloat16 (computed in float32), autocast.
6. A class masked by -inf counts 0 log 0 = 0 and leaves gradients finite; mass the other side denies is +inf.
7. torch.compile without graph break, torch.func.vmap, and no value is read but a target's on the CPU.
8. Wrong input is refused with a message that states the rule and the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor

from dotkd import losses
from dotkd.losses import dkd, jsd, kd

Array = NDArray[np.float64]
INF = math.inf


# Oracles: one sample each, (C,) probabilities from float64 logits -> the divergence without T^2.


def kl_oracle(p: Array, q: Array) -> float:
    return float(rel_entr(p, q).sum())


def kd_oracle(s: Array, t: Array, y: int, temperature: float) -> float:
    return kl_oracle(softmax(t / temperature), softmax(s / temperature))


def dkd_oracle(s: Array, t: Array, y: int, temperature: float, alpha: float = 1.0, beta: float = 8.0) -> float:
    p, q = softmax(t / temperature), softmax(s / temperature)
    p_rest, q_rest = np.delete(p, y), np.delete(q, y)
    target = kl_oracle(np.array([p[y], p_rest.sum()]), np.array([q[y], q_rest.sum()]))
    return alpha * target + beta * kl_oracle(p_rest / p_rest.sum(), q_rest / q_rest.sum())


def jsd_oracle(s: Array, t: Array, y: int, temperature: float, beta: float = 0.5) -> float:
    p, q = softmax(t / temperature), softmax(s / temperature)
    if beta in (0.0, 1.0):
        return kl_oracle(p, q) if beta == 0.0 else kl_oracle(q, p)
    mixture = beta * p + (1 - beta) * q
    return beta * kl_oracle(p, mixture) + (1 - beta) * kl_oracle(q, mixture)


class Case(NamedTuple):
    loss: Callable[..., Tensor]
    """(student, teacher, target, temperature=...)"""
    oracle: Callable[..., float]


def without_target(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda s, t, y, **options: loss(s, t, **options)


CASES = {
    "kd": Case(without_target(kd), kd_oracle),
    "dkd": Case(dkd, dkd_oracle),
    "dkd-weights": Case(partial(dkd, alpha=0.5, beta=2.0), partial(dkd_oracle, alpha=0.5, beta=2.0)),
    "jsd": Case(without_target(jsd), jsd_oracle),
    "jsd-0.1": Case(without_target(partial(jsd, beta=0.1)), partial(jsd_oracle, beta=0.1)),
    "jsd-forward": Case(without_target(partial(jsd, beta=0.0)), partial(jsd_oracle, beta=0.0)),
    "jsd-reverse": Case(without_target(partial(jsd, beta=1.0)), partial(jsd_oracle, beta=1.0)),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def oracle_mean(case: Case, s: Tensor, t: Tensor, y: Tensor, temperature: float) -> float:
    classes = s.shape[-1]
    rows = zip(
        s.double().reshape(-1, classes).numpy(),
        t.double().reshape(-1, classes).numpy(),
        y.flatten().tolist(),
        strict=True,
    )
    return float(np.mean([case.oracle(a, b, i, temperature) for a, b, i in rows])) * temperature**2


def sample(
    *shape: int, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Student logits, teacher logits, targets."""
    generator = torch.Generator().manual_seed(seed)
    s, t = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale
    return s.to(dtype), t.to(dtype), torch.randint(shape[-1], shape[:-1], generator=generator)


def gradient(case: Case, s: Tensor, t: Tensor, y: Tensor, **options: float) -> Tensor:
    s = s.clone().requires_grad_()
    (grad,) = torch.autograd.grad(case.loss(s, t, y, **options), s)
    return grad


# 1. Value


@each
@settings(derandomize=True, database=None, deadline=None, max_examples=25)
@given(
    leading=st.lists(st.integers(1, 4), max_size=3),
    classes=st.integers(2, 12),
    # Bounded so that no p / q, by which rel_entr divides, leaves float64: |logits| / temperature < 200.
    log_temperature=st.floats(-0.5, 2.0),
    scale=st.floats(0.0, 10.0),
    seed=st.integers(0, 2**16),
)
def test_equals_the_papers_formula(
    case: Case, leading: list[int], classes: int, log_temperature: float, scale: float, seed: int
) -> None:
    temperature = 10.0**log_temperature
    s, t, y = sample(*leading, classes, seed=seed, scale=scale)
    value = case.loss(s, t, y, temperature=temperature)
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert value.item() == pytest.approx(oracle_mean(case, s, t, y, temperature), rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("name", ["kd", "dkd", "jsd"])
def test_defaults(name: str) -> None:
    """Temperature 4; alpha 1 and beta 8 for dkd, beta 1/2 for jsd: the oracles' defaults."""
    s, t, y = sample(4, 5)
    assert CASES[name].loss(s, t, y).item() == pytest.approx(oracle_mean(CASES[name], s, t, y, 4.0), rel=1e-10)


def test_losses_by_name() -> None:
    assert [losses.LOSSES[name] for name in ("kd", "dkd", "jsd")] == [kd, dkd, jsd]


# 2. Ends and special cases


def test_jsd_at_one_half_is_the_jensen_shannon_divergence() -> None:
    s, t, _ = sample(6, 7)
    p, q = softmax(t.numpy(), axis=-1), softmax(s.numpy(), axis=-1)
    expected = float(np.mean(jensenshannon(p, q, axis=-1) ** 2))
    assert jsd(s, t, temperature=1.0).item() == pytest.approx(expected, rel=1e-10)
    assert jsd(t, s, temperature=1.0).item() == pytest.approx(expected, rel=1e-10)


def test_jsd_swaps_its_sides_with_beta() -> None:
    s, t, _ = sample(6, 7)
    assert jsd(s, t, beta=0.2).item() == pytest.approx(jsd(t, s, beta=0.8).item(), rel=1e-12)


def test_jsd_ends_are_the_two_kls() -> None:
    s, t, _ = sample(6, 7)
    assert torch.equal(jsd(s, t, beta=0.0), kd(s, t))
    assert torch.equal(jsd(s, t, beta=1.0), kd(t, s))


@pytest.mark.parametrize("small", [1e-3, 1e-5])
def test_jsd_near_its_ends_is_a_multiple_of_the_two_kls(small: float) -> None:
    s, t, _ = sample(6, 7)
    assert jsd(s, t, beta=small).item() / small == pytest.approx(kd(s, t).item(), rel=10 * small)
    assert jsd(s, t, beta=1 - small).item() / small == pytest.approx(kd(t, s).item(), rel=10 * small)


def test_jsd_at_one_half_is_bounded_by_log_2() -> None:
    s = torch.tensor([[1e4, 0.0, -INF]], dtype=torch.float64)
    assert jsd(s, s.flip(-1), temperature=1.0).item() == pytest.approx(math.log(2), rel=1e-12)


def test_dkd_with_the_coupled_weight_is_kd() -> None:
    """Equation 6: KL(p || q) = TCKD + (1 - p_t) NCKD, sample by sample."""
    s, t, y = sample(5, 6)
    p = softmax(t.numpy() / 2.0, axis=-1)
    for i in range(5):
        weight = float(1 - p[i, y[i]])
        assert dkd(s[i], t[i], y[i], temperature=2.0, beta=weight).item() == pytest.approx(
            kd(s[i], t[i], temperature=2.0).item(), rel=1e-10
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_dkd_of_two_classes_is_alpha_kd(dtype: torch.dtype, scale: float) -> None:
    s, t, y = sample(16, 2, scale=scale, dtype=dtype)
    expected = 3.0 * kd(s.double(), t.double(), temperature=4.0)
    assert dkd(s, t, y, temperature=4.0, alpha=3.0).item() == pytest.approx(expected.item(), rel=1e-5)
    rest = partial(dkd, alpha=0.0, beta=8.0)
    assert rest(s, t, y).item() == 0.0
    assert gradient(Case(rest, dkd_oracle), s, t, y).count_nonzero() == 0


def test_two_class_closed_form() -> None:
    """Two classes mirrored at distance z: p = sigmoid(z / T), KL = (2 p - 1) z / T = z / T tanh(z / 2T)."""
    z, temperature = 3.0, 2.0
    s, t = torch.tensor([[0.0, z]], dtype=torch.float64), torch.tensor([[z, 0.0]], dtype=torch.float64)
    expected = temperature**2 * (z / temperature) * math.tanh(z / (2 * temperature))
    assert kd(s, t, temperature=temperature).item() == pytest.approx(expected, rel=1e-12)
    assert dkd(s, t, torch.tensor([1]), temperature=temperature).item() == pytest.approx(expected, rel=1e-12)


def test_dkd_leaves_the_target_out_of_nckd_whatever_its_size() -> None:
    """Subtracting a constant such as 1000 would not."""
    s, t, y = sample(8, 5)
    ahead = torch.nn.functional.one_hot(y, 5) * 1e5
    rest = partial(dkd, temperature=1.0, alpha=0.0, beta=1.0)
    assert rest(s + ahead, t - ahead, y).item() == pytest.approx(rest(s, t, y).item(), rel=1e-9)


# 3. Zero at identity, positive elsewhere, shifts


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("temperature", [0.5, 4.0, 100.0])
def test_zero_at_identity(case: Case, dtype: torch.dtype, temperature: float) -> None:
    s, _, y = sample(8, 10, dtype=dtype)
    value = case.loss(s, s.clone(), y, temperature=temperature).item()
    grad = gradient(case, s, s.clone(), y, temperature=temperature)
    if case.oracle is kd_oracle or case.oracle is dkd_oracle:  # the mixture of jsd is rounded
        assert value == 0.0
        assert grad.count_nonzero() == 0
    assert value == pytest.approx(0.0, abs=1e-12)
    assert grad.abs().max().item() <= 1e-9


@each
@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-6])
def test_never_negative_near_identity(case: Case, size: float) -> None:
    """In float32 the usual sum of p (log p - log q) is, where rounding outweighs the divergence."""
    for seed in range(20):
        s, noise, y = sample(4, 10, seed=seed, dtype=torch.float32)
        assert case.loss(s, s + size * noise, y, temperature=4.0).item() >= 0.0


@each
@pytest.mark.parametrize("shift", [-50.0, 1e4])
def test_shift_of_either_side_changes_nothing(case: Case, shift: float) -> None:
    # Multiples of 2^-8 stay exact in float32 when shifted by 1e4, so that only the loss can round.
    s, t, y = ((x * 256).round() / 256 if x.is_floating_point() else x for x in sample(8, 10))
    s, t = s.float(), t.float()
    shifts = shift * torch.arange(1, 9).unsqueeze(-1) / 8
    expected = case.loss(s, t, y, temperature=3.0).item()
    assert case.loss(s + shifts, t, y, temperature=3.0).item() == pytest.approx(expected, rel=1e-6)
    assert case.loss(s, t + shifts, y, temperature=3.0).item() == pytest.approx(expected, rel=1e-6)


# 4. Gradient


@each
@pytest.mark.parametrize("temperature", [0.7, 4.0])
def test_gradcheck_to_both_arguments(case: Case, temperature: float) -> None:
    s, t, y = sample(3, 4)
    s.requires_grad_(), t.requires_grad_()
    loss = partial(case.loss, temperature=temperature)
    assert torch.autograd.gradcheck(lambda a, b: loss(a, b, y), (s, t))
    assert torch.autograd.gradgradcheck(lambda a, b: loss(a, b, y), (s, t))


@each
def test_gradcheck_where_single_classes_agree(case: Case) -> None:
    """Student and teacher tie on some classes: no branch may have a kink there."""
    t = torch.tensor([[1.0, 2.0, 0.0, 0.5]], dtype=torch.float64)
    s = t[:, [1, 0, 2, 3]].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda a: case.loss(a, t, torch.tensor([0]), temperature=1.0), (s,))
    assert torch.autograd.gradgradcheck(lambda a: case.loss(a, t, torch.tensor([0]), temperature=1.0), (s,))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 1e3])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradient_of_kd_in_closed_form(temperature: float, scale: float) -> None:
    s, t, y = sample(2, 3, 10, scale=scale)
    p, q = softmax(t.numpy() / temperature, axis=-1), softmax(s.numpy() / temperature, axis=-1)
    expected = temperature * (q - p) / 6
    for dtype, rel in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        grad = gradient(CASES["kd"], s.to(dtype), t.to(dtype), y, temperature=temperature)
        np.testing.assert_allclose(grad.numpy(), expected, rtol=rel, atol=rel * np.abs(expected).max())


@each
@pytest.mark.parametrize(("dtype", "distance"), [(torch.float32, 95.0), (torch.float64, 720.0)])
def test_gradients_finite_where_a_probability_all_but_vanishes(case: Case, dtype: torch.dtype, distance: float) -> None:
    """p is the smallest number there is and q / p overflows: neither side's gradient may."""
    s = torch.tensor([[distance, 0.0, -1.0]], dtype=dtype, requires_grad=True)
    t = torch.tensor([[0.0, distance, -1.0]], dtype=dtype, requires_grad=True)
    value = case.loss(s, t, torch.tensor([1]), temperature=1.0)
    for grad in torch.autograd.grad(value, (s, t)):
        assert grad.isfinite().all()


# 5. Numerics


def kl_of_logits(s: Tensor, t: Tensor, temperature: float) -> float:
    """KL(teacher || student) times T^2, right for logits of any finite size."""
    p, q = (log_softmax(x.double().numpy() / temperature, axis=-1) for x in (t, s))
    return temperature**2 * float(np.where(np.exp(p) > 0, np.exp(p) * (p - q), 0.0).sum(-1).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_of_size_1e4_have_the_right_kl(dtype: torch.dtype, temperature: float) -> None:
    s, t, _ = sample(16, 10, scale=1e4, dtype=dtype)
    assert kd(s, t, temperature=temperature).item() == pytest.approx(kl_of_logits(s, t, temperature), rel=1e-6)
    assert jsd(s, t, temperature=temperature, beta=1.0).item() == pytest.approx(
        kl_of_logits(t, s, temperature), rel=1e-6
    )


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 4.0, 1e3])
def test_logits_of_size_1e4_stay_finite(case: Case, dtype: torch.dtype, temperature: float) -> None:
    s, t, y = sample(16, 10, scale=1e4, dtype=dtype)
    exact = case.loss(s.double(), t.double(), y, temperature=temperature).item()
    assert case.loss(s, t, y, temperature=temperature).item() == pytest.approx(exact, rel=1e-4)
    assert math.isfinite(exact)
    assert gradient(case, s, t, y, temperature=temperature).isfinite().all()


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    s, t, y = sample(16, 10, dtype=dtype)
    value = case.loss(s, t, y, temperature=4.0)
    assert value.dtype == torch.float32
    exact = case.loss(s.double(), t.double(), y, temperature=4.0).item()  # of the same, already rounded logits
    assert value.item() == pytest.approx(exact, rel=1e-5)
    grad = gradient(case, s, t, y, temperature=4.0)
    assert grad.dtype == dtype
    expected = gradient(case, s.double(), t.double(), y, temperature=4.0)
    torch.testing.assert_close(
        grad.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=float(expected.abs().max()) * 1e-5
    )


@each
def test_wider_dtype_of_the_two_decides(case: Case) -> None:
    s, t, y = sample(4, 5)
    assert case.loss(s, t.half(), y, temperature=4.0).dtype == torch.float64
    assert case.loss(s.half(), t.float(), y, temperature=4.0).dtype == torch.float32


@each
def test_autocast_does_not_lower_the_precision(case: Case) -> None:
    s, t, y = sample(16, 10, dtype=torch.float32)
    expected = case.loss(s, t, y, temperature=4.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(case.loss(s, t, y, temperature=4.0), expected)


@each
@pytest.mark.parametrize("temperature", [1e3, 1e4])
def test_high_temperature_in_float32(case: Case, temperature: float) -> None:
    """The usual sum is off by 0.6 % and 17 % here."""
    s, t, y = sample(8, 10)
    exact = case.loss(s, t, y, temperature=temperature).item()
    assert case.loss(s.float(), t.float(), y, temperature=temperature).item() == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("case", [CASES["kd"], CASES["jsd-reverse"]], ids=["kd", "jsd-reverse"])
def test_high_temperature_limit_is_half_the_variance(case: Case) -> None:
    """Hinton et al. 2015, section 2.1: softened KL tends to matching centred logits, sum (s - t)^2 / 2C."""
    s, t, y = sample(8, 10)
    difference = (s - t) - (s - t).mean(dim=-1, keepdim=True)
    limit = (difference.square().mean(dim=-1) / 2).mean().item()
    assert case.loss(s, t, y, temperature=1e5).item() == pytest.approx(limit, rel=1e-3)


@each
@pytest.mark.parametrize("temperature", [1.5e-19, 1e-9, 1e9, 1.5e19])
def test_finite_at_any_temperature(case: Case, temperature: float) -> None:
    s, t, y = sample(8, 10, dtype=torch.float32)
    assert case.loss(s, t, y, temperature=temperature).isfinite()
    assert gradient(case, s, t, y, temperature=temperature).isfinite().all()


# 6. Masked classes


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_class_masked_on_both_sides_is_as_if_absent(case: Case, dtype: torch.dtype) -> None:
    s, t, y = sample(8, 5, dtype=dtype)
    masked = torch.full((8, 1), -INF, dtype=dtype)
    wide_s, wide_t = (torch.cat((x[:, :2], masked, x[:, 2:]), dim=-1) for x in (s, t))
    wide_y = torch.where(y < 2, y, y + 1)
    torch.testing.assert_close(
        case.loss(wide_s, wide_t, wide_y, temperature=2.0),
        case.loss(s, t, y, temperature=2.0),
        rtol=1e-6,
        atol=0.0,
    )
    grad = gradient(case, wide_s, wide_t, wide_y, temperature=2.0)
    assert (grad[:, 2] == 0).all()
    torch.testing.assert_close(torch.cat((grad[:, :2], grad[:, 3:]), dim=-1), gradient(case, s, t, y, temperature=2.0))


@pytest.mark.parametrize("name", ["kd", "dkd", "jsd", "jsd-0.1", "jsd-forward"])
def test_class_masked_by_the_teacher_alone(name: str) -> None:
    case = CASES[name]
    s, t, y = sample(8, 5)
    t[:, 3] = -INF
    y = y.clamp(max=2)
    value = case.loss(s, t, y, temperature=2.0).item()
    assert value == pytest.approx(oracle_mean(case, s, t, y, 2.0), rel=1e-10)
    grad = gradient(case, s, t, y, temperature=2.0)
    assert grad.isfinite().all()
    assert (grad[:, 3] > 0).all()  # descent lowers a class that the teacher excludes


def test_target_masked_by_the_teacher() -> None:
    s, t, y = sample(8, 5)
    t.scatter_(1, y.unsqueeze(1), -INF)
    assert dkd(s, t, y, temperature=2.0).item() == pytest.approx(oracle_mean(CASES["dkd"], s, t, y, 2.0), rel=1e-10)
    assert gradient(CASES["dkd"], s, t, y, temperature=2.0).isfinite().all()


@pytest.mark.parametrize("classes", [2, 5])
def test_dkd_of_a_one_hot_teacher_is_cross_entropy(classes: int) -> None:
    """All but the target masked: TCKD is -log q_t, and NCKD has no distribution to compare with."""
    s, _, y = sample(8, classes)
    t = torch.full_like(s, -INF).scatter(1, y.unsqueeze(1), 0.0)
    expected = torch.nn.functional.cross_entropy(s, y).item()
    assert dkd(s, t, y, temperature=1.0).item() == pytest.approx(expected, rel=1e-12)
    assert gradient(CASES["dkd"], s, t, y, temperature=1.0).isfinite().all()


@each
def test_mass_that_one_side_denies(case: Case) -> None:
    """+inf where the formula divides by zero, the bounded mixture otherwise; never NaN."""
    s, t, y = sample(8, 5)
    y = y.clamp(max=2)
    for denied, other in ((s, t), (t, s)):
        masked = denied.clone()
        masked[:, 3] = -INF
        pair = (masked, other) if denied is s else (other, masked)
        expected = oracle_mean(case, *pair, y, 2.0)
        assert case.loss(*pair, y, temperature=2.0).item() == pytest.approx(expected, rel=1e-10)


@each
@pytest.mark.parametrize("bad", [math.nan, INF])
def test_non_finite_logits_are_not_hidden(case: Case, bad: float) -> None:
    """An optimizer that skips steps which are not finite must see them."""
    for side in (0, 1):
        s, t, y = sample(8, 5)
        (s, t)[side][2, 3] = bad
        assert not case.loss(s, t, y, temperature=2.0).isfinite()


# 7. Compilation, vmap, no reading of values


@pytest.mark.parametrize("name", ["kd", "dkd", "jsd"])
def test_compiles_without_graph_break(name: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    for seed, temperature in enumerate((4.0, 2.0)):
        s, t, y = sample(8, 5, seed=seed)
        torch.testing.assert_close(
            compiled(s, t, y, temperature=temperature), case.loss(s, t, y, temperature=temperature)
        )
        torch.testing.assert_close(
            gradient(Case(compiled, case.oracle), s, t, y, temperature=temperature),
            gradient(case, s, t, y, temperature=temperature),
        )


@each
def test_vmap_over_samples_gives_their_losses_and_gradients(case: Case) -> None:
    s, t, y = sample(8, 5)
    loss = partial(case.loss, temperature=2.0)
    values = torch.func.vmap(loss)(s, t, y)
    torch.testing.assert_close(values, torch.stack([loss(s[i], t[i], y[i]) for i in range(8)]))
    grads = torch.func.vmap(torch.func.grad(loss))(s, t, y)
    torch.testing.assert_close(grads / 8, gradient(case, s, t, y, temperature=2.0))


@each
def test_reads_no_value_off_the_cpu(case: Case) -> None:
    """A meta tensor has none to read, so that this fails wherever a CUDA run would wait."""
    s, t, y = (x.to("meta") for x in sample(8, 5))
    assert case.loss(s, t, y, temperature=2.0).device.type == "meta"


# 8. Wrong input


def logits(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@each
@pytest.mark.parametrize(
    ("s", "t", "error", "message"),
    [
        (logits(4, 3), logits(4, 5), ValueError, "of one shape (..., classes), got (4, 3) and (4, 5)"),
        (logits(1, 3), logits(4, 3), ValueError, "of one shape (..., classes), got (1, 3) and (4, 3)"),
        (logits(4, 1), logits(4, 1), ValueError, "with at least 2 classes, got (4, 1)"),
        (logits(), logits(), ValueError, "with at least 2 classes, got ()"),
        (logits(0, 3), logits(0, 3), ValueError, "at least one sample, got logits of shape (0, 3)"),
        (logits(2, 0, 3), logits(2, 0, 3), ValueError, "at least one sample, got logits of shape (2, 0, 3)"),
        (
            logits(4, 3, dtype=torch.int64),
            logits(4, 3),
            TypeError,
            "expected floating-point `student_logits`, got torch.int64",
        ),
        (
            logits(4, 3),
            logits(4, 3, dtype=torch.complex64),
            TypeError,
            "expected floating-point `teacher_logits`, got torch.complex64",
        ),
    ],
)
def test_refuses_wrong_logits(case: Case, s: Tensor, t: Tensor, error: type[Exception], message: str) -> None:
    y = torch.zeros(s.shape[:-1], dtype=torch.int64)
    with pytest.raises(error, match=re.escape(message)):
        case.loss(s, t, y, temperature=2.0)


@each
@pytest.mark.parametrize("temperature", [0.0, -1.0, INF, math.nan, 1e20, 1e-20])
def test_refuses_wrong_temperature(case: Case, temperature: float) -> None:
    message = f"expected `temperature` > 0 and finite, its square in the range of torch.float32, got {temperature}"
    with pytest.raises(ValueError, match=re.escape(message)):
        case.loss(logits(4, 3), logits(4, 3), torch.zeros(4, dtype=torch.int64), temperature=temperature)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (torch.tensor([0, 1, 3, 2]), ValueError, "expected `target` in [0, 3), the number of classes, got 3"),
        (
            torch.tensor([0, -1, 1, 7]),
            ValueError,
            "expected `target` in [0, 3), the number of classes, got -1",
        ),
        (torch.zeros(4), TypeError, "expected `target` of dtype torch.int64, got torch.float32"),
        (
            torch.zeros(4, dtype=torch.int32),
            TypeError,
            "expected `target` of dtype torch.int64, got torch.int32",
        ),
        (
            torch.zeros(5, dtype=torch.int64),
            ValueError,
            "expected `target` of shape (4,), the logits' without",
        ),
        (torch.zeros(4, 1, dtype=torch.int64), ValueError, "without the classes, got (4, 1)"),
    ],
)
def test_dkd_refuses_wrong_target(target: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        dkd(logits(4, 3), logits(4, 3), target)


def test_dkd_refuses_wrong_target_under_vmap() -> None:
    with pytest.raises(ValueError, match=re.escape("expected `target` in [0, 3), the number of classes, got 3")):
        torch.func.vmap(dkd)(logits(4, 3), logits(4, 3), torch.tensor([0, 1, 3, 2]))


@pytest.mark.parametrize("name", ["alpha", "beta"])
@pytest.mark.parametrize("weight", [-1.0, INF, math.nan])
def test_dkd_refuses_wrong_weight(name: str, weight: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"expected `{name}` >= 0 and finite, got {weight}")):
        dkd(logits(4, 3), logits(4, 3), torch.zeros(4, dtype=torch.int64), **{name: weight})


@pytest.mark.parametrize("beta", [-0.1, 1.5, math.nan])
def test_jsd_refuses_wrong_beta(beta: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"expected `beta` in [0, 1], got {beta}")):
        jsd(logits(4, 3), logits(4, 3), beta=beta)
