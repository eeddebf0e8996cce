"""ShuffleNetV2 (Ma et al., arXiv 1807.11164, figure 3c-d and table 5) at width 1, for 32 and 64 pixels.

A stem, three stages of 116, 232, 464 channels with 4, 8, 4 units, a pointwise convolution to 1024 channels, a global
average pool and a linear classifier. A unit passes one half of its channels on as they are and sends the other through
a pointwise, a depthwise 3x3 and a second pointwise convolution; then the halves are put side by side and shuffled. The
first unit of a stage has stride 2, sends its whole input through both of two branches, and so changes the width.

Where this departs from the paper, as the form that distillation papers use (Tian et al., arXiv 1910.10699) does: the
stem is a 1x1 convolution without stride or max-pool, as suits small images.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from dotkd.models.arguments import check_whole
from dotkd.models.image_shape import SMALL_MOST, image_channels
from dotkd.models.shufflenet import channel_shuffle

_STEM = 24
_STAGES = ((116, 4), (232, 8), (464, 4))
_LAST = 1024


class Unit(nn.Module):
    """The unit that keeps the shape: one half passes, the other goes through three convolutions.

    The last ReLU is applied to both halves at once. That changes nothing, as the half that passes was itself the
    output of a ReLU, and makes the ReLU the last operation: what it is given is the unit's value before the
    activation, with the channels in the order of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu_out = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to the same shape."""
        passed, branch = inputs.chunk(2, 1)
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(branch)))))
        branch = self.bn3(self.conv3(branch))
        return self.relu_out(channel_shuffle(torch.cat([passed, branch], 1), 2))


class DownUnit(nn.Module):
    """The unit with stride 2: two branches over the whole input, each giving half of the output's channels."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        half = out // 2
        self.conv1 = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu_out = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, out, ceil(H / 2), ceil(W / 2))."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(inputs))))
        right = self.relu3(self.bn3(self.conv3(inputs)))
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return self.relu_out(channel_shuffle(torch.cat([left, right], 1), 2))


class ShuffleNetV2(nn.Module):
    """The network of this file. The feature maps have 116, 232, 464 channels, at 1/2, 1/4, 1/8 of the image's size."""

    feature_points: ClassVar[tuple[str, ...]] = ("layer1", "layer2", "layer3")

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.relu1 = nn.ReLU()
        (first, _), (second, _), (third, _) = _STAGES
        self.layer1 = _stage(_STEM, *_STAGES[0])
        self.layer2 = _stage(first, *_STAGES[1])
        self.layer3 = _stage(second, *_STAGES[2])
        self.conv2 = nn.Conv2d(third, _LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(_LAST)
        self.relu2 = nn.ReLU()
        self.linear = nn.Linear(_LAST, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, H, W)."""
        features = self.relu1(self.bn1(self.conv1(inputs)))
        features = self.layer3(self.layer2(self.layer1(features)))
        features = self.relu2(self.bn2(self.conv2(features)))
        return self.linear(features.mean((2, 3)))


def _stage(channels: int, out: int, units: int) -> nn.Sequential:
    stage = nn.Sequential(DownUnit(channels, out))
    for _ in range(units - 1):
        stage.append(Unit(out))
    return stage


def shufflenet_v2(*, num_classes: int, input_shape: tuple[int, ...]) -> ShuffleNetV2:
    """Return ShuffleNetV2 for images of 8 to 128 pixels; TypeError or ValueError for others."""
    name = "shufflenet_v2"
    return ShuffleNetV2(
        image_channels(name, input_shape, least=8, most=SMALL_MOST, smaller="resnet2d", larger="mobilenet_v1"),
        check_whole("num_classes", num_classes, least=1),
    )
