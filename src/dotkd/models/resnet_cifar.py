"""The residual networks of He et al. for CIFAR (arXiv 1512.03385, section 4.2), as distillation papers use them.

A 3x3 convolution, three stages of n basic blocks, a global average pool and a linear classifier: 6n + 2 layers with
weights. Stages have 16, 32, 64 channels and strides 1, 2, 2; the `x4` forms have 64, 128, 256 behind a stem of 32.
`resnet20` is depth 20, n = 3, and so on.

Where this departs from the paper: a shortcut that changes shape is a 1x1 convolution (option B; the paper's CIFAR
networks pad with zeros, option A), as in the networks of Tian et al. (arXiv 1910.10699), whose weights fit.

`resnet2d` is the same design with a free width, norm and depth, under names of its own.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dotkd.models.arguments import check_whole
from dotkd.models.image_shape import SMALL_MOST, image_channels
from dotkd.models.initial import he_convolutions
from dotkd.models.residual_blocks import BasicBlock, residual_stage

Shape = tuple[int, ...]


class CifarResNet(nn.Module):
    """The network of this file. The feature maps have `widths[1:]` channels, at 1, 1/2 and 1/4 of the image's size.

    `widths` are the channels of the stem and of the three stages.
    """

    feature_points: ClassVar[tuple[str, ...]] = ("layer1", "layer2", "layer3")

    def __init__(self, channels: int, num_classes: int, *, depth: int, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = nn.Conv2d(channels, stem, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.layer1 = _stage(stem, first, blocks=blocks, stride=1)
        self.layer2 = _stage(first, second, blocks=blocks, stride=2)
        self.layer3 = _stage(second, third, blocks=blocks, stride=2)
        self.fc = nn.Linear(third, num_classes)
        he_convolutions(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, H, W)."""
        features = self.relu(self.bn1(self.conv1(inputs)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(features.mean((2, 3)))


def _stage(channels: int, width: int, *, blocks: int, stride: int) -> nn.Sequential:
    return residual_stage(BasicBlock, channels, width, blocks=blocks, stride=stride, shortcut="downsample")


def _resnet(name: str, num_classes: int, input_shape: Shape, *, depth: int, factor: int = 1) -> CifarResNet:
    # The wide forms widen the stem by half of what the stages get.
    stem = 16 if factor == 1 else 8 * factor
    return CifarResNet(
        image_channels(name, input_shape, least=8, most=SMALL_MOST, smaller="resnet2d", larger="resnet18"),
        check_whole("num_classes", num_classes, least=1),
        depth=depth,
        widths=(stem, 16 * factor, 32 * factor, 64 * factor),
    )


def resnet8(*, num_classes: int, input_shape: Shape) -> CifarResNet:
    """Return ResNet-8 for images of 8 to 128 pixels; TypeError or ValueError for others, as all of this file."""
    return _resnet("resnet8", num_classes, input_shape, depth=8)


def resnet14(*, num_classes: int, input_shape: Shape) -> CifarResNet:
    """Return ResNet-14."""
    return _resnet("resnet14", num_classes, input_shape, depth=14)


def resnet20(*, num_classes: int, input_shape: Shape) -> CifarResNet:
    """Return ResNet-20."""
    return _resnet("resnet20", num_classes, input_shape, depth=20)


def resnet32(*, num_classes: int, input_shape: Shape) -> CifarResNet:
    """Return ResNet-32."""
    return _resnet("resnet32", num_classes, input_shape, depth=32)


def resnet44(*, num_classes: int, input_shape: Shape) -> CifarResNet:
    """Return ResNet-44."""
    return _resnet("resnet44", num_classes, input_shape, depth=44)


def resnet56(*, num_classes: int, input_shape: Shape) -> CifarResNet:
    """Return ResNet-56."""
    return _resnet("resnet56", num_classes, input_shape, depth=56)


def resnet110(*, num_classes: int, input_shape: Shape) -> CifarResNet:
    """Return ResNet-110."""
    return _resnet("resnet110", num_classes, input_shape, depth=110)


def resnet8x4(*, num_classes: int, input_shape: Shape) -> CifarResNet:
    """Return ResNet-8 with four times the channels in its stages."""
    return _resnet("resnet8x4", num_classes, input_shape, depth=8, factor=4)


def resnet32x4(*, num_classes: int, input_shape: Shape) -> CifarResNet:
    """Return ResNet-32 with four times the channels in its stages."""
    return _resnet("resnet32x4", num_classes, input_shape, depth=32, factor=4)
