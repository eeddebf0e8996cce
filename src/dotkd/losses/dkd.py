"""Decoupled knowledge distillation (Zhao et al. 2022, arXiv 2203.08679)."""

from __future__ import annotations

from torch import Tensor

from dotkd.losses._decoupled import check_target, halves
from dotkd.losses._divergence import check_weights, mean_times_squared, prepare


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
    check_weights(alpha=alpha, beta=beta)
    check_target(target, tuple(student.shape))
    tckd, nckd = halves(student, teacher, target, temperature)
    return mean_times_squared(alpha * tckd + beta * nckd, temperature)
