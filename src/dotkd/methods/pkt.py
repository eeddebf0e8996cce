"""Probabilistic knowledge transfer (Passalis & Tefas 2018, arXiv 1803.10837)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dotkd.losses._divergence import kl_divergence, log_probabilities
from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted

# Keeps the logarithm finite for two samples that point in opposite directions.
_SMALLEST_AFFINITY = 1e-7


class PKT(nn.Module):
    """Divergence between who is near whom, in a batch, in the embedding of the teacher and in that of the student.

    Of N samples with embeddings x_i, in the teacher and likewise in the student,

        K_ij = (1 + cos(x_i, x_j)) / 2                                  affinity
        p_ij = K_ij / sum_{l != i} K_il,  j != i                        the share of j among the neighbours of i
        loss = 1 / N^2 sum_i sum_{j != i} p_ij log(p_ij / q_ij)         p the teacher's, q the student's

    section 3 with the cosine kernel. An embedding of 0 has the cosine 0 with every other. The dimensions of the two
    embeddings may differ. Up to two samples have at most one neighbour each, and no loss.

    Deviations: the paper sums; the authors' code takes the mean over all N^2 pairs, to which the weight of 30000
    belongs, as here. The code also counts every sample among its own neighbours, which the paper excludes: excluded
    here. It adds 1e-7 to both probabilities inside the logarithm; here K is at least 1e-7.
    """

    card = Card(
        title="Probabilistic knowledge transfer",
        paper="Passalis & Tefas 2018, arXiv 1803.10837, section 3",
        equation="1/N^2 sum_i KL(p_i || q_i), p_ij = K_ij / sum_{l != i} K_il, K_ij = (1 + cos(x_i, x_j)) / 2",
        distill_weight=30000.0,
        needs=("embedding",),
    )

    def __init__(self, student: Anatomy, teacher: Anatomy) -> None:
        super().__init__()

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        samples = len(student.embedding)
        if samples < 2:
            return 0.0 * student.embedding.sum()
        with torch.autocast(student.embedding.device.type, enabled=False):
            p, q = _log_shares(teacher.embedding), _log_shares(student.embedding)
            return kl_divergence(p, q).sum() / samples**2


def _log_shares(embedding: Tensor) -> Tensor:
    """log p, (N, D) -> (N, N), -inf on the diagonal."""
    embedding = lifted(embedding)
    norm = embedding.norm(dim=1, keepdim=True)
    directions = embedding / torch.where(norm > 0, norm, 1.0)
    affinity = (0.5 + 0.5 * directions @ directions.mT).clamp(min=_SMALLEST_AFFINITY)
    itself = torch.eye(len(affinity), dtype=torch.bool, device=affinity.device)
    return log_probabilities(affinity.log().masked_fill(itself, -math.inf), 1.0)
