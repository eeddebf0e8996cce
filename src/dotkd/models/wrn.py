"""Wide residual networks (Zagoruyko and Komodakis, arXiv 1605.07146, table 1), for 32 and 64 pixels.

`wrn_d_k` has d layers and is k times as wide: a 3x3 convolution to 16 channels, three stages of n = (d - 4) / 6
blocks with 16k, 32k, 64k channels and strides 1, 2, 2, a last norm and ReLU, a global average pool and a linear
classifier. Without the dropout that the paper adds for its largest networks.

Norm and ReLU stand before each convolution (He et al., arXiv 1603.05027): a block is

    a = relu(norm(x)),    x + conv(relu(norm(conv(a))))

with a 1x1 convolution of a in place of x where the shape changes.

A stage therefore ends with a plain sum, and its feature map has both signs. The next norm gives the value before the
activation: what `block2.layer.0.relu1`, `block3.layer.0.relu1` and `relu` are given.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dotkd.models.arguments import check_whole
from dotkd.models.image_shape import SMALL_MOST, image_channels
from dotkd.models.initial import he_convolutions

Shape = tuple[int, ...]


class PreactivationBlock(nn.Module):
    """x + F(x), or convShortcut(a) + F(x) where the shape changes; `a` is the activation in front of F's conv1."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        # Spelt as in the published weights. In these networks a stride always comes with more channels.
        self.convShortcut = None if channels == out else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        active = self.relu1(self.bn1(inputs))
        branch = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return branch + (inputs if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    """`blocks` blocks one after the other, under the name `layer`."""

    def __init__(self, channels: int, out: int, *, blocks: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(PreactivationBlock(channels, out, stride=stride))
        for _ in range(blocks - 1):
            self.layer.append(PreactivationBlock(out, out, stride=1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        return self.layer(inputs)


class WideResNet(nn.Module):
    """The network of this file. The feature maps have 16k, 32k, 64k channels, at 1, 1/2, 1/4 of the image's size."""

    feature_points: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3")
    activation_points: ClassVar[tuple[str, ...]] = ("block2.layer.0.relu1", "block3.layer.0.relu1", "relu")

    def __init__(self, channels: int, num_classes: int, *, depth: int, factor: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(16, 16 * factor, blocks=blocks, stride=1)
        self.block2 = Stage(16 * factor, 32 * factor, blocks=blocks, stride=2)
        self.block3 = Stage(32 * factor, 64 * factor, blocks=blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * factor)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(64 * factor, num_classes)
        he_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, H, W)."""
        features = self.block3(self.block2(self.block1(self.conv1(inputs))))
        return self.fc(self.relu(self.bn1(features)).mean((2, 3)))


def _wrn(depth: int, factor: int, num_classes: int, input_shape: Shape) -> WideResNet:
    name = f"wrn_{depth}_{factor}"
    return WideResNet(
        image_channels(name, input_shape, least=8, most=SMALL_MOST, smaller="resnet2d", larger="resnet18"),
        check_whole("num_classes", num_classes, least=1),
        depth=depth,
        factor=factor,
    )


def wrn_16_1(*, num_classes: int, input_shape: Shape) -> WideResNet:
    """Return WRN-16-1 for images of 8 to 128 pixels; TypeError or ValueError for others, as all of this file."""
    return _wrn(16, 1, num_classes, input_shape)


def wrn_16_2(*, num_classes: int, input_shape: Shape) -> WideResNet:
    """Return WRN-16-2."""
    return _wrn(16, 2, num_classes, input_shape)


def wrn_40_1(*, num_classes: int, input_shape: Shape) -> WideResNet:
    """Return WRN-40-1."""
    return _wrn(40, 1, num_classes, input_shape)


def wrn_40_2(*, num_classes: int, input_shape: Shape) -> WideResNet:
    """Return WRN-40-2."""
    return _wrn(40, 2, num_classes, input_shape)
