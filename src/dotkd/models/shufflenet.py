"""ShuffleNet (Zhang et al., arXiv 1707.01083, figure 2 and table 1) with 3 groups, for 32 and 64 pixels.

A stem, three stages of 240, 480, 960 channels with 4, 8, 4 units, a global average pool and a linear classifier. A
unit is a grouped pointwise convolution to a quarter of its output's channels, a channel shuffle, a depthwise 3x3 and a
second grouped pointwise convolution. Its input is added; in the first unit of a stage, which has stride 2, the
average-pooled input is appended instead. The first pointwise convolution of the network is not grouped.

Where this departs from the paper, as the form that distillation papers use (Tian et al., arXiv 1910.10699) does: the
stem is a 1x1 convolution without stride or max-pool, as suits small images; a ReLU follows the depthwise convolution;
and the inner width is a quarter of what a unit computes, which in the first unit of a stage leaves out the channels
that its input brings along.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from dotkd.models.arguments import check_whole
from dotkd.models.image_shape import SMALL_MOST, image_channels

_STEM = 24
_STAGES = ((240, 4), (480, 8), (960, 4))
_GROUPS = 3


def channel_shuffle(features: Tensor, groups: int) -> Tensor:
    """Deal the channels of (N, C, H, W) out anew: the first of each group, then the second of each, and so on."""
    return features.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class Unit(nn.Module):
    """relu(x + F(x)), or relu of F(x) and the pooled x side by side where the stride is 2."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__()
        # The pooled input is appended, so that much less has to be computed.
        computed = out - channels if stride == 2 else out
        inner = computed // 4
        # The stem has too few channels to be cut into groups.
        self.first_groups = 1 if channels == _STEM else _GROUPS
        self.conv1 = nn.Conv2d(channels, inner, 1, groups=self.first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, computed, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(computed)
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.relu_out = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        branch = channel_shuffle(self.relu1(self.bn1(self.conv1(inputs))), self.first_groups)
        branch = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(branch)))))
        joined = branch + inputs if self.pool is None else torch.cat([branch, self.pool(inputs)], 1)
        return self.relu_out(joined)


class ShuffleNetV1(nn.Module):
    """The network of this file. The feature maps have 240, 480, 960 channels, at 1/2, 1/4, 1/8 of the image's size."""

    feature_points: ClassVar[tuple[str, ...]] = ("layer1", "layer2", "layer3")

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu = nn.ReLU()
        (first, _), (second, _), (third, _) = _STAGES
        self.layer1 = _stage(_STEM, *_STAGES[0])
        self.layer2 = _stage(first, *_STAGES[1])
        self.layer3 = _stage(second, *_STAGES[2])
        self.linear = nn.Linear(third, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, H, W)."""
        features = self.relu(self.bn1(self.conv1(inputs)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.linear(features.mean((2, 3)))


def _stage(channels: int, out: int, units: int) -> nn.Sequential:
    stage = nn.Sequential(Unit(channels, out, stride=2))
    for _ in range(units - 1):
        stage.append(Unit(out, out, stride=1))
    return stage


def shufflenet_v1(*, num_classes: int, input_shape: tuple[int, ...]) -> ShuffleNetV1:
    """Return ShuffleNet for images of 8 to 128 pixels; TypeError or ValueError for others."""
    name = "shufflenet_v1"
    return ShuffleNetV1(
        image_channels(name, input_shape, least=8, most=SMALL_MOST, smaller="resnet2d", larger="mobilenet_v1"),
        check_whole("num_classes", num_classes, least=1),
    )
