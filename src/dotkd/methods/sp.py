"""Similarity-preserving distillation (Tung & Mori 2019, arXiv 1907.09682)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted


class SP(nn.Module):
    """Mean squared difference of the similarities between the samples of a batch, at the last feature map.

    The map of each of N samples is one row of Q, (N, C H W), and

        G    = Q Q^T, each row divided by its 2-norm
        loss = sum over i, j of (G_ij^T - G_ij^S)^2 / N^2

    section 3. The two maps may have any sizes and numbers of channels. Neither the scale of the features nor a rotation
    of them changes G. A batch of one has loss 0; a sample whose features are all zero has a row of zeros.

    The paper allows several pairs of layers; the published weight belongs to the last one alone.
    """

    card = Card(
        title="Similarity-preserving distillation",
        paper="Tung & Mori 2019, arXiv 1907.09682, section 3",
        equation="mean((G_T - G_S)^2), G = Q Q^T with rows of norm 1",
        distill_weight=3000.0,
        needs=("features",),
    )

    def __init__(self, student: Anatomy, teacher: Anatomy) -> None:
        super().__init__()

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        return F.mse_loss(similarities(student.features[-1]), similarities(teacher.features[-1]))


def similarities(maps: Tensor) -> Tensor:
    """G of (N, C, H, W) maps, shape (N, N)."""
    rows = lifted(maps).flatten(1)
    with torch.autocast(rows.device.type, enabled=False):  # what is left is a small difference of rows of norm 1
        return F.normalize(rows @ rows.mT)
