"""A few classes of a distribution, chosen so that what is kept is unbiased.

The k largest probabilities alone are a biased teacher: renormalised they are too sure of themselves, however long one
trains (arXiv 2503.16870, which samples classes instead). Here the largest are kept as they are and the rest is sampled
without replacement, each class with a probability in proportion to its own: systematic sampling (Madow, Annals of
Mathematical Statistics 20, 1949) weighted by Horvitz and Thompson (JASA 47, 1952).

With p_1 >= p_2 >= ... >= p_C, the tail m_h = p_{h+1} + ... + p_C, and u uniform in [0, 1):

    h      = the smallest number in 0..k-1 with (k - h) p_{h+1} <= m_h       (h = k-1 always does)
    share  = m_h / (k - h)
    keep j <= h, with p^_j = p_j
    keep j >  h where one of u share, (u+1) share, ..., (u+k-h-1) share falls into [p_{h+1} + ... + p_{j-1},
                          p_{h+1} + ... + p_j), with p^_j = share; all others have p^_j = 0

No tail class is wider than the step, so none is met twice: k different classes are kept. Class j of the tail is kept
with probability p_j / share, so E p^_j = p_j for every class, and the p^_j add up to 1 for every u.

What that makes unbiased: anything linear in p. The gradient of T^2 KL(p || q) in the student's logits, T (q - p) for
p = softmax(z / T), is; hence its expectation under p^ is the gradient of the full distribution exactly. The loss
itself is not: it is larger by T^2 times what p^ has less of entropy, which does not depend on the student. Nor is
softmax(z / T') at another temperature T', which is not linear in p: p has to be taken at the temperature of the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dotkd.data.draws import numbers_of_views


def sampled(probabilities: Tensor, count: int, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The classes that are kept, (M, count) int64, different in each row, and their p^, (M, count) float64.

    probabilities: (M, C), rows that add up to 1, C > count >= 1. uniform: (M,) float64, u.
    """
    ordered, classes = probabilities.double().sort(dim=1, descending=True, stable=True)
    up_to = ordered.cumsum(1)
    before = torch.cat([torch.zeros_like(up_to[:, :1]), up_to[:, :-1]], 1)[:, :count]
    tail = (up_to[:, -1:] - before).clamp(min=0)  # m_0 ... m_{k-1}
    slots = torch.arange(count, device=ordered.device)
    heavy = ordered[:, :count] * (count - slots) > tail  # true for h = 0, 1, ... until the first that will do
    head = heavy.long().cumprod(1).sum(1, keepdim=True).clamp(max=count - 1)
    share = tail.gather(1, head) / (count - head)
    points = before.gather(1, head) + (uniform.double().unsqueeze(1) + slots - head) * share
    met = torch.searchsorted(up_to, points.contiguous(), right=True)
    # By rounding alone a class may be met twice, or the end be passed: the next one stands in for it.
    rising = torch.where(slots < head, slots, met) - slots
    places = torch.minimum(rising.cummax(1).values + slots, ordered.shape[1] - count + slots)
    return classes.gather(1, places), torch.where(slots < head, ordered[:, :count], share)


def uniform(index: Tensor, view: Tensor) -> Tensor:
    """u of each record, (B,) float64 in [0, 1): a function of sample `index` and view `view`, (B,) int64 each."""
    # The numbers of a view that is never shown, so that u has nothing to do with what is: those are at least 0.
    return numbers_of_views(index, ~view, 1)[:, 0]
