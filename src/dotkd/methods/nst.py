"""Neuron selectivity transfer (Huang & Wang 2017, arXiv 1707.01219)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted, paired, refuse_one_place, same_size

Kernel = Literal["polynomial", "linear"]


class NST(nn.Module):
    """Sum over pairs of maps of the squared maximum mean discrepancy between the channels of student and teacher.

    Of one sample, channel i of a map, flattened and divided by its 2-norm, is f_i: where in the picture that neuron
    looks. With C_S and C_T channels and a kernel k,

        MMD^2 = mean_ij k(t_i, t_j) + mean_ij k(s_i, s_j) - 2 mean_ij k(s_i, t_j)        section 4.2
        loss  = sum over pairs of the mean over samples of MMD^2

    with k(x, y) = (x . y)^2, the paper's choice among its kernels, or k(x, y) = x . y. The numbers of channels may
    differ; of maps that differ in size the larger is pooled to the smaller one.

    Both are also distances between means: MMD^2 = ||mean_i s_i - mean_j t_j||^2 for the linear kernel, and for the
    polynomial one the same of the matrices f_i f_i^T, of P^2 entries for P pixels. That form is taken where P is
    below C_S and C_T, and all C^2 products otherwise. A channel without activity has f = 0. The teacher's term has no
    gradient and only makes the loss 0 where the two agree.

    Deviations: the paper weighs the loss by lambda / 2 on one pair; the weight of 50 belongs to the sum over pairs, in
    the form used by all results published since. The paper's Gaussian kernel is left out.

    Args:
        kernel: "polynomial" or "linear".

    Raises:
        ValueError: another kernel, or no pair of maps of more than one pixel: in others f has no gradient.
    """

    card = Card(
        title="Neuron selectivity transfer",
        paper="Huang & Wang 2017, arXiv 1707.01219, section 4.2",
        equation="sum over pairs of MMD^2(s, t), mean_ij k(t_i, t_j) + mean_ij k(s_i, s_j) - 2 mean_ij k(s_i, t_j)",
        distill_weight=50.0,
        needs=("features",),
    )

    def __init__(self, student: Anatomy, teacher: Anatomy, *, kernel: Kernel = "polynomial") -> None:
        super().__init__()
        if kernel not in get_args(Kernel):
            raise ValueError(f"expected `kernel` to be one of {', '.join(get_args(Kernel))}, got {kernel!r}")
        refuse_one_place(student.features, teacher.features, "NST")
        self.kernel: Kernel = kernel

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        losses = [self._loss(*same_size(s, t)) for s, t in paired(student.features, teacher.features)]
        return sum(losses[1:], losses[0])

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        s, t = _selectivity(student), _selectivity(teacher)
        if self.kernel == "linear":
            return (s.mean(dim=1) - t.mean(dim=1)).square().sum(dim=1).mean()
        # What is left is a small difference of large terms.
        with torch.autocast(s.device.type, enabled=False):
            if s.shape[2] < min(s.shape[1], t.shape[1]):
                difference = s.mT @ s / s.shape[1] - t.mT @ t / t.shape[1]
                return difference.square().sum(dim=(1, 2)).mean()
            return _mean_square(t, t) + _mean_square(s, s) - 2 * _mean_square(s, t)


def _selectivity(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H W), each channel of norm 1, or 0 where it is 0."""
    channels = lifted(maps).flatten(2)
    norm = channels.norm(dim=2, keepdim=True)
    return channels / torch.where(norm > 0, norm, 1.0)


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.mT).square().mean()
