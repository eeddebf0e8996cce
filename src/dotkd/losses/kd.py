"""Knowledge distillation with softened probabilities (Hinton, Vinyals & Dean 2015, arXiv 1503.02531)."""

from __future__ import annotations

from torch import Tensor

from dotkd.losses._divergence import kl_divergence, log_probabilities, mean_times_squared, prepare


def kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Mean over samples of T^2 KL(p || q), p = softmax(teacher_logits / T), q = softmax(student_logits / T).

    With N samples the gradient with respect to the student's logits is T (q - p) / N (the paper's equation 2,
    times T^2). The paper matches q to p by cross-entropy; KL differs from it by the teacher's entropy, which
    the student cannot change: the same gradient, and a loss of zero where the student equals the teacher.

    Args:
        student_logits: (..., C), C >= 2; every leading index is a sample, (C,) is one sample.
        teacher_logits: (..., C). The loss is differentiable in them as well, for teachers that learn: detach
            them where the teacher is fixed. They may mask classes by -inf; a class that the student alone
            masks makes the loss +inf.
        temperature: T > 0, dimensionless. Rounding grows with it: float32 is off by 1e-5 of the loss at 1e3.

    Returns:
        A scalar; float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: shapes that differ, fewer than two classes, no sample, `temperature` not positive and
            finite.

    >>> import torch
    >>> kd(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), temperature=1.0)  # 2 tanh(1)
    tensor(1.5232)
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature)
    log_p = log_probabilities(teacher, temperature)
    log_q = log_probabilities(student, temperature)
    return mean_times_squared(kl_divergence(log_p, log_q), temperature)
