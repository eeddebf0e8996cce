"""Normalised knowledge distillation, NKD (Yang et al. 2023, arXiv 2303.13005)."""

from __future__ import annotations

import torch
from torch import Tensor

from dotkd.losses._decoupled import check_target, split
from dotkd.losses._divergence import check_weights, log_probabilities, prepare


def nkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    gamma: float = 1.5,
) -> Tensor:
    """Mean over samples of -p_t log q_t - gamma T^2 sum_{i != t} p^_i log q^_i, the paper's equation 6.

    For one sample with target t, p = softmax(teacher_logits), q = softmax(student_logits), and

        p^_i = softmax over i != t of teacher_logits_i / T          the rest among themselves, renormalised
        q^_i = softmax over i != t of student_logits_i / T

    The temperature T divides the rest alone; the target's probabilities are taken at temperature 1.

    Both terms are cross-entropies: where the student equals the teacher the loss is not 0 but
    -p_t log p_t + gamma T^2 H(p^), and the first term still falls as q_t rises to 1.

    Two classes leave one in the rest: the second term and its gradient are exactly 0. It also counts as 0 for
    a sample whose rest is masked by -inf altogether, where p^ does not exist.

    Args:
        student_logits: (..., C), C >= 2; every leading index is a sample, (C,) is one sample.
        teacher_logits: (..., C). The loss is differentiable in them as well (the official code holds p_t
            fixed): detach them where the teacher is fixed. They may mask classes by -inf; a class that the
            student alone masks makes the loss +inf.
        target: (...) int64 class indices in [0, C). The range is checked on the CPU only, and not while
            compiling: reading values would stall another device.
        temperature: T > 0, dimensionless; the paper's lambda. 1 on ImageNet, 3 in the official CIFAR-100 file.
        gamma: weight of the second term, >= 0; 1.5 on ImageNet, 3.5 in the official CIFAR-100 file.

    Returns:
        A scalar; float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point, a `target` that is not int64.
        ValueError: shapes that differ, fewer than two classes, no sample, a target out of range,
            `temperature` not positive and finite, `gamma` negative or not finite.

    >>> import torch
    >>> zeros = torch.zeros(1, 3)
    >>> nkd(zeros, zeros, torch.tensor([0]))  # log(3) / 3 + 1.5 log(2)
    tensor(1.4059)
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature)
    check_weights(gamma=gamma)
    check_target(target, tuple(student.shape))

    index = target.unsqueeze(-1)
    log_p_t = log_probabilities(teacher, 1.0).gather(-1, index)
    log_q_t = log_probabilities(student, 1.0).gather(-1, index)
    _, rest_p, empty_p = split(teacher, target, temperature)
    _, rest_q, empty_q = split(student, target, temperature)
    undefined = empty_p | empty_q
    rest = _cross_entropy(rest_p.masked_fill(undefined, 0.0), rest_q.masked_fill(undefined, 0.0))
    return (_cross_entropy(log_p_t, log_q_t) + gamma * rest * (temperature * temperature)).mean()


def _cross_entropy(log_p: Tensor, log_q: Tensor) -> Tensor:
    """-sum p log q of each row, (..., K) log-probabilities -> (...); 0 log 0 is 0, p log 0 is +inf."""
    p = log_p.exp()
    return (p * torch.where(p > 0, -log_q, 0.0)).sum(dim=-1)
