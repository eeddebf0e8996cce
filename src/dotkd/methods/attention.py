"""Attention transfer (Zagoruyko & Komodakis 2017, arXiv 1612.03928)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted, paired, refuse_one_place, same_size


class AT(nn.Module):
    """Sum over pairs of feature maps of the mean squared difference of their attention maps.

    A map A with C channels has the attention map Q = vec(mean_c |A_c|^p), of one number a place, and

        loss = sum over pairs of mean((Q_S / ||Q_S|| - Q_T / ||Q_T||)^2)

    the activation-based transfer of section 3.1 with F^p_sum. Where the two maps differ in size the larger is pooled to
    the smaller one.

    Deviations: equation 2 takes the 2-norm of the difference; the authors' code, and all results published since, the
    mean of its squares, with a weight of 1000 that belongs to the mean. That is what is done here.

    Args:
        p: power of the activations, >= 1: below, the gradient at an activation of 0 is infinite.

    Raises:
        ValueError: `p` outside its rule, or no pair of maps of more than one pixel: all others agree.
    """

    card = Card(
        title="Attention transfer",
        paper="Zagoruyko & Komodakis 2017, arXiv 1612.03928, section 3.1",
        equation="sum_j mean((Q_S / ||Q_S|| - Q_T / ||Q_T||)^2), Q = vec(mean_c |A_c|^p)",
        distill_weight=1000.0,
        needs=("features",),
    )

    def __init__(self, student: Anatomy, teacher: Anatomy, *, p: float = 2.0) -> None:
        super().__init__()
        if not 1 <= p < math.inf:
            raise ValueError(f"expected `p` >= 1 and finite, got {p}")
        refuse_one_place(student.features, teacher.features, "AT")
        self.p = p

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        losses = [self._loss(*same_size(s, t)) for s, t in paired(student.features, teacher.features)]
        return sum(losses[1:], losses[0])

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(self._attention(student), self._attention(teacher))

    def _attention(self, maps: Tensor) -> Tensor:
        return F.normalize(lifted(maps).abs().pow(self.p).mean(dim=1).flatten(1))
