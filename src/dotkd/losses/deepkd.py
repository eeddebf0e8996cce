"""DeepKD: distillation in two parts for two gradient streams (Huang et al. 2025, arXiv 2505.15133)."""

from __future__ import annotations

import torch
from torch import Tensor

from dotkd.losses._decoupled import check_target, halves
from dotkd.losses._divergence import check_weights, log_probabilities, mean_times_squared, prepare


def deepkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    *,
    progress: float,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float | None = None,
    first: float = 0.05,
    plateau: float = 0.5,
    easy: float = 1 / 3,
    hard: float = 2 / 3,
) -> dict[str, Tensor]:
    """The parts of `kd` that belong to the target class and to the other classes, for a stream each.

    For one sample with target t, p = softmax(teacher_logits / T), q = softmax(student_logits / T):

        target    = T^2 alpha KL((p_t, 1 - p_t) || (q_t, 1 - q_t))
        nontarget = T^2 w KL(p^ || q^),    p^_i = p_i / sum_{j in K} p_j,  i in K       (q^ alike)

    each averaged over the samples. K are the k classes other than t with the teacher's largest logits; both
    sides are masked to them and renormalised (the dynamic top-k mask, section 3.3, equations 8 and 9). k
    grows with training, see `kept_classes`. w = 1 - p_t, or beta where it is given: with all classes in K the
    sum of the parts is `kd` (alpha = 1, no beta), or `dkd` with that alpha and beta.

    The trainer keeps three momentum buffers (section 3.2, equation 7), with the task loss's gradient g_task
    and weight decay lambda:

        v_task      <- (mu + Delta) v_task      + g_task + lambda theta
        v_target    <- (mu - Delta) v_target    + g_target
        v_nontarget <- (mu + Delta) v_nontarget + g_nontarget
        theta       <- theta - lr (v_task + v_target + v_nontarget)

    which is `StreamSGD` with these momenta and `decay_stream="task"`. Streams with a higher ratio of signal to
    noise in their gradient, the task and the other classes, get the larger momentum: the task's has the
    opposite sign to DOT's. Delta is 0.075 on CIFAR-100.

    Deviations from the official code, which departs from the paper: there the task stream runs with the
    target stream's momentum, weight decay acts on the target stream, k is a constant (off by default), the
    target can take a place in K, and w = 1 - p_t multiplies the mean of the batch instead of each sample.

    Args:
        student_logits: (..., C), C >= 2; every leading index is a sample, (C,) is one sample.
        teacher_logits: (..., C). The parts are differentiable in them as well: detach them where the teacher
            is fixed. They may mask classes by -inf; one that the student alone masks makes a part +inf.
        target: (...) int64 class indices in [0, C). The range is checked on the CPU only, and not while
            compiling: reading values would stall another device.
        progress: the share of training that is done, in [0, 1].
        temperature: T > 0, dimensionless.
        alpha: weight of the target part, >= 0.
        beta: weight of the other part, >= 0; None weighs each sample by 1 - p_t, as `kd` does.
        first: the share of the other classes in K at the start, in [0, 1].
        plateau: their share in the middle phase, in [first, 1].
        easy: the progress at which the middle phase begins, in [0, hard].
        hard: the progress at which it ends, in [easy, 1].

    Returns:
        {"target": (), "nontarget": ()}; float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point, a `target` that is not int64.
        ValueError: shapes that differ, fewer than two classes, no sample, a target out of range,
            `temperature` not positive and finite, a weight negative or not finite, `progress` outside [0, 1],
            a share or phase outside its range.

    >>> import torch
    >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> deepkd(student, teacher, torch.tensor([1]), temperature=1.0, progress=1.0)  # two classes: kd and nothing
    {'target': tensor(1.5232), 'nontarget': tensor(0.)}
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature)
    check_weights(alpha=alpha, **({} if beta is None else {"beta": beta}))
    check_target(target, tuple(student.shape))
    k = kept_classes(student.shape[-1], progress, first=first, plateau=plateau, easy=easy, hard=hard)

    kept = _largest_besides(teacher.detach(), target, k) if k < student.shape[-1] - 1 else None
    tckd, nckd = halves(student, teacher, target, temperature, kept)
    weight: Tensor | float = 1.0 if beta is None else beta
    if beta is None:
        weight = -torch.expm1(log_probabilities(teacher, temperature).gather(-1, target.unsqueeze(-1)).squeeze(-1))
    return {
        "target": mean_times_squared(alpha * tckd, temperature),
        "nontarget": mean_times_squared(weight * nckd, temperature),
    }


def kept_classes(
    classes: int,
    progress: float,
    *,
    first: float = 0.05,
    plateau: float = 0.5,
    easy: float = 1 / 3,
    hard: float = 2 / 3,
) -> int:
    """k, how many of the `classes - 1` classes other than the target are compared at this progress.

    Three phases: k grows linearly from the share `first` to `plateau` until `easy`, stays there until `hard`,
    and grows linearly to all of them at the end. k is rounded, and at least 2 of the classes that there are: one
    class alone, renormalised, is certain on both sides and teaches nothing.

    The paper gives the phases, the 5 % at the start and all classes at the end. The plateau is the k that did
    best as a constant, which depends on the data; 0.5 is the 500 of 1000 in the official ImageNet file. Where
    the phases meet is our choice: thirds.

    Raises:
        ValueError: `progress` outside [0, 1]; not 0 <= first <= plateau <= 1 or not 0 <= easy <= hard <= 1.

    >>> [kept_classes(100, progress) for progress in (0.0, 1 / 6, 0.5, 5 / 6, 1.0)]
    [5, 27, 50, 74, 99]
    """
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"expected `progress` in [0, 1], got {progress}")
    if not 0.0 <= first <= plateau <= 1.0:
        raise ValueError(f"expected 0 <= `first` <= `plateau` <= 1, got {first} and {plateau}")
    if not 0.0 <= easy <= hard <= 1.0:
        raise ValueError(f"expected 0 <= `easy` <= `hard` <= 1, got {easy} and {hard}")
    share = plateau
    if progress < easy:
        share = first + (plateau - first) * progress / easy
    elif progress >= 1.0:
        share = 1.0
    elif progress > hard:
        share = plateau + (1.0 - plateau) * (progress - hard) / (1.0 - hard)
    others = classes - 1
    return min(others, max(2, round(share * others)))


def _largest_besides(teacher: Tensor, target: Tensor, k: int) -> Tensor:
    """Which k classes other than the target have the largest logits, (..., C) -> (..., C) boolean."""
    is_target = torch.arange(teacher.shape[-1], device=teacher.device) == target.unsqueeze(-1)
    # topk may fall back on the target only where fewer than k others are unmasked, and `halves` leaves it out.
    chosen = teacher.masked_fill(is_target, -torch.inf).topk(k, dim=-1).indices
    return torch.zeros_like(teacher, dtype=torch.bool).scatter(-1, chosen, True)
