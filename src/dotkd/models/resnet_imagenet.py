"""The residual networks of He et al. for ImageNet (arXiv 1512.03385, table 1), and their forms for small images.

Four stages of 64, 128, 256, 512 channels (four times as many out of bottleneck blocks) with strides 1, 2, 2, 2; a
global average pool and a linear classifier. 18 layers have 2, 2, 2, 2 basic blocks; 34 have 3, 4, 6, 3 of them; 50
have as many bottleneck blocks.

`resnet18`, `resnet34` and `resnet50` have the paper's stem, a 7x7 convolution and a max-pool of stride 2 each, and the
parameter names of torchvision. `resnet18_small` and `resnet50_small`, for 32 and 64 pixels, have a 3x3 convolution
without a stride in its place; they are the "ResNet50" of distillation papers on CIFAR-100 (Tian et al.,
arXiv 1910.10699) and the "ResNet18" of theirs on Tiny-ImageNet, with the parameter names of those.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dotkd.models.arguments import check_whole
from dotkd.models.image_shape import SMALL_MOST, image_channels
from dotkd.models.initial import he_convolutions
from dotkd.models.residual_blocks import BasicBlock, Block, Bottleneck, ShortcutName, residual_stage

Shape = tuple[int, ...]
Blocks = tuple[int, int, int, int]

_EIGHTEEN: Blocks = (2, 2, 2, 2)
_THIRTY_FOUR: Blocks = (3, 4, 6, 3)


class ImageNetResNet(nn.Module):
    """The network with the paper's stem. The feature maps are at 1/4, 1/8, 1/16, 1/32 of the image's size."""

    feature_points: ClassVar[tuple[str, ...]] = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, channels: int, num_classes: int, *, block: Block, blocks: Blocks) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(block, blocks, "downsample")
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        he_convolutions(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, H, W)."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(inputs))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.fc(features.mean((2, 3)))


class SmallImageResNet(nn.Module):
    """The network with a 3x3 stem. The feature maps are at 1, 1/2, 1/4, 1/8 of the image's size."""

    feature_points: ClassVar[tuple[str, ...]] = ("layer1", "layer2", "layer3", "layer4")

    def __init__(self, channels: int, num_classes: int, *, block: Block, blocks: Blocks) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1, self.layer2, self.layer3, self.layer4 = _stages(block, blocks, "shortcut")
        self.linear = nn.Linear(512 * block.expansion, num_classes)
        he_convolutions(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, H, W)."""
        features = self.relu(self.bn1(self.conv1(inputs)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.linear(features.mean((2, 3)))


def _stages(block: Block, blocks: Blocks, shortcut: ShortcutName) -> list[nn.Sequential]:
    stages: list[nn.Sequential] = []
    channels = 64
    for width, count in zip((64, 128, 256, 512), blocks, strict=True):
        stride = 1 if width == 64 else 2
        stages.append(residual_stage(block, channels, width, blocks=count, stride=stride, shortcut=shortcut))
        channels = block.expansion * width
    return stages


def _imagenet(name: str, num_classes: int, input_shape: Shape, block: Block, blocks: Blocks) -> ImageNetResNet:
    smaller = "resnet50_small" if block is Bottleneck else "resnet18_small"
    return ImageNetResNet(
        image_channels(name, input_shape, least=64, smaller=smaller),
        check_whole("num_classes", num_classes, least=1),
        block=block,
        blocks=blocks,
    )


def _small(name: str, num_classes: int, input_shape: Shape, block: Block, blocks: Blocks) -> SmallImageResNet:
    larger = name.removesuffix("_small")
    return SmallImageResNet(
        image_channels(name, input_shape, least=8, most=SMALL_MOST, smaller="resnet2d", larger=larger),
        check_whole("num_classes", num_classes, least=1),
        block=block,
        blocks=blocks,
    )


def resnet18(*, num_classes: int, input_shape: Shape) -> ImageNetResNet:
    """Return ResNet-18 for images of at least 64 pixels; TypeError or ValueError for others."""
    return _imagenet("resnet18", num_classes, input_shape, BasicBlock, _EIGHTEEN)


def resnet34(*, num_classes: int, input_shape: Shape) -> ImageNetResNet:
    """Return ResNet-34 for images of at least 64 pixels; TypeError or ValueError for others."""
    return _imagenet("resnet34", num_classes, input_shape, BasicBlock, _THIRTY_FOUR)


def resnet50(*, num_classes: int, input_shape: Shape) -> ImageNetResNet:
    """Return ResNet-50 for images of at least 64 pixels; TypeError or ValueError for others."""
    return _imagenet("resnet50", num_classes, input_shape, Bottleneck, _THIRTY_FOUR)


def resnet18_small(*, num_classes: int, input_shape: Shape) -> SmallImageResNet:
    """Return ResNet-18 for images of 8 to 128 pixels; TypeError or ValueError for others."""
    return _small("resnet18_small", num_classes, input_shape, BasicBlock, _EIGHTEEN)


def resnet50_small(*, num_classes: int, input_shape: Shape) -> SmallImageResNet:
    """Return ResNet-50 for images of 8 to 128 pixels; TypeError or ValueError for others."""
    return _small("resnet50_small", num_classes, input_shape, Bottleneck, _THIRTY_FOUR)
