"""What the objectives share: the checks of their arguments, softened log-probabilities, one KL divergence.

`torch.nn.functional.kl_div(log_target=True)` is not used: where a class is masked on both sides, by a
log-probability of -inf, it gives NaN instead of 0; it has no batching rule under `torch.func.vmap`; and it
cancels at high temperature.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def prepare(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Check what every objective is given; return both logits in the dtype that the objective is computed in.

    That dtype is the wider of the two, and at least float32: half precision is lifted, float64 stays.

    Raises:
        TypeError: logits that are not real floating point.
        ValueError: shapes that differ, no class axis or fewer than two classes, no sample, a temperature that
            is not positive and finite, or whose square leaves that dtype's range.
    """
    for name, logits in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if not logits.is_floating_point():
            raise TypeError(f"expected floating-point `{name}`, got {logits.dtype}")
    shape = tuple(student_logits.shape)
    if shape != tuple(teacher_logits.shape):
        raise ValueError(
            "expected `student_logits` and `teacher_logits` of one shape (..., classes), "
            f"got {shape} and {tuple(teacher_logits.shape)}"
        )
    if not shape or shape[-1] < 2:
        raise ValueError(f"expected logits of shape (..., classes) with at least 2 classes, got {shape}")
    if 0 in shape:
        raise ValueError(f"expected at least one sample, got logits of shape {shape}")
    dtype = torch.promote_types(student_logits.dtype, teacher_logits.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    square = temperature * temperature
    if not (temperature > 0 and torch.finfo(dtype).tiny <= square <= torch.finfo(dtype).max):
        raise ValueError(
            f"expected `temperature` > 0 and finite, its square in the range of {dtype}, got {temperature}"
        )
    return student_logits.to(dtype), teacher_logits.to(dtype)


def check_weights(**weights: float) -> None:
    """Refuse a weight that is negative or not finite."""
    for name, weight in weights.items():
        if not 0.0 <= weight < math.inf:
            raise ValueError(f"expected `{name}` >= 0 and finite, got {weight}")


def log_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """log softmax(logits / temperature), (..., C) -> (..., C); a logit of -inf means probability 0.

    A tensor of temperatures, (..., 1), gives each row its own.
    """
    # Centred before the division: two large logits differ exactly, their rounded quotients do not.
    centred = logits - logits.detach().amax(dim=-1, keepdim=True)
    return F.log_softmax(centred / temperature, dim=-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row, (..., C) log-probabilities -> (...), differentiable in both.

    Summed as p (e^d - 1 - d) with d = log q - log p. That equals the usual -sum(p d), since p and q both sum
    to one, but no term is negative, p = q gives exactly 0 with an exactly zero gradient, and the rounding of
    d enters multiplied by q - p: at temperature T the result times T^2 is off by about T eps, the usual sum
    by T^2 eps. Measured in float32, ten classes, relative: 4e-6 against 6e-3 at T = 1e3, 3e-8 for both at 4.

    0 log 0 is 0, also where q is 0 too; a class with p > 0 and q = 0 makes the divergence +inf.
    """
    p, q = log_p.exp(), log_q.exp()
    # Where p is 0 the term is q: any finite d makes p d zero, and 1 selects q - p below.
    d = torch.where(p > 0, log_q - log_p, 1.0)
    # q - p, not as a difference where it would cancel. The clamp keeps the branch not taken, and so its
    # gradient, finite.
    surplus = torch.where(d < 1, p * torch.expm1(d.clamp(max=1.0)), q - p)
    return (surplus - p * d).sum(dim=-1)


def mean_times_squared(rows: Tensor, temperature: float) -> Tensor:
    """The mean of all rows times temperature^2, (...) -> ().

    Softened gradients shrink as 1 / temperature^2; the factor keeps the balance with a task loss where it is
    (Hinton et al. 2015, section 2).
    """
    return rows.mean() * (temperature * temperature)
