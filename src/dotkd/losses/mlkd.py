"""Multi-level logit distillation, MLKD (Jin, Wang & Lin, CVPR 2023, pages 24276-24285)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dotkd.losses._divergence import kl_divergence, log_probabilities
from dotkd.losses._views import prepare_views


def mlkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    student_strong: Tensor,
    teacher_strong: Tensor,
    temperature: float = 4.0,
    further: Sequence[float] = (2.0, 3.0, 5.0, 6.0),
    quantile: float = 0.5,
) -> Tensor:
    """Sum over temperatures T of L_instance + L_batch + L_class, over T = `temperature` and those in `further`.

    With P = softmax(teacher / T) and Q = softmax(student / T), (N, C), of the weak view, P', Q' of the strong:

        L_instance = T^2 / N (sum_i w_i KL(P_i || Q_i) + sum_i KL(P'_i || Q'_i))     sample by sample
        L_batch    = 1 / N sum_ij w_j ((P P^T - Q Q^T)_ij)^2                         samples among themselves
        L_class    = 1 / C sum_jk v_k ((P^T P - Q^T Q)_jk)^2                         classes among themselves

    (The instance-, batch- and class-level alignment of the paper's section 3.) The last two see the weak view
    alone, as in the official code. w_i is 1 for the samples on which the teacher is least sure in the weak
    view, 0 for the others; v_k is 1 for the classes to which it gives least of the batch:

        w_i = [max_k p_ik <= quantile over i of max_k p_ik]      p = softmax(teacher), temperature 1
        v_k = [sum_i p_ik <= quantile over k of sum_i p_ik]

    Deviations from the official code. It takes the mean of the instance term before it multiplies by w, and
    the sum of the batch and class terms before w and v, so that its masks select nothing and only halve the
    terms; here they select, and the terms keep that size. In the strong view's instance term it reads the weak
    view's logits at temperatures 2 and 6. It also computes class and batch terms of the strong view, which it
    then leaves out; so do we.

    Args:
        student_logits: (..., C), C >= 2, of the weak view; all leading indices together are the batch.
        teacher_logits: (..., C), of the weak view. The loss is differentiable in them as well: detach them
            where the teacher is fixed. A class masked by -inf adds nothing but counts in C and in v's quantile;
            one that the student alone masks makes the loss +inf.
        student_strong: (..., C), of the strong view of the same samples.
        teacher_strong: (..., C), of the strong view of the same samples.
        temperature: T > 0, dimensionless; 4 on CIFAR-100, 1 on ImageNet.
        further: the other temperatures, > 0; may be empty.
        quantile: in [0, 1], interpolated linearly: the share of the samples (classes) that w (v) keeps.

    Returns:
        A scalar; float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: shapes that differ, fewer than two classes, no sample, a temperature not positive and
            finite, `quantile` outside [0, 1].

    >>> import torch
    >>> s, t = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> mlkd(s, t, student_strong=t, teacher_strong=t, temperature=1.0, further=())  # 2 tanh(1) + tanh(1)^2 / 2
    tensor(1.8132)
    """
    views = prepare_views(student_logits, teacher_logits, student_strong, teacher_strong, temperature)
    for other in further:
        if not 0.0 < other < math.inf:
            raise ValueError(f"expected every temperature in `further` > 0 and finite, got {other}")
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"expected `quantile` in [0, 1], got {quantile}")
    student, teacher, student_strong, teacher_strong = views
    p = log_probabilities(teacher.detach(), 1.0).exp()
    rows = _up_to(p.amax(dim=-1), quantile)
    columns = _up_to(p.sum(dim=0), quantile)
    terms: list[Tensor] = []
    for t in (temperature, *further):
        log_p, log_q = log_probabilities(teacher, t), log_probabilities(student, t)
        strong = kl_divergence(log_probabilities(teacher_strong, t), log_probabilities(student_strong, t))
        weak = torch.where(rows, kl_divergence(log_p, log_q), 0.0)
        terms.append((weak + strong).mean() * (t * t))
        p_t, q_t = log_p.exp(), log_q.exp()
        terms.append(_gram_distance(p_t.T, q_t.T, rows))
        terms.append(_gram_distance(p_t, q_t, columns))
    return torch.stack(terms).sum()


def _up_to(values: Tensor, quantile: float) -> Tensor:
    """Which values are at most their quantile, (K,) -> (K,)."""
    return values <= torch.quantile(values, quantile)


def _gram_distance(x: Tensor, y: Tensor, columns: Tensor) -> Tensor:
    """1 / K times the sum of the squares of (x^T x - y^T y) in the chosen columns; x, y: (R, K)."""
    difference = torch.where(columns, x.T @ x - y.T @ y, 0.0)
    return difference.square().sum() / x.shape[-1]
