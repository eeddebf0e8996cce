"""Logit standardisation (Sun et al. 2024, arXiv 2403.01427): the Z-score in front of the softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from dotkd.losses._divergence import prepare
from dotkd.losses.kd import kd


def standardise(logits: Tensor) -> Tensor:
    """(z - mean(z)) / sigma(z) of every row, (..., C) -> (..., C): the paper's algorithm 1 without its temperature.

    mean and sigma run over the classes, sigma^2 = sum_j (z_j - mean)^2 / C. The base temperature tau of the
    paper is the `temperature` of whatever objective follows, so that any objective combines with it:

        kd(standardise(s), standardise(t), temperature=2.0)                  `ls_kd`
        dkd(standardise(s), standardise(t), target, temperature=2.0)

    and a `Distiller` takes that as its method:

        def ls_dkd(student, teacher, target, *, temperature=2.0, alpha=1.0, beta=8.0):
            return dkd(standardise(student), standardise(teacher), target,
                       temperature=temperature, alpha=alpha, beta=beta)

    The result has mean 0 and standard deviation 1, whatever shift and positive stretch the logits have, so
    that the student need not match the teacher's range. A row that does not vary becomes 0, with gradient 0.

    Deviation from the official code: it divides by the sample standard deviation (C - 1 below the sum) plus
    1e-7, the paper by the population's. The two differ by a factor sqrt(C / (C - 1)): 0.5 % for 100 classes.

    Args:
        logits: (..., C), C >= 2. Classes masked by -inf stay so and enter neither mean nor sigma.

    Returns:
        (..., C), float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: fewer than two classes, no sample.

    >>> import torch
    >>> standardise(torch.tensor([10.0, 10.0, 30.0, 30.0]))
    tensor([-1., -1.,  1.,  1.])
    """
    if not logits.is_floating_point():
        raise TypeError(f"expected floating-point `logits`, got {logits.dtype}")
    shape = tuple(logits.shape)
    if not shape or shape[-1] < 2:
        raise ValueError(f"expected logits of shape (..., classes) with at least 2 classes, got {shape}")
    if 0 in shape:
        raise ValueError(f"expected at least one sample, got logits of shape {shape}")
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    masked = torch.isneginf(z)
    count = (~masked).sum(dim=-1, keepdim=True).clamp(min=1)
    # Centred on the peak first: two large logits differ exactly, and equal ones by exactly 0.
    z = (z - z.detach().amax(dim=-1, keepdim=True)).masked_fill(masked, 0.0)
    # Brought to size 1, so that no square leaves the range. The Z-score does not depend on the size.
    size = z.detach().abs().amax(dim=-1, keepdim=True)
    flat = size < torch.finfo(z.dtype).tiny
    z = z / torch.where(flat, 1.0, size)
    z = (z - z.sum(dim=-1, keepdim=True) / count).masked_fill(masked, 0.0)
    variance = z.square().sum(dim=-1, keepdim=True) / count
    z = torch.where(flat, 0.0, z / torch.where(flat, 1.0, variance).sqrt())
    return z.masked_fill(masked, -torch.inf)


def ls_kd(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    """`kd` of standardised logits: mean over samples of T^2 KL(softmax(Z(teacher) / T) || softmax(Z(student) / T)).

    Z is `standardise`. The paper weighs it by 9 on CIFAR-100, beside cross-entropy at 0.1.

    Args:
        student_logits: (..., C), C >= 2; every leading index is a sample, (C,) is one sample.
        teacher_logits: (..., C). The loss is differentiable in them as well: detach them where the teacher is
            fixed. They may mask classes by -inf; a class that the student alone masks makes the loss +inf.
        temperature: the base temperature tau > 0, dimensionless, in units of the logits' standard deviation.

    Returns:
        A scalar; float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point.
        ValueError: shapes that differ, fewer than two classes, no sample, `temperature` not positive and
            finite.

    >>> import torch
    >>> ls_kd(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 20.0]]), temperature=1.0)  # 2 tanh(1): size is gone
    tensor(1.5232)
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature)
    return kd(standardise(student), standardise(teacher), temperature=temperature)
