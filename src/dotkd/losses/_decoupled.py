"""A softened distribution in two halves: the target against the rest, and the rest among themselves.

Both halves come from log-odds and masked logits, so that a probability which has underflowed costs nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from dotkd.losses._divergence import kl_divergence


def halves(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of every sample, (...) each: KL from the student's half to the teacher's.

    Args:
        student: (..., C) logits.
        teacher: (..., C) logits.
        target: (...) class indices in [0, C).
        temperature: T > 0.
        kept: (..., C) boolean, the classes that NCKD compares; the target among them does not count.

    NCKD is 0 where the rest is empty on one side.
    """
    odds_p, rest_p, empty_p = split(teacher, target, temperature)
    odds_q, rest_q, empty_q = split(student, target, temperature)
    tckd = kl_divergence(_two_class(odds_p), _two_class(odds_q))
    if kept is not None:
        _, rest_p, empty_p = split(teacher.masked_fill(~kept, -math.inf), target, temperature)
        _, rest_q, empty_q = split(student.masked_fill(~kept, -math.inf), target, temperature)
    undefined = empty_p | empty_q
    nckd = kl_divergence(rest_p.masked_fill(undefined, 0.0), rest_q.masked_fill(undefined, 0.0))
    return tckd, nckd


def split(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
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


def check_target(target: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a target that does not fit logits of this shape."""
    if target.dtype != torch.int64:
        raise TypeError(f"expected `target` of dtype torch.int64, got {target.dtype}")
    if tuple(target.shape) != shape[:-1]:
        raise ValueError(
            f"expected `target` of shape {shape[:-1]}, the logits' without the classes, got {tuple(target.shape)}"
        )
    if torch.compiler.is_compiling() or isinstance(target, FakeTensor) or target.device.type != "cpu":
        return
    # Under vmap the values are in a wrapper, which may be looked into if nothing computed from it goes on.
    low, high = (int(bound) for bound in torch.func.debug_unwrap(target).aminmax())
    if low < 0 or high >= shape[-1]:
        wrong = low if low < 0 else high
        raise ValueError(f"expected `target` in [0, {shape[-1]}), the number of classes, got {wrong}")
