"""Inter-channel correlation (Liu et al. 2021, arXiv 2202.03680)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.batch_norm import BatchNorm
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted


class ICKD(nn.Module):
    """Squared difference of the inner products between the channels of the last feature maps, sample by sample.

    Of one sample, a map F with C channels, each flattened to f_i, has the inter-channel correlations

        G_ij = <f_i, f_j>,  each row divided by its 2-norm                              (C, C)

    and with r a 1x1 convolution and batch normalisation that bring the student's map to the teacher's C channels,

        loss = mean over samples of sum over i, j of (G_ij(r(F_S)) - G_ij(F_T))^2 / C

    which is ICKD-C of the paper, for classification. The two maps may differ in size. A channel of zeros has a row of
    zeros.

    Deviations: the paper writes the squared distance of unnormalised matrices, divided by C^2. The authors' code
    normalises the rows and divides by C, and the weight of 2.5 is its: that is what is done here. A second projection,
    of the teacher, which that code makes but does not use, is left out. The grid-level form for dense
    prediction is left out.
    """

    card = Card(
        title="Inter-channel correlation",
        paper="Liu et al. 2021, arXiv 2202.03680, ICKD-C",
        equation="mean over samples of ||G(r(F_S)) - G(F_T)||^2 / C, G_ij = <f_i, f_j> with rows of norm 1",
        distill_weight=2.5,
        needs=("features",),
    )

    def __init__(self, student: Anatomy, teacher: Anatomy) -> None:
        super().__init__()
        channels, wanted = student.features[-1][0], teacher.features[-1][0]
        self.project = nn.Sequential(nn.Conv2d(channels, wanted, 1, bias=False), BatchNorm(wanted))

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        wanted = correlations(teacher.features[-1])
        difference = correlations(self.project(student.features[-1])) - wanted
        return difference.square().sum(dim=(1, 2)).mean() / wanted.shape[1]


def correlations(maps: Tensor) -> Tensor:
    """G of (N, C, H, W) maps, shape (N, C, C)."""
    channels = lifted(maps).flatten(2)
    with torch.autocast(channels.device.type, enabled=False):  # squares of half-precision maps overflow
        return F.normalize(channels @ channels.mT, dim=2)
