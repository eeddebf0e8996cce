"""Token-adaptive distillation of sequences, AdaKD (Xie et al. 2025, arXiv 2510.11615)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dotkd.losses._divergence import check_weights, log_probabilities, prepare
from dotkd.losses.jsd import divergence


def adakd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    mask: Tensor | None = None,
    ratio: float = 1.0,
    temperature: float = 1.0,
    strength: float = 0.5,
    beta: float = 1.0,
) -> Tensor:
    """Mean over the hardest tokens of tau_i^2 D(softmax(teacher_i / tau_i), softmax(student_i / tau_i)).

    For the i-th token that `mask` counts, with p and q the teacher's and the student's softmax at temperature 1:

        s_i   = |sqrt(p) - sqrt(q)|_2 / sqrt(2)             how hard it is, in [0, 1]        (equation 3)
        I     = the `ratio` of the tokens with the largest s_i                               (equations 4, 5)
        h_i   = tanh(log(s_i / median of s over I))         relative, in [-1, 1]             (equation 9)
        tau_i = temperature exp(-strength h_i)              low for hard tokens              (equation 10)

    Focus and temperatures are constants to the gradient. D is JSD_beta as in `jsd`: the paper's own choice is
    reverse KL, KL(q || p), beta = 1; beta = 0 is forward KL. `TokenFocus` adapts the ratio.

    With n tokens I holds n times `ratio` of them, rounded, and at least one; of equals the first. A batch without a
    token has the loss 0. If the median is 0, tokens with s_i = 0 keep the base temperature (h_i = 0).

    Deviations. The paper writes the median of s without a set; its official code and figure 4 take the
    selected tokens, as we do, by torch's lower median where we average the two in the middle. The official
    code divides the logits by the base temperature both before and within; here it enters once.

    Args:
        student_logits: (..., V), V >= 2, usually (B, L, V); every leading index is a token.
        teacher_logits: (..., V). The loss is differentiable in them as well: detach them where the teacher is
            fixed. -inf masks an entry of the vocabulary, as in `jsd`.
        mask: (...) boolean, true where a token counts; None counts all. Whatever logits the others hold, NaN
            included, changes neither the loss nor a gradient.
        ratio: the share of the tokens to learn from, in (0, 1].
        temperature: the base temperature > 0, dimensionless.
        strength: the paper's c, >= 0: tau_i stays within temperature exp(+-strength).
        beta: in [0, 1], the divergence.

    Returns:
        A scalar; float32 for half-precision logits, which are lifted first.

    Raises:
        TypeError: logits that are not floating point, a `mask` that is not boolean.
        ValueError: shapes that differ, fewer than two entries in the vocabulary, no token axis of length > 0,
            `temperature` not positive and finite, `ratio` outside (0, 1], `strength` negative or not finite, `beta`
            outside [0, 1].

    >>> import torch
    >>> student, teacher = torch.tensor([[[2.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[0.0, 2.0], [9.0, 9.0]]])
    >>> adakd(student, teacher, ratio=0.5)  # the second token has nothing to teach; 2 tanh(1)
    tensor(1.5232)
    """
    student, teacher = prepare(student_logits, teacher_logits, temperature)
    check_weights(strength=strength)
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"expected `ratio` in (0, 1], got {ratio}")
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"expected `beta` in [0, 1], got {beta}")
    counts = _checked(mask, student).flatten()
    # Zeroed before anything is computed of them: a NaN that is only dropped later still spoils gradients.
    student, teacher = (z.reshape(-1, z.shape[-1]).masked_fill(~counts.unsqueeze(-1), 0.0) for z in (student, teacher))
    with torch.no_grad():
        chosen, median, difficulty = _hardest(student, teacher, counts, ratio)
        # tanh(log(s / m)) = (s^2 - m^2) / (s^2 + m^2), which needs no logarithm of 0.
        above, scale = difficulty.square() - median.square(), difficulty.square() + median.square()
        relative = torch.where(scale > 0, above / torch.where(scale > 0, scale, 1.0), 0.0)
        tau = temperature * torch.exp(-strength * relative)
    log_p, log_q = (log_probabilities(z, tau.unsqueeze(-1)) for z in (teacher, student))
    rows = torch.where(chosen, divergence(log_p, log_q, beta), 0.0) * tau.square()
    return rows.sum() / chosen.sum().clamp(min=1)


class TokenFocus:
    """The ratio of `adakd`, adapted to how the student's loss moves (equations 6 and 7).

    >>> focus = TokenFocus(warmup=1, tolerance=0.05, step=0.1, decay=0.0)
    >>> for loss in (1.0, 0.5, 0.5, 0.9):
    ...     focus.update(loss)
    ...     print(round(focus.ratio, 2))
    1.0
    0.9
    0.9
    0.99

    Call `update` once a training step with the step's loss; pass `ratio` to `adakd`. With the moving average
    a <- decay a + (1 - decay) loss, which starts as the first loss, and a reference R:

        a < R (1 - tolerance):  ratio <- ratio (1 - step)            it learns: only harder tokens; R <- a
        a > R (1 + tolerance):  ratio <- min(1, ratio (1 + step))    it struggles: more tokens; R <- a

    For the first `warmup` steps the ratio is 1; R starts as the average at their end. The ratio stays at or
    above `minimum`, 0.1 as in the official code; the paper sets no bound.

    Args:
        warmup: steps with ratio 1, >= 0. The paper warms up; the official scripts do it for 5 % of the steps.
        tolerance: the paper's epsilon, in [0, 1).
        step: the paper's delta, in (0, 1).
        decay: the paper's beta, in [0, 1).
        minimum: in (0, 1].

    Raises ValueError for a value outside its range.
    """

    def __init__(
        self,
        *,
        warmup: int,
        tolerance: float = 0.05,
        step: float = 0.05,
        decay: float = 0.99,
        minimum: float = 0.1,
    ) -> None:
        if warmup < 0:
            raise ValueError(f"expected `warmup` >= 0, got {warmup}")
        if not 0.0 <= tolerance < 1.0:
            raise ValueError(f"expected `tolerance` in [0, 1), got {tolerance}")
        if not 0.0 < step < 1.0:
            raise ValueError(f"expected `step` in (0, 1), got {step}")
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"expected `decay` in [0, 1), got {decay}")
        if not 0.0 < minimum <= 1.0:
            raise ValueError(f"expected `minimum` in (0, 1], got {minimum}")
        self.warmup, self.tolerance, self.step, self.decay, self.minimum = warmup, tolerance, step, decay, minimum
        self.ratio = 1.0
        self._average: float | None = None
        self._reference: float | None = None
        self._steps = 0

    def update(self, loss: float | Tensor) -> None:
        """Take in the loss of a step, reduced over all ranks; its value is read, so a device is waited for.

        A loss that is not finite is passed over: the optimizers of this library skip such a step as well.
        """
        value = float(loss)
        if not math.isfinite(value):
            return
        self._steps += 1
        average = value if self._average is None else self.decay * self._average + (1.0 - self.decay) * value
        self._average = average
        if self._reference is None:
            if self._steps >= self.warmup:
                self._reference = average
        elif average < self._reference * (1.0 - self.tolerance):
            self.ratio, self._reference = max(self.minimum, self.ratio * (1.0 - self.step)), average
        elif average > self._reference * (1.0 + self.tolerance):
            self.ratio, self._reference = min(1.0, self.ratio * (1.0 + self.step)), average

    def state_dict(self) -> dict[str, Any]:
        """What changes in training; numbers and None."""
        return {
            "ratio": self.ratio,
            "average": self._average,
            "reference": self._reference,
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave. Raises ValueError, and changes nothing, where keys or the ratio are wrong."""
        if set(state) != set(self.state_dict()):
            raise ValueError(f"expected the keys {', '.join(self.state_dict())}, got {', '.join(map(str, state))}")
        if not 0.0 < state["ratio"] <= 1.0:
            raise ValueError(f"expected `ratio` in (0, 1], got {state['ratio']}")
        self.ratio, self._steps = state["ratio"], state["steps"]
        self._average, self._reference = state["average"], state["reference"]


def _checked(mask: Tensor | None, logits: Tensor) -> Tensor:
    """The mask, on the logits' device, all true where none is given; refused where it does not fit them."""
    shape = tuple(logits.shape)
    if mask is None:
        return torch.ones(shape[:-1], dtype=torch.bool, device=logits.device)
    if mask.dtype != torch.bool:
        raise TypeError(f"expected `mask` of dtype torch.bool, got {mask.dtype}")
    if tuple(mask.shape) != shape[:-1]:
        raise ValueError(
            f"expected `mask` of shape {shape[:-1]}, the logits' without the vocabulary, got {tuple(mask.shape)}"
        )
    return mask.to(logits.device)


def _hardest(student: Tensor, teacher: Tensor, counts: Tensor, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the K tokens are learned from, (K,); the median of their difficulty, (); all difficulties, (K,).

    No value is read: the number of tokens stays a tensor.
    """
    roots = [torch.exp(log_probabilities(z, 1.0) / 2) for z in (student, teacher)]
    difficulty = (roots[0] - roots[1]).square().sum(dim=-1).div(2).sqrt()
    number = (counts.sum() * ratio + 0.5).floor().long().clamp(min=1)
    ordered, order = difficulty.masked_fill(~counts, -1.0).sort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(order.numel(), device=order.device))
    middle = torch.stack(((number - 1) // 2, number // 2))
    return (rank < number) & counts, ordered[middle].mean(), difficulty
