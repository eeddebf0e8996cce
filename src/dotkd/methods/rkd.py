"""Relational knowledge distillation (Park et al. 2019, arXiv 1904.05068)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.losses._divergence import check_weights
from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted


class RKD(nn.Module):
    """Differences of the distances in all pairs, and of the angles in all triples, of the embeddings of a batch.

    Of N embeddings e_i, the distance potential and the angle potential (the cosine at e_j) are

        D_ij  = ||e_i - e_j|| / mu,   mu the mean of ||e_i - e_j|| over i != j
        A_ijk = <u_ij, u_kj>,         u_ij = (e_i - e_j) / ||e_i - e_j||

    and with the Huber loss h(x, y) = (x - y)^2 / 2 for |x - y| <= 1, |x - y| - 1/2 beyond,

        loss = distance_weight mean_ij h(D_ij^S, D_ij^T) + angle_weight mean_ijk h(A_ijk^S, A_ijk^T)

    section 3.2. Both potentials are invariant to motions of the embedding space and to its scale, so that student and
    teacher may have embeddings of any two lengths. Two samples with the same embedding have distance 0, and angle
    potentials of 0 with everything. A batch of one has loss 0. Memory: N^2 (N + D) numbers for embeddings of length D.

    Deviations: the paper sums over pairs and triples of distinct samples; the authors' code, and all results published
    since, take means over all N^2 and N^3, to which the weights belong. That is what is done here.

    Args:
        distance_weight: >= 0.
        angle_weight: >= 0.

    Raises:
        ValueError: a weight that is negative or not finite.
    """

    card = Card(
        title="Relational knowledge distillation",
        paper="Park et al. 2019, arXiv 1904.05068, section 3.2",
        equation="25 mean_ij h(D_ij^S, D_ij^T) + 50 mean_ijk h(A_ijk^S, A_ijk^T), h the Huber loss",
        distill_weight=1.0,
        needs=("embedding",),
    )

    def __init__(
        self, student: Anatomy, teacher: Anatomy, *, distance_weight: float = 25.0, angle_weight: float = 50.0
    ) -> None:
        super().__init__()
        check_weights(distance_weight=distance_weight, angle_weight=angle_weight)
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        with torch.autocast(student.embedding.device.type, enabled=False):  # cosines of nearly parallel vectors
            s_distances, s_angles = potentials(student.embedding)
            t_distances, t_angles = potentials(teacher.embedding)
        distance = F.smooth_l1_loss(s_distances, t_distances)
        return self.distance_weight * distance + self.angle_weight * F.smooth_l1_loss(s_angles, t_angles)


def potentials(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """D_ij, (N, N), and A_ijk, (N, N, N) with j first, of (N, D) embeddings; see `RKD`."""
    embedding = lifted(embedding)
    # Differences, not products of a Gram matrix, which would cancel for samples that are close.
    differences = embedding[None, :] - embedding[:, None]
    squares = differences.square().sum(dim=2)
    apart = squares > 0
    # The square root has no gradient at 0: it is not taken there.
    distances = torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
    count = len(embedding)
    mean = distances.sum() / max(1, count * (count - 1))
    directions = differences / torch.where(apart, distances, 1.0)[:, :, None]
    return distances / torch.where(mean > 0, mean, 1.0), directions @ directions.mT
