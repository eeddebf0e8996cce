"""The contract of `dotkd.losses.adakd` and `TokenFocus`. (The formula itself: test_losses_table.)

1. Tokens that the mask leaves out influence neither loss nor gradient, whatever they hold, NaN included; the loss is
   that of the others alone. No token at all: 0.
2. Focus: the hardest share of the tokens counts, at least one; the others get no gradient.
3. Temperatures: low for hard tokens, within exp(+-strength) of the base, the base at the median; constant to the
   gradient; strength 0 and ratio 1 make it the divergence itself.
4. TokenFocus: warm-up, the two bounds, the moving average, the reference, the floor; its state survives.
5. Wrong input is refused in words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import Tensor

from dotkd.losses import TokenFocus, adakd, jsd, kd
from loss_oracles import sample

F64 = torch.float64


def gradients(s: Tensor, t: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    s, t = s.clone().requires_grad_(), t.clone().requires_grad_()
    return torch.autograd.grad(adakd(s, t, **options), (s, t))


# 1. Padding

LENGTHS = torch.tensor([4, 1, 3])
MASK = torch.arange(4) < LENGTHS.unsqueeze(1)


@pytest.mark.parametrize("ratio", [0.4, 1.0])
@pytest.mark.parametrize("junk", [0.0, 1e4, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_padding_influences_nothing(ratio: float, junk: float, dtype: torch.dtype) -> None:
    s, t, _ = sample(3, 4, 5, dtype=dtype)
    value = adakd(s, t, mask=MASK, ratio=ratio)
    grads = gradients(s, t, mask=MASK, ratio=ratio)
    for side in (0, 1):
        pair = [s.clone(), t.clone()]
        pair[side][~MASK] = junk
        assert torch.equal(adakd(*pair, mask=MASK, ratio=ratio), value)
        for ours, theirs in zip(gradients(*pair, mask=MASK, ratio=ratio), grads, strict=True):
            assert torch.equal(ours, theirs)
            assert (ours[~MASK] == 0).all()


@pytest.mark.parametrize("ratio", [0.4, 1.0])
def test_masked_loss_is_that_of_the_other_tokens(ratio: float) -> None:
    s, t, _ = sample(3, 4, 5)
    expected = adakd(s[MASK], t[MASK], ratio=ratio).item()
    assert adakd(s, t, mask=MASK, ratio=ratio).item() == pytest.approx(expected, rel=1e-12)


def test_batch_without_a_token_is_zero() -> None:
    s, t, _ = sample(3, 4, 5)
    none = torch.zeros(3, 4, dtype=torch.bool)
    assert adakd(s, t, mask=none).item() == 0.0
    assert all((grad == 0).all() for grad in gradients(s, t, mask=none))


# 2. Focus


@pytest.mark.parametrize(("ratio", "number"), [(1.0, 8), (0.5, 4), (0.3, 2), (0.01, 1)])
def test_only_the_hardest_tokens_count(ratio: float, number: int) -> None:
    s, t, _ = sample(2, 4, 5)
    p, q = softmax(t.numpy(), axis=-1), softmax(s.numpy(), axis=-1)
    difficulty = np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1) / 2).ravel()
    hardest = set(np.argsort(-difficulty)[:number].tolist())
    grad = gradients(s, t, ratio=ratio)[0].flatten(0, 1)
    assert {i for i in range(8) if grad[i].count_nonzero()} == hardest


def test_equal_tokens_are_taken_in_order() -> None:
    s, t, _ = sample(1, 1, 5)
    grad = gradients(s.repeat(1, 4, 1), t.repeat(1, 4, 1), ratio=0.5)[0]
    assert grad.count_nonzero(dim=-1).bool().tolist() == [[True, True, False, False]]


# 3. Temperatures


def test_temperature_of_one_token_is_the_base() -> None:
    """Its difficulty is the median."""
    s, t, _ = sample(1, 5)
    assert adakd(s, t, temperature=2.0, strength=3.0).item() == pytest.approx(
        jsd(s, t, temperature=2.0, beta=1.0).item(), rel=1e-12
    )


def test_hard_tokens_are_colder_than_easy_ones() -> None:
    """Three tokens: the median's one at the base; distances 0 and large reach the ends of the range."""
    t = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 30.0]], dtype=F64)
    s = torch.tensor([[0.0, 1.0], [0.0, 1.0 + 1e-4], [30.0, 0.0]], dtype=F64)
    strength = 0.5
    value = adakd(s, t, strength=strength).item()
    cold = jsd(s[2], t[2], temperature=math.exp(-strength), beta=1.0)
    base = jsd(s[1], t[1], temperature=1.0, beta=1.0)
    assert value == pytest.approx((cold + base).item() / 3, rel=1e-6)
    warm = torch.tensor([[0.0, 1.0], [0.0, 1.0 + 1e-8], [30.0, 0.0]], dtype=F64)
    hot = jsd(warm[1], t[1], temperature=math.exp(strength), beta=1.0)
    both = adakd(warm[[1, 2, 2]], t[[1, 2, 2]], strength=strength, temperature=1.0).item()
    assert both == pytest.approx((hot + 2 * jsd(s[2], t[2], temperature=1.0, beta=1.0)).item() / 3, rel=1e-6)


def test_equal_student_keeps_the_base_temperature() -> None:
    _, t, _ = sample(2, 3, 5)
    assert adakd(t, t).item() == 0.0
    assert (gradients(t, t)[0] == 0).all()


def test_gradient_takes_the_temperatures_as_constants() -> None:
    """Reverse KL at temperature tau: d/dz = q ((log q - log p) - KL(q || p)) / tau, times tau^2, over the tokens."""
    s, t, _ = sample(5, 4)
    p, q = softmax(t.numpy(), axis=-1), softmax(s.numpy(), axis=-1)
    difficulty = np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum(-1) / 2)
    tau = 1.5 * np.exp(-0.5 * np.tanh(np.log(difficulty / np.median(difficulty))))[:, None]
    p, q = softmax(t.numpy() / tau, axis=-1), softmax(s.numpy() / tau, axis=-1)
    log_ratio = np.log(q / p)
    expected = tau * q * (log_ratio - (q * log_ratio).sum(-1, keepdims=True)) / 5
    np.testing.assert_allclose(gradients(s, t, temperature=1.5)[0].numpy(), expected, rtol=1e-9)


def test_without_focus_and_scaling_it_is_the_divergence() -> None:
    s, t, _ = sample(2, 3, 5)
    at = partial(adakd, s, t, temperature=3.0, strength=0.0)
    assert at(beta=0.0).item() == pytest.approx(kd(s, t, temperature=3.0).item(), rel=1e-12)
    assert at().item() == pytest.approx(kd(t, s, temperature=3.0).item(), rel=1e-12)
    assert at(beta=0.3).item() == pytest.approx(jsd(s, t, temperature=3.0, beta=0.3).item(), rel=1e-12)


# 4. TokenFocus


def test_focus_follows_equations_6_and_7() -> None:
    """Held against the equations step by step, on a loss that falls, rises and trembles."""
    focus = TokenFocus(warmup=5, tolerance=0.05, step=0.1, decay=0.8)
    rng = np.random.default_rng(0)
    average = reference = None
    ratio, seen = 1.0, set()
    for step in range(1, 201):
        loss = 2.0 - np.cos(step / 20) + 0.1 * rng.standard_normal()
        average = loss if average is None else 0.8 * average + 0.2 * loss
        if step == 5:
            reference = average
        elif step > 5 and average < reference * 0.95:
            ratio, reference = ratio * 0.9, average
            seen.add("less")
        elif step > 5 and average > reference * 1.05:
            seen.add("more" if ratio * 1.1 < 1.0 else "all")
            ratio, reference = min(1.0, ratio * 1.1), average
        focus.update(torch.tensor(loss) if step % 2 else float(loss))
        assert focus.ratio == pytest.approx(ratio, rel=1e-6)
    assert seen == {"less", "more", "all"}


def test_focus_stays_above_its_minimum() -> None:
    focus = TokenFocus(warmup=0, step=0.5, decay=0.0, minimum=0.2)
    for loss in (8.0, 4.0, 2.0, 1.0, 0.5):
        focus.update(loss)
    assert focus.ratio == 0.2


def test_focus_passes_over_losses_that_are_not_finite() -> None:
    focus = TokenFocus(warmup=1, decay=0.0)
    focus.update(1.0)
    before = focus.state_dict()
    for loss in (math.nan, math.inf, torch.tensor(math.nan)):
        focus.update(loss)
    assert focus.state_dict() == before


def test_focus_goes_on_from_its_state() -> None:
    losses = [3.0, 2.5, 1.0, 1.2, 2.0, 0.5, 0.6]
    whole, first, second = (TokenFocus(warmup=2, decay=0.5) for _ in range(3))
    for loss in losses:
        whole.update(loss)
    for loss in losses[:3]:
        first.update(loss)
    second.load_state_dict(first.state_dict())
    for loss in losses[3:]:
        second.update(loss)
    assert second.state_dict() == whole.state_dict()
    assert whole.ratio < 1.0


# 5. Wrong input

ZEROS = torch.zeros(2, 3, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ratio": 0.0}, ValueError, "expected `ratio` in (0, 1], got 0.0"),
        ({"ratio": 1.5}, ValueError, "expected `ratio` in (0, 1], got 1.5"),
        ({"strength": -1.0}, ValueError, "expected `strength` >= 0 and finite, got -1.0"),
        ({"beta": 2.0}, ValueError, "expected `beta` in [0, 1], got 2.0"),
        ({"mask": torch.ones(2, 3)}, TypeError, "expected `mask` of dtype torch.bool, got torch.float32"),
        (
            {"mask": torch.ones(2, 4, dtype=torch.bool)},
            ValueError,
            "expected `mask` of shape (2, 3), the logits' without the vocabulary, got (2, 4)",
        ),
    ],
)
def test_refuses_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        adakd(ZEROS, ZEROS, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(TokenFocus, warmup=-1), "expected `warmup` >= 0, got -1"),
        (partial(TokenFocus, warmup=1, tolerance=1.0), "expected `tolerance` in [0, 1), got 1.0"),
        (partial(TokenFocus, warmup=1, step=0.0), "expected `step` in (0, 1), got 0.0"),
        (partial(TokenFocus, warmup=1, decay=1.0), "expected `decay` in [0, 1), got 1.0"),
        (partial(TokenFocus, warmup=1, minimum=0.0), "expected `minimum` in (0, 1], got 0.0"),
        (
            partial(TokenFocus(warmup=1).load_state_dict, {"ratio": 1.0}),
            "expected the keys ratio, average, reference, steps, got ratio",
        ),
        (
            partial(
                TokenFocus(warmup=1).load_state_dict, {"ratio": 2.0, "average": None, "reference": None, "steps": 0}
            ),
            "expected `ratio` in (0, 1], got 2.0",
        ),
    ],
)
def test_focus_refuses_wrong_values(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
