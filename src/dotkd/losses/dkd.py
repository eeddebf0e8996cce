"""Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dotkd.losses._divergence import kl_divergence, mean_times_squared, prepare


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Mean over samples of T^2 (alpha TCKD + beta NCKD), the paper's equation 7.

    For one sample with target t, p = softmax(teacher_logits / T) and q = softmax(student_logits / T):

        TCKD = KL((p_t, 1 - p_t) || (q_t, 1 - q_t))              the target against the rest
        NCKD = KL(p^ || q^),  p^_i = p_i / (1 - p_t), i != t     the rest among themselves, renormalised

    and KL(p || q) = TCKD + (1 - p_t) NCKD, so that `kd` is the case alpha = 1, beta = 1 - p_t.

    Two classes leave one in the rest: NCKD and its gradient are exactly 0, the loss is alpha times `kd`.
    NCKD also counts as 0 for a sample whose rest is masked by -inf altogether, where p^ does not exist.

    Deviations from the official code: it drops the target by taking 1000 off the softened logit, which lets
    the target back in where logits differ by more, and takes the logarithm of TCKD's probabilities, which may
    have underflowed to 0 (binary tasks report inf). Here the target is masked, and both terms come from the
    log-odds of the target against the rest. The official warm-up of the weight is not part of the loss.

    Args:
        student_logits: (..., C), C >= 2; every leading index is a sample, (C,) is one sample.
        teacher_logits: (..., C). The loss is differentiable in them as well: detach them where the teacher is
            fixed. They may mask classes by -inf; a class that the student alone masks makes the loss +inf.
        target: (...) int64 class indices in [0, C). The range is checked on the CPU only, and not while
            compiling: reading values would stall another device.
        temperature: T > 0, dimensionless.
        alpha: weight of TCKD, >= 0.
        beta: weight of NCKD, >= 0; the best value depends on the teacher, the paper uses 0.5 to 8.

    Returns:
        A scalar; float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point, a `target` that is not int64.
        ValueError: shapes that differ, fewer than two classes, no sample, a target out of range,
            `temperature` not positive and finite, a weight negative or not finite.

    >>> import torch
    >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> dkd(student, teacher, torch.tensor([1]), temperature=1.0)  # two classes: kd itself, 2 tanh(1)
    tensor(1.5232)
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature)
    for name, weight in (("alpha", alpha), ("beta", beta)):
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"expected `{name}` >= 0 and finite, got {weight}")
    _check_target(target, tuple(student.shape))

    odds_p, rest_p, empty_p = _split(teacher, target, temperature)
    odds_q, rest_q, empty_q = _split(student, target, temperature)
    tckd = kl_divergence(_two_class(odds_p), _two_class(odds_q))
    undefined = empty_p | empty_q
    nckd = kl_divergence(rest_p.masked_fill(undefined, 0.0), rest_q.masked_fill(undefined, 0.0))
    return mean_times_squared(alpha * tckd + beta * nckd, temperature)


def _split(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The two halves of softmax(logits / temperature): the target's share, and how the rest divides its own.

    Returns:
        log(p_t / (1 - p_t)), (..., 1); log p^, (..., C), -inf at the target; whether the rest is empty,
        (..., 1), in which case log p^ means nothing.
    """
    index = target.unsqueeze(-1)
    is_target = torch.arange(logits.shape[-1], device=logits.device) == index
    rest = logits.masked_fill(is_target, -math.inf)
    # Centred on the rest's own peak, so that a dominant target does not cost the rest its digits.
    peak = rest.detach().amax(dim=-1, keepdim=True)
    empty = torch.isneginf(peak)
    # logsumexp of nothing but -inf has no gradient: an empty rest is made finite. The odds are +inf still.
    rest = (rest - peak).masked_fill(empty, 0.0) / temperature
    log_mass = rest.logsumexp(dim=-1, keepdim=True)
    log_odds = (logits.gather(-1, index) - peak) / temperature - log_mass
    return log_odds, rest - log_mass, empty


def _two_class(log_odds: Tensor) -> Tensor:
    """(log p_t, log(1 - p_t)) from log(p_t / (1 - p_t)), (..., 1) -> (..., 2)."""
    return torch.cat((F.logsigmoid(log_odds), F.logsigmoid(-log_odds)), dim=-1)


def _check_target(target: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a target that does not fit logits of this shape."""
    if target.dtype != torch.int64:
        raise TypeError(f"expected `target` of dtype torch.int64, got {target.dtype}")
    if tuple(target.shape) != shape[:-1]:
        raise ValueError(
            f"expected `target` of shape {shape[:-1]}, the logits' without the classes, got {tuple(target.shape)}"
        )
    if torch.compiler.is_compiling() or target.device.type != "cpu":
        return
    # Under vmap the values are in a wrapper, which may be looked into if nothing computed from it goes on.
    low, high = (int(bound) for bound in torch.func.debug_unwrap(target).aminmax())
    if low < 0 or high >= shape[-1]:
        wrong = low if low < 0 else high
        raise ValueError(f"expected `target` in [0, {shape[-1]}), the number of classes, got {wrong}")
