"""Overhaul of feature distillation (Heo et al. 2019, arXiv 1904.01866)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dotkd import distributed
from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.batch_norm import BatchNorm
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted, paired, same_size


class OFD(nn.Module):
    """Weighted sum over pairs of the partial squared distance of maps in front of their activation.

    With F_S and F_T what the activations at the end of each point receive, r a 1x1 convolution and batch normalisation,
    and m_c the margin of channel c,

        T    = max(F_T, m_c)                                        margin ReLU
        m_c  = E[F_T | F_T < 0, channel c]                          over samples and places
        d    = sum over c and places of 0 where r(F_S) <= T <= 0, else (r(F_S) - T)^2
        loss = sum over pairs l = 1 .. L of 2^(l - L) mean over samples of d

    section 3: where the teacher is silent, any silence of the student's is as good. The pairs count from shallow to
    deep. Maps of different size are pooled to the smaller one before T and d.

    The expectation is a running mean over all batches seen in training, the present one included, of the maps that are
    compared; it is kept as a number and a sum of negative values a channel. Values that are not finite are left out. A
    channel that was never negative has the margin 0, as all have in a method that was never trained. In eval mode the
    margins stand still. They are the same in several processes as in one.

    Deviations: paper and authors' code derive m_c from the weights of the batch normalisation in front of the
    activation, as the mean of a truncated normal distribution; the running mean is the expectation itself and needs no
    such layer. Their teacher runs in training mode, normalised by the batch; here it is in eval mode. The weights of
    the stages are those of the authors' code. There the sum over samples is divided by batch size and 1000, which is
    the weight of 0.001 here (10000 for ImageNet, which is 0.0001).
    """

    card = Card(
        title="Overhaul of feature distillation",
        paper="Heo et al. 2019, arXiv 1904.01866, section 3",
        equation="sum_l 2^(l - L) d(r(F_S), max(F_T, m)), d = 0 where r(F_S) <= T <= 0, else (r(F_S) - T)^2",
        distill_weight=0.001,
        needs=("preactivations",),
    )

    def __init__(self, student: Anatomy, teacher: Anatomy) -> None:
        super().__init__()
        channels = [(s[0], t[0]) for s, t in paired(student.preactivations, teacher.preactivations)]
        self.connectors = nn.ModuleList(_connector(s, t) for s, t in channels)
        self.margins = nn.ModuleList(Margin(t) for _, t in channels)

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        pairs = paired(student.preactivations, teacher.preactivations)
        losses: list[Tensor] = []
        for (s, t), connector, margin in zip(pairs, self.connectors, self.margins, strict=True):
            s, t = same_size(lifted(connector(s)), lifted(t))
            losses.append(partial_distance(s, torch.maximum(t, margin(t))))
        total = losses[0]
        for loss in losses[1:]:
            total = total / 2 + loss
        return total


class Margin(nn.Module):
    """The running mean of the negative values of each channel."""

    count: Tensor
    total: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(channels, dtype=torch.int64))
        self.register_buffer("total", torch.zeros(channels))

    @torch.no_grad()
    def forward(self, maps: Tensor) -> Tensor:
        """Return the margins, (C, 1, 1), of (N, C, H, W) maps that are counted in training mode."""
        if self.training:
            counted = (maps < 0) & maps.isfinite()
            total = self.total + distributed.summed(torch.where(counted, maps, 0.0).sum(dim=(0, 2, 3)))
            sound = total.isfinite()  # finite values may still have a sum that is not
            self.total.copy_(torch.where(sound, total, self.total))
            self.count.add_(torch.where(sound, distributed.summed(counted.sum(dim=(0, 2, 3))), 0))
        return (self.total / self.count.clamp(min=1))[:, None, None]


def partial_distance(student: Tensor, target: Tensor) -> Tensor:
    """d of (N, C, H, W) maps, the mean over samples, shape (); see `OFD`."""
    matters = (student > target) | (target > 0)
    return torch.where(matters, student - target, 0.0).square().sum() / len(student)


def _connector(student: int, teacher: int) -> nn.Module:
    """r, from the student's to the teacher's channels."""
    convolution = nn.Conv2d(student, teacher, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    return nn.Sequential(convolution, BatchNorm(teacher))
