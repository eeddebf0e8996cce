"""Consistency-regularised logit distillation, CRLD (Zhang et al. 2024, arXiv 2412.16493)."""

from __future__ import annotations

from torch import Tensor

from dotkd.losses._divergence import check_weights, kl_divergence, log_probabilities, mean_times_squared
from dotkd.losses._views import prepare_views


def crld(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    student_strong: Tensor,
    teacher_strong: Tensor,
    temperature: float = 4.0,
    within: float = 2.0,
    cross: float = 0.5,
    threshold_weak: float = 0.9,
    threshold_strong: float = 0.2,
) -> Tensor:
    """Mean over samples of T^2 (within m_w (KL(P||Q) + KL(P'||Q')) + cross m_s (KL(P||Q') + KL(P'||Q))).

    P = softmax(teacher / T) and Q = softmax(student / T) of a sample's weak view, P' and Q' of its strong
    view. Within a view the student matches the teacher on what both see; across views it matches what the
    teacher made of the other view. Only what the teacher is sure of is distilled:

        m_w = [max_k p_k >= threshold_weak]         p = softmax(teacher), weak view, temperature 1
        m_s = [max_k p'_k >= threshold_strong]      p' = softmax(teacher), strong view, temperature 1

    m_w selects both terms within, m_s both terms across, as in the official code. A sample that is not
    selected counts as 0 in the mean.

    Args:
        student_logits: (..., C), C >= 2, of the weak view; every leading index is a sample.
        teacher_logits: (..., C), of the weak view. The loss is differentiable in them as well: detach them
            where the teacher is fixed. They may mask classes by -inf; a class that the student alone masks
            makes the loss of a selected sample +inf.
        student_strong: (..., C), of the strong view of the same samples.
        teacher_strong: (..., C), of the strong view of the same samples.
        temperature: T > 0, dimensionless.
        within: weight of the terms within a view, >= 0.
        cross: weight of the terms across views, >= 0.
        threshold_weak: in [0, 1]; 0 selects every sample.
        threshold_strong: in [0, 1]; 0 selects every sample.

    Returns:
        A scalar; float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: shapes that differ, fewer than two classes, no sample, `temperature` not positive and
            finite, a weight negative or not finite, a threshold outside [0, 1].

    >>> import torch
    >>> s, t = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> crld(s, t, student_strong=t, teacher_strong=t, temperature=1.0, threshold_weak=0.8)  # 2.5 times 2 tanh(1)
    tensor(3.8080)
    """
    views = prepare_views(student_logits, teacher_logits, student_strong, teacher_strong, temperature)
    check_weights(within=within, cross=cross)
    for name, threshold in (("threshold_weak", threshold_weak), ("threshold_strong", threshold_strong)):
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"expected `{name}` in [0, 1], got {threshold}")
    log_q, log_p, log_q_strong, log_p_strong = (log_probabilities(z, temperature) for z in views)
    in_view = kl_divergence(log_p, log_q) + kl_divergence(log_p_strong, log_q_strong)
    across = kl_divergence(log_p, log_q_strong) + kl_divergence(log_p_strong, log_q)
    unsure_weak = _unsure(views.teacher_weak, threshold_weak)
    unsure_strong = _unsure(views.teacher_strong, threshold_strong)
    rows = within * in_view.masked_fill(unsure_weak, 0.0) + cross * across.masked_fill(unsure_strong, 0.0)
    return mean_times_squared(rows, temperature)


def _unsure(teacher: Tensor, threshold: float) -> Tensor:
    """Whether the largest probability of each row stays below the threshold, (N, C) -> (N,)."""
    # NaN is not below it, and so comes out in the loss.
    return log_probabilities(teacher.detach(), 1.0).exp().amax(dim=-1) < threshold
