"""The networks by which CORSD relates two samples (Yu et al. 2023, arXiv 2305.00918; as in its authors' code)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dotkd.methods.batch_norm import BatchNorm
from dotkd.methods.pairing import lifted


class RelationNetwork(nn.Module):
    """From the maps of two samples at one point to their relation and to the logits of their class.

    Both maps, stacked by channels, are brought through one separable convolution a deeper point to twice the channels
    of the deepest, averaged over all places, and read by a small network for the relation and a linear layer for the
    class.

    Args:
        shapes: (C, H, W) of this point and of all deeper ones, in that order.
        classes: K.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], classes: int) -> None:
        super().__init__()
        self.descend = nn.Sequential()
        for here, below in pairwise(shapes):
            shrinks = below[1] < here[1] or below[2] < here[2]
            self.descend.append(_separable(2 * here[0], 2 * below[0], stride=2 if shrinks else 1))
        joint = 2 * shapes[-1][0]
        hidden = max(1, joint // (4 if len(shapes) == 1 else 8))
        self.relate = nn.Sequential(
            nn.Linear(joint, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid()
        )
        self.classify = nn.Linear(joint, classes)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return r in (0, 1), (N,), and z, (N, K), for maps (N, C, H, W), N > 1; at least float32."""
        maps = torch.cat((first, second), dim=1)
        joint = self.descend(lifted(maps)).flatten(2).mean(dim=2)
        return lifted(self.relate(joint))[:, 0], lifted(self.classify(joint))


class LogitRelation(nn.Module):
    """From a prediction and the average prediction of a class, (N, K) each, to their relation in (0, 1), (N,)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.relate = nn.Sequential(
            nn.Linear(2 * classes, classes), nn.BatchNorm1d(classes), nn.ReLU(), nn.Linear(classes, 1), nn.Sigmoid()
        )

    def forward(self, prediction: Tensor, average: Tensor) -> Tensor:
        """Return the relation, at least float32."""
        return lifted(self.relate(torch.cat((prediction, average), dim=1)))[:, 0]


def _separable(channels: int, out: int, *, stride: int) -> nn.Sequential:
    """Twice a depthwise 3x3 and a pointwise convolution, normalised and rectified; the first one strides."""
    layers = nn.Sequential()
    for into, step in ((channels, stride), (out, 1)):
        layers.append(nn.Conv2d(channels, channels, 3, step, 1, groups=channels, bias=False))
        layers.append(nn.Conv2d(channels, into, 1, bias=False))
        layers.append(BatchNorm(into))
        layers.append(nn.ReLU())
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layers
