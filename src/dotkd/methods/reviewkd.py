"""Knowledge review (Chen, Liu, Zhao & Jia 2021, arXiv 2104.09044)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dotkd.methods.activations import Activations, Anatomy
from dotkd.methods.batch_norm import BatchNorm
from dotkd.methods.card import Card
from dotkd.methods.pairing import lifted, paired


class ReviewKD(nn.Module):
    """Deeper features of the student are fused into shallower ones, and each fusion learns one level of the teacher.

    Levels run from the deepest, j = 0, towards the input: the embeddings as maps of one pixel, then the paired points.
    With the student's map S_j, the teacher's T_j before its activation, and `fusion` the ABF (section 3)

        R_j, O_j = fusion_j(S_j, R_{j-1})        loss = sum_j HCL(O_j, T_j)

    which is the residual form of the review: R_j carries what was fused so far, O_j has the channels and the size of
    T_j. Between O_j and T_j stands the hierarchical context loss

        HCL(O, T) = sum_l w_l mean((P_l O - P_l T)^2) / sum_l w_l,   w = 1, 1/2, 1/4, 1/8

    where P_l averages over the cells of a grid: none, then 4 x 4, 2 x 2 and 1 x 1; a grid not smaller than the map is
    left out.

    Deviations: the weights w_l, the warm-up over 20 epochs, and that the student's maps are taken behind the activation
    (on ImageNet before it) and the teacher's before it, are those of the authors' code, with which the results were
    published; the text of the paper could not be had to hold them against. The code leaves the stems out and cuts its
    sizes to each pair of models; here the points that the two anatomies name are used, the deepest with the deepest, at
    the sizes they have.

    A batch of one leaves the statistics of the one-pixel level alone and normalises by those it has.

    Args:
        width: channels of the fused features R_j, at most those of the student's embedding, >= 1.
        preactivated: take the student's maps before their activation.
    """

    card = Card(
        title="Knowledge review",
        paper="Chen, Liu, Zhao & Jia 2021, arXiv 2104.09044, section 3",
        equation="sum_j HCL(O_j, T_j), (R_j, O_j) = fusion_j(S_j, R_{j-1}), "
        "HCL(O, T) = sum_l w_l mean((P_l O - P_l T)^2) / sum_l w_l",
        distill_weight=1.0,
        warmup_epochs=20.0,
        needs=("features", "preactivations", "embedding"),
    )

    def __init__(self, student: Anatomy, teacher: Anatomy, *, width: int = 512, preactivated: bool = False) -> None:
        super().__init__()
        if not width >= 1:
            raise ValueError(f"expected `width` >= 1, got {width}")
        self.preactivated = preactivated
        width = min(width, student.embedding)
        levels = [(student.embedding, teacher.embedding)]
        own = student.preactivations if preactivated else student.features
        levels += [(s[0], t[0]) for s, t in reversed(paired(own, teacher.preactivations))]
        self.fusions = nn.ModuleList(
            Fusion(channels, width, out, joins=level > 0) for level, (channels, out) in enumerate(levels)
        )

    def forward(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss, shape ()."""
        levels = [(student.embedding[:, :, None, None], teacher.embedding[:, :, None, None])]
        own_maps = student.preactivations if self.preactivated else student.features
        levels += reversed(paired(own_maps, teacher.preactivations))
        carried: Tensor | None = None
        losses: list[Tensor] = []
        for fusion, (own, aim) in zip(self.fusions, levels, strict=True):
            carried, out = fusion(lifted(own), carried, (aim.shape[2], aim.shape[3]))
            losses.append(hierarchical_context_loss(out, aim))
        return sum(losses[1:], losses[0])


class Fusion(nn.Module):
    """Attention-based fusion (ABF) of a map with what deeper levels hand on (section 3).

    Two attention maps, a_1 and a_2 in (0, 1), one number a place each, weigh the map, brought to `width` channels, and
    the carried one, brought to the map's size: R = a_1 S + a_2 R'. The deepest level, with `joins` False, has none.
    """

    def __init__(self, channels: int, width: int, out: int, *, joins: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), BatchNorm(width))
        self.leave = nn.Sequential(nn.Conv2d(width, out, 3, padding=1, bias=False), BatchNorm(out))
        self.attend = nn.Conv2d(2 * width, 2, 1) if joins else None
        for convolution in (self.enter[0], self.leave[0]):
            assert isinstance(convolution, nn.Conv2d)
            nn.init.kaiming_uniform_(convolution.weight, a=1)  # variance 1 / fan-in: no activation follows

    def forward(self, own: Tensor, carried: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return R, (N, width, *size), and O, (N, out, *size), for `own` (N, channels, H, W)."""
        fused: Tensor = self.enter(own)
        if self.attend is not None:
            assert carried is not None
            carried = _resized(carried, (own.shape[2], own.shape[3]))
            first, second = self.attend(torch.cat((fused, carried), dim=1)).sigmoid().split(1, dim=1)
            fused = fused * first + carried * second
        fused = _resized(fused, size)
        return fused, self.leave(fused)


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """HCL of two maps of one shape, (N, C, H, W) -> (); see `ReviewKD`."""
    student, teacher = lifted(student), lifted(teacher)
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    height, width = student.shape[2:]
    for cells in (4, 2, 1):
        grid = (min(cells, height), min(cells, width))
        if grid == (height, width):
            continue
        weight /= 2
        loss = loss + weight * F.mse_loss(_averaged(student, grid), _averaged(teacher, grid))
        total += weight
    return loss / total


def _averaged(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    if maps.shape[2] % grid[0] or maps.shape[3] % grid[1]:
        return F.adaptive_avg_pool2d(maps, grid)
    # Cells of one size: plain means, whose gradient is deterministic on every device.
    return maps.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1)).mean(dim=(3, 5))


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="nearest")
