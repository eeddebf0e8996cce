"""Distillation by correlation, DIST (Huang et al. 2022, arXiv 2205.10536)."""

from __future__ import annotations

import torch
from torch import Tensor

from dotkd.losses._divergence import check_weights, log_probabilities, prepare


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 4.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """T^2 (beta L_inter + gamma L_intra), the paper's equation 10 without the task loss.

    With the N samples' P = softmax(teacher_logits / T) and Q = softmax(student_logits / T), both (N, C), and
    d(u, v) = 1 - r(u, v), r Pearson's correlation (equations 6 to 9):

        L_inter = mean over samples i of d(Q_i, P_i)          row with row: the classes of one sample
        L_intra = mean over classes j of d(Q_:j, P_:j)        column with column: the samples of one class

    T and T^2 are those of the implementations in use; the authors' own file has neither. A correlation's gradient
    does not shrink as KL's does, so that T weighs the loss as well as softening it.

    Neither term changes when a row (a column) is shifted or stretched: the student copies relations, not
    values. d lies in [0, 2] and is computed as |u - v|^2 / 2 of the two unit vectors, which loses no digits
    where they agree.

    A correlation with a vector that does not vary is undefined. Such a pair is left out of its mean, and
    where no pair is left the term is 0: L_intra of a single sample is 0, and so is L_inter of a student that
    gives every class one value. (The official code adds 1e-8 below the fraction, by which such a pair counts
    as 1, without a gradient, and rarely predicted classes are pulled towards 1.) What differs by no more than
    rounding counts as not varying. Two classes correlate by +1 or -1: L_inter has no gradient there.

    Args:
        student_logits: (..., C), C >= 2; every leading index is a sample, all samples form the batch.
        teacher_logits: (..., C). The loss is differentiable in them as well: detach them where the teacher is
            fixed. -inf masks a class: on both sides it is left out, on one side its probability is 0.
        temperature: T > 0, dimensionless; the paper uses 4 on CIFAR-100 and 1 on ImageNet.
        beta: weight of L_inter, >= 0.
        gamma: weight of L_intra, >= 0.

    Returns:
        A scalar; float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: shapes that differ, fewer than two classes, no sample, `temperature` not positive and
            finite, a weight negative or not finite.

    >>> import torch
    >>> teacher = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    >>> loss = dist(teacher.flip(0), teacher, temperature=1.0, beta=0.0)
    >>> round(loss.item(), 4)  # 1 - r, r = -1 for two of the classes; the third never varies
    2.0
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature)
    check_weights(beta=beta, gamma=gamma)
    student, teacher = (z.reshape(-1, z.shape[-1]) for z in (student, teacher))
    present = ~(torch.isneginf(student) & torch.isneginf(teacher))
    q = log_probabilities(student, temperature).exp()
    p = log_probabilities(teacher, temperature).exp()
    inter = _mean_distance(q, p, present)
    intra = _mean_distance(q.T, p.T, present.T)
    return (beta * inter + gamma * intra) * (temperature * temperature)


def _mean_distance(x: Tensor, y: Tensor, present: Tensor) -> Tensor:
    """The mean of 1 - r over the pairs of rows that have a correlation, (R, K) twice -> (); 0 if none has."""
    u, flat_x = _unit(x, present)
    v, flat_y = _unit(y, present)
    distances = (u - v).square().sum(dim=-1) / 2
    defined = ~(flat_x | flat_y)
    return torch.where(defined, distances, 0.0).sum() / defined.sum().clamp(min=1)


def _unit(x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Rows centred and brought to length 1 over what is present, (R, K); whether a row does not vary, (R,)."""
    count = present.sum(dim=-1, keepdim=True).clamp(min=1)
    x = torch.where(present, x, 0.0)
    deviation = torch.where(present, x - x.sum(dim=-1, keepdim=True) / count, 0.0)
    size = deviation.detach().abs().amax(dim=-1, keepdim=True)
    limits = torch.finfo(x.dtype)
    # NaN is not flat: it must come out.
    flat = (size <= 8 * limits.eps * x.detach().abs().amax(dim=-1, keepdim=True)) | (size < limits.tiny)
    # The length does not matter, so that rare classes may be scaled to where squares do not underflow.
    scaled = deviation / torch.where(flat, 1.0, size)
    length = torch.where(flat, 1.0, scaled.square().sum(dim=-1, keepdim=True)).sqrt()
    return torch.where(flat, 0.0, scaled / length), flat.squeeze(-1)
