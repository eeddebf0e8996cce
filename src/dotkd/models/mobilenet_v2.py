"""MobileNetV2 (Sandler et al., arXiv 1801.04381, table 2) in the two forms of distillation papers.

An inverted residual is a pointwise convolution that expands the channels t times, a depthwise 3x3 one that has the
stride, and a pointwise one without activation that projects them to fewer; the input is added where the shape stays.
Seven groups of these, a pointwise convolution to 1280 channels, a global average pool and a linear classifier. Every
feature map is the output of a projection: linear, of both signs.

`mobilenet_v2_cifar`, for 32 pixels, is the "MobileNetV2" of Tian et al. (arXiv 1910.10699): half the channels, stride
2 in the stem as in the paper but not in the second group (16 in all), ReLU in place of ReLU6.

`mobilenet_v2_tiny`, for 64 pixels, is the one of the DOT paper's Tiny-ImageNet rows (arXiv 2307.08436): all channels,
a pointwise stem without a stride, and strides in groups two to four alone (8 in all). As in the published code, its
convolutions have biases, and its stem is padded by one pixel, which is therefore the bias alone: 64 pixels become 66.

In both the first group keeps its pointwise expansion although t = 1, where the paper leaves it out.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dotkd.models.arguments import check_whole
from dotkd.models.image_shape import SMALL_MOST, image_channels
from dotkd.models.initial import he_convolutions, small_linear

Shape = tuple[int, ...]

# Expansion t, channels, blocks and the stride of the first block of each group.
_CIFAR_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_LAST = 1280


class InvertedResidual(nn.Module):
    """The block of the CIFAR form: `conv` is expand, depthwise, project."""

    def __init__(self, channels: int, out: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.adds = stride == 1 and channels == out
        self.conv = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        branch = self.conv(inputs)
        return inputs + branch if self.adds else branch


class MobileNetV2Cifar(nn.Module):
    """The form for 32 pixels. The feature maps have 12, 16, 48, 160 channels, at 1/2, 1/4, 1/8, 1/16 of the size."""

    feature_points: ClassVar[tuple[str, ...]] = ("blocks.1", "blocks.2", "blocks.4", "blocks.6")

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        inner = 16
        self.conv1 = nn.Sequential(nn.Conv2d(channels, inner, 3, 2, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.blocks = nn.Sequential()
        for expansion, full_width, count, stride in _CIFAR_GROUPS:
            group = nn.Sequential()
            for index in range(count):
                out = full_width // 2
                first = stride if index == 0 else 1
                group.append(InvertedResidual(inner, out, stride=first, expansion=expansion))
                inner = out
            self.blocks.append(group)
        self.conv2 = nn.Sequential(nn.Conv2d(inner, _LAST, 1, bias=False), nn.BatchNorm2d(_LAST), nn.ReLU())
        head = nn.Linear(_LAST, num_classes)
        self.classifier = nn.Sequential(head)
        he_convolutions(self)
        small_linear(head)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, H, W)."""
        features = self.conv2(self.blocks(self.conv1(inputs)))
        return self.classifier(features.mean((2, 3)))


class LinearBottleneck(nn.Module):
    """The block of the Tiny-ImageNet form: `residual` is expand, depthwise, project, with biases and ReLU6."""

    def __init__(self, channels: int, out: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.adds = stride == 1 and channels == out
        self.residual = nn.Sequential(
            nn.Conv2d(channels, inner, 1),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride, 1, groups=inner),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, out, 1),
            nn.BatchNorm2d(out),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, out, ceil(H / stride), ceil(W / stride))."""
        branch = self.residual(inputs)
        return inputs + branch if self.adds else branch


class MobileNetV2Tiny(nn.Module):
    """The form for 64 pixels. The feature maps have 24, 32, 64, 320 channels, at 33, 17, 9 and 9 pixels.

    `conv2` is the linear classifier; published code makes it a 1x1 convolution, whose weight of shape
    (num_classes, 1280, 1, 1) `load_weights` takes as well.
    """

    feature_points: ClassVar[tuple[str, ...]] = ("stage2", "stage3", "stage4", "stage7")

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pre = nn.Sequential(nn.Conv2d(channels, 32, 1, padding=1), nn.BatchNorm2d(32), nn.ReLU6())
        self.stage1 = LinearBottleneck(32, 16, stride=1, expansion=1)
        self.stage2 = _tiny_stage(16, 24, count=2, stride=2)
        self.stage3 = _tiny_stage(24, 32, count=3, stride=2)
        self.stage4 = _tiny_stage(32, 64, count=4, stride=2)
        self.stage5 = _tiny_stage(64, 96, count=3, stride=1)
        self.stage6 = _tiny_stage(96, 160, count=3, stride=1)
        self.stage7 = LinearBottleneck(160, 320, stride=1, expansion=6)
        self.conv1 = nn.Sequential(nn.Conv2d(320, _LAST, 1), nn.BatchNorm2d(_LAST), nn.ReLU6())
        self.conv2 = nn.Linear(_LAST, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, H, W)."""
        features = self.stage4(self.stage3(self.stage2(self.stage1(self.pre(inputs)))))
        features = self.conv1(self.stage7(self.stage6(self.stage5(features))))
        return self.conv2(features.mean((2, 3)))


def _tiny_stage(channels: int, out: int, *, count: int, stride: int) -> nn.Sequential:
    stage = nn.Sequential(LinearBottleneck(channels, out, stride=stride, expansion=6))
    for _ in range(count - 1):
        stage.append(LinearBottleneck(out, out, stride=1, expansion=6))
    return stage


def mobilenet_v2_cifar(*, num_classes: int, input_shape: Shape) -> MobileNetV2Cifar:
    """Return the half-width form for images of 16 to 128 pixels; TypeError or ValueError for others."""
    name = "mobilenet_v2_cifar"
    return MobileNetV2Cifar(
        image_channels(name, input_shape, least=16, most=SMALL_MOST, smaller="resnet2d", larger="mobilenet_v1"),
        check_whole("num_classes", num_classes, least=1),
    )


def mobilenet_v2_tiny(*, num_classes: int, input_shape: Shape) -> MobileNetV2Tiny:
    """Return the full-width form for images of 32 to 128 pixels; TypeError or ValueError for others."""
    name = "mobilenet_v2_tiny"
    return MobileNetV2Tiny(
        image_channels(
            name, input_shape, least=32, most=SMALL_MOST, smaller="mobilenet_v2_cifar", larger="mobilenet_v1"
        ),
        check_whole("num_classes", num_classes, least=1),
    )
