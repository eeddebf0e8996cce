"""Generalised Jensen-Shannon divergence, as in GKD (Agarwal et al. 2023, arXiv 2306.13649)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dotkd.losses._divergence import kl_divergence, log_probabilities, mean_times_squared, prepare


def jsd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0, beta: float = 0.5) -> Tensor:
    """Mean over samples of T^2 JSD_beta(p || q), p the teacher's and q the student's softmax(logits / T).

    With the mixture m = beta p + (1 - beta) q, as GKD defines it in section 2:

        JSD_beta = beta KL(p || m) + (1 - beta) KL(q || m)     for 0 < beta < 1
        JSD_0    = KL(p || q)                                  forward KL: `kd`
        JSD_1    = KL(q || p)                                  reverse KL

    At beta = 1/2 it is the Jensen-Shannon divergence, at most log 2.

    The ends are a convention, that of the implementations in use (TRL's GKDTrainer, the Liger kernels). The
    formula itself is 0 there: JSD_beta / beta -> KL(p || q) for beta -> 0, and JSD_beta / (1 - beta) ->
    KL(q || p) for beta -> 1. So near an end the direction is that KL's and the size beta (or 1 - beta) times
    it; the value jumps at the end itself, and a beta near it wants a loss weight that makes up for it.

    Args:
        student_logits: (..., C), C >= 2; every leading index is a sample, (C,) is one sample.
        teacher_logits: (..., C). The loss is differentiable in them as well: detach them where the teacher is
            fixed. -inf masks a class. Masked on one side alone it leaves 0 < beta < 1 finite; the KL that
            divides by the masked probability is +inf (beta = 1 where the teacher masks, 0 where the student).
        temperature: T > 0, dimensionless. Rounding grows with it: float32 is off by 1e-5 of the loss at 1e3.
        beta: the teacher's share of the mixture, in [0, 1].

    Returns:
        A scalar; float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: shapes that differ, fewer than two classes, no sample, `temperature` not positive and
            finite, `beta` outside [0, 1].

    >>> import torch
    >>> student, teacher = torch.tensor([[40.0, 0.0]]), torch.tensor([[0.0, 40.0]])
    >>> jsd(student, teacher, temperature=1.0)  # nothing in common: log 2
    tensor(0.6931)
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature)
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"expected `beta` in [0, 1], got {beta}")
    log_p = log_probabilities(teacher, temperature)
    log_q = log_probabilities(student, temperature)
    return mean_times_squared(divergence(log_p, log_q, beta), temperature)


def divergence(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """JSD_beta(p || q) of each row, (..., C) log-probabilities -> (...), for beta in [0, 1]."""
    if beta == 0.0:
        return kl_divergence(log_p, log_q)
    if beta == 1.0:
        return kl_divergence(log_q, log_p)
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * kl_divergence(log_p, log_m) + (1.0 - beta) * kl_divergence(log_q, log_m)


def _log_mixture(log_p: Tensor, log_q: Tensor, beta: float) -> Tensor:
    """log(beta p + (1 - beta) q), (..., C), for 0 < beta < 1."""
    # logaddexp has no gradient at two -inf: such classes are taken out before it and put back after it.
    masked = torch.isneginf(log_p) & torch.isneginf(log_q)
    log_m = torch.logaddexp(
        log_p.masked_fill(masked, 0.0) + math.log(beta), log_q.masked_fill(masked, 0.0) + math.log1p(-beta)
    )
    return log_m.masked_fill(masked, -math.inf)
