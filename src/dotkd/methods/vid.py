"""Variational information distillation (Ahn et al. 2019, arXiv 1904.05835)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted, paired, same_size


class VID(nn.Module):
    """Sum over pairs of maps of the negative log-likelihood of the teacher's map under a Gaussian given the student's.

    Its mean mu(F_S) depends on the place, its variance v on the channel c alone; both are trained with the student:

        loss = sum over pairs of mean over samples, channels and places of (log v_c + (F_T - mu(F_S))^2 / v_c) / 2
        v_c  = log(1 + exp(alpha_c)) + min_variance

    section 2 up to a constant: -loss bounds the mutual information of the two maps from below. mu is three
    convolutions of one pixel without shift, with ReLU between them and the teacher's number of channels within. Maps
    that differ in size are pooled to the smaller one. The loss has no bound at 0: it falls with log v.

    Deviations: the paper sums over channels and places; the mean, with a weight of 1, is what all results published
    since have used. One of their implementations keeps alpha out of the optimizer by accident; it is trained here, as
    in the paper.

    Args:
        initial_variance: v before training, > min_variance.
        min_variance: what v cannot fall below, > 0.

    Raises:
        ValueError: a value outside its rule.
    """

    card = Card(
        title="Variational information distillation",
        paper="Ahn et al. 2019, arXiv 1904.05835, section 2",
        equation="sum over pairs of mean((log v_c + (F_T - mu(F_S))^2 / v_c) / 2), v_c trained, mu a trained network",
        distill_weight=1.0,
        needs=("features",),
    )

    def __init__(
        self, student: Anatomy, teacher: Anatomy, *, initial_variance: float = 5.0, min_variance: float = 1e-5
    ) -> None:
        super().__init__()
        if not 0 < min_variance < math.inf:
            raise ValueError(f"expected `min_variance` > 0 and finite, got {min_variance}")
        if not min_variance < initial_variance < math.inf:
            raise ValueError(
                f"expected `initial_variance` > min_variance = {min_variance} and finite, got {initial_variance}"
            )
        self.min_variance = min_variance
        channels = [(s[0], t[0]) for s, t in paired(student.features, teacher.features)]
        self.means = nn.ModuleList(_mean_network(s, t) for s, t in channels)
        softened = initial_variance - min_variance
        # The inverse of log(1 + exp(alpha)), in a form that does not overflow.
        alpha = softened + math.log(-math.expm1(-softened))
        self.alphas = nn.ParameterList(nn.Parameter(torch.full((t,), alpha)) for _, t in channels)

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        pairs = paired(student.features, teacher.features)
        losses = [
            self._loss(mean, alpha, *same_size(lifted(s), lifted(t)))
            for mean, alpha, (s, t) in zip(self.means, self.alphas, pairs, strict=True)
        ]
        return sum(losses[1:], losses[0])

    def _loss(self, mean: nn.Module, alpha: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        variance = (F.softplus(alpha) + self.min_variance)[:, None, None]
        error = teacher - lifted(mean(student))
        return (variance.log() + error.square() / variance).mean() / 2


def _mean_network(channels: int, out: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, out, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out, out, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out, out, 1, bias=False),
    )
