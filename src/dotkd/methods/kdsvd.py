"""Self-supervised distillation by singular value decomposition (Lee, Kim & Song 2018, arXiv 1807.06819)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted, paired

# How many more than `k` of the student's vectors are offered to be picked from.
_SPARE = 3
# Below so many times the dtype's eps of the largest, an eigenvalue is rounding.
_ROUNDING = 10.0


class KDSVD(nn.Module):
    """How the main directions of a map relate to those of the next deeper one, compared between teacher and student.

    A map of one sample as a matrix of P pixels by C channels has singular values sigma_1 >= sigma_2 >= ... and right
    singular vectors v_1, v_2, ..., of C numbers each. For l = 1, ..., k, with w_l = sigma_l / ||(sigma_1 .. sigma_k)||
    of the teacher,

        x_l = w_l v_l                           of the teacher; of the student w_l times the vector, among its first
                                                k + 3, and the sign, of largest cosine with the teacher's v_l
        G_ijl = exp(-(x_l[i] - y_l[j])^2 / 8)   between the vectors x of one map and y of the next, channel by channel
        loss = sum over neighbouring maps of the mean over samples of sum_ijl (G_ijl(S) - G_ijl(T))^2

    section 3 of the paper. Where a map has fewer than k vectors, as one of few pixels, all maps make do with so many.
    Vectors whose sigma is 0, to rounding, mean nothing and count as 0.

    The gradient of v_i has terms in 1 / d, d = lambda_i - lambda_j and lambda = sigma^2, without limit where two values
    meet. The authors cut it to the first five vectors and drop what is not finite. Here all terms are kept, with

        1 / d  replaced by  d / (d^2 + eps lambda_1^2),  eps that of the dtype

    which changes no digit for d near lambda_1, keeps every term below 1 / (2 sqrt(eps) lambda_1), and leaves alone two
    values that are equal, whose vectors are any basis of the plane that they share.

    Deviations: a singular vector has no sign of its own, but G depends on it, in practice several-fold. Elsewhere it is
    what the linear algebra library returned; here the teacher's v_l is the one with sum_i v_l[i] >= 0. Sum, mean over
    samples, k + 3 and the weight are those of the implementations in use; the authors' first one offers k + 1 vectors
    and takes half the sum over the batch, times sqrt(k). Its scheme of clipping this gradient by the task's is no part
    of the loss. The paper asks for as many channels in the student as in the teacher; where the numbers differ, a
    trained convolution of one pixel brings the student's to the teacher's. One implementation in use takes the
    columns of the picture for channels.

    The decomposition makes the host wait for the device.

    Args:
        k: number of singular vectors, >= 1.

    Raises:
        ValueError: `k` < 1, or fewer than two pairs of maps.
    """

    card = Card(
        title="Knowledge distillation by singular value decomposition",
        paper="Lee, Kim & Song 2018, arXiv 1807.06819, section 3",
        equation="sum over neighbours of ||G_S - G_T||^2, G_ijl = exp(-(x_l[i] - y_l[j])^2 / 8), x_l = w_l v_l",
        distill_weight=1.0,
        needs=("features",),
    )

    def __init__(self, student: Anatomy, teacher: Anatomy, *, k: int = 1) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"expected `k` >= 1, got {k}")
        pairs = paired(student.features, teacher.features)
        if len(pairs) < 2:
            raise ValueError(f"expected at least 2 pairs of feature maps, which are compared in turn, got {len(pairs)}")
        self.k = k
        self.projectors = nn.ModuleList(
            nn.Identity() if s[0] == t[0] else nn.Conv2d(s[0], t[0], 1, bias=False) for s, t in pairs
        )

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        pairs = [
            (lifted(project(lifted(s))), lifted(t))
            for project, (s, t) in zip(self.projectors, paired(student.features, teacher.features), strict=True)
        ]
        k = min(self.k, *(min(maps.shape[1], maps[0, 0].numel()) for pair in pairs for maps in pair))
        with torch.autocast(pairs[0][0].device.type, enabled=False):
            weighted = [_weighted_vectors(s, t, k) for s, t in pairs]
            losses = [
                (_relation(s, below_s) - _relation(t, below_t)).square().sum(dim=(1, 2, 3)).mean()
                for (s, t), (below_s, below_t) in pairwise(weighted)
            ]
        return sum(losses[1:], losses[0])


def _weighted_vectors(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """x of both, (N, C, k), from their maps with C channels each."""
    wanted, values = _right_vectors(teacher, k)
    wanted = wanted * torch.where(wanted.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    offered, _ = _right_vectors(student, k + _SPARE)
    cosine = offered.mT @ wanted
    nearest = cosine.abs().argmax(dim=1, keepdim=True)
    sign = torch.where(cosine.gather(1, nearest) < 0, -1.0, 1.0)
    chosen = offered.gather(2, nearest.expand(-1, offered.shape[1], -1)) * sign
    weights = F.normalize(values, dim=1)[:, None, :]
    return chosen * weights, wanted * weights


def _right_vectors(maps: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first singular vectors, (N, C, count), on the side of the channels, and their values, (N, count).

    Fewer where C or the number of pixels is below `count`.
    """
    x = maps.flatten(2)
    channels_first = x.shape[1] <= x.shape[2]
    gram = x @ x.mT if channels_first else x.mT @ x
    squares, vectors = _leading(gram, count)
    known = squares > _ROUNDING * torch.finfo(gram.dtype).eps * squares[:, :1]
    # A product, where `torch.where` would hide a map that is not finite.
    vectors = vectors * known[:, None, :]
    if not channels_first:
        vectors = x @ vectors
        vectors = vectors / torch.where(known[:, None, :], vectors.norm(dim=1, keepdim=True), 1.0)
    return vectors, squares.clamp(min=0.0).sqrt()


def _leading(gram: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, (N, count), without gradient, and their vectors, (N, R, count), of `gram`, (N, R, R)."""
    given = gram.detach()
    # A matrix that is not finite would raise; it makes the loss NaN below instead.
    values, vectors = torch.linalg.eigh(torch.where(given.isfinite(), given, 0.0))
    values, vectors = values.flip(-1), vectors.flip(-1)
    first = vectors[..., :count]
    largest = torch.where(values[:, :1, None] > 0, values[:, :1, None], 1.0)
    gaps = (values[:, None, :count] - values[:, :, None]) / largest
    inverse = gaps / (gaps.square() + torch.finfo(gram.dtype).eps) / largest
    # 0 in value; its gradient is that of first-order perturbation theory.
    change = vectors.mT @ ((gram - given) @ first)
    return values[:, :count], first + vectors @ (inverse * change)


def _relation(x: Tensor, y: Tensor) -> Tensor:
    """G, (N, C, k) and (N, D, k) -> (N, C, D, k)."""
    return torch.exp((x[:, :, None] - y[:, None]).square() / -8)
