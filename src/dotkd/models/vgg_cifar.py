"""VGG networks with batch normalisation (Simonyan and Zisserman, arXiv 1409.1556, table 1), for 32 and 64 pixels.

Five blocks of 3x3 convolutions, each with norm and ReLU, of 64, 128, 256, 512, 512 channels; `vgg11`, `vgg13`,
`vgg16`, `vgg19` are the paper's columns A, B, D and E, and `vgg8` has one convolution a block. 2x2 max-pools stand
between the blocks.

Where this departs from the paper, as distillation papers do (Tian et al., arXiv 1910.10699): batch normalisation; a
global average pool and one linear layer in place of three; and no max-pool in front of the last block where a side of
the image is shorter than 64 pixels, which leaves that block 1/8 of the image's size and not 1/16.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dotkd.models.arguments import check_whole
from dotkd.models.image_shape import SMALL_MOST, image_channels
from dotkd.models.initial import he_convolutions, small_linear

Shape = tuple[int, ...]

_WIDTHS = (64, 128, 256, 512, 512)
# Images with shorter sides skip the last max-pool.
_FOURTH_POOL_FROM = 64


class Vgg(nn.Module):
    """The network of this file: `convolutions` are those of each block.

    The feature maps are those of `block1` to `block4`; `block0`, at the full size of the image, serves as the stem,
    so that entry i of `feature_points` is as deep as entry i of the other families.
    """

    feature_points: ClassVar[tuple[str, ...]] = ("block1", "block2", "block3", "block4")

    def __init__(
        self, channels: int, num_classes: int, *, convolutions: tuple[int, int, int, int, int], fourth_pool: bool
    ) -> None:
        super().__init__()
        first, second, third, fourth, fifth = convolutions
        self.block0 = _block(channels, _WIDTHS[0], first)
        self.pool0 = nn.MaxPool2d(2)
        self.block1 = _block(_WIDTHS[0], _WIDTHS[1], second)
        self.pool1 = nn.MaxPool2d(2)
        self.block2 = _block(_WIDTHS[1], _WIDTHS[2], third)
        self.pool2 = nn.MaxPool2d(2)
        self.block3 = _block(_WIDTHS[2], _WIDTHS[3], fourth)
        self.pool3 = nn.MaxPool2d(2) if fourth_pool else nn.Identity()
        self.block4 = _block(_WIDTHS[3], _WIDTHS[4], fifth)
        self.classifier = nn.Linear(_WIDTHS[4], num_classes)
        he_convolutions(self)
        small_linear(self.classifier)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, H, W)."""
        features = self.pool0(self.block0(inputs))
        features = self.pool1(self.block1(features))
        features = self.pool2(self.block2(features))
        features = self.pool3(self.block3(features))
        return self.classifier(self.block4(features).mean((2, 3)))


def _block(channels: int, width: int, count: int) -> nn.Sequential:
    block = nn.Sequential()
    for _ in range(count):
        # The bias is redundant beside the norm's own shift; published weights have it.
        block.extend([nn.Conv2d(channels, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()])
        channels = width
    return block


def _vgg(name: str, num_classes: int, input_shape: Shape, convolutions: tuple[int, int, int, int, int]) -> Vgg:
    return Vgg(
        image_channels(name, input_shape, least=8, most=SMALL_MOST, smaller="resnet2d", larger="resnet18"),
        check_whole("num_classes", num_classes, least=1),
        convolutions=convolutions,
        fourth_pool=min(input_shape[1:]) >= _FOURTH_POOL_FROM,
    )


def vgg8(*, num_classes: int, input_shape: Shape) -> Vgg:
    """Return VGG-8 for images of 8 to 128 pixels; TypeError or ValueError for others, as all of this file."""
    return _vgg("vgg8", num_classes, input_shape, (1, 1, 1, 1, 1))


def vgg11(*, num_classes: int, input_shape: Shape) -> Vgg:
    """Return VGG-11, column A of the paper's table."""
    return _vgg("vgg11", num_classes, input_shape, (1, 1, 2, 2, 2))


def vgg13(*, num_classes: int, input_shape: Shape) -> Vgg:
    """Return VGG-13, column B of the paper's table."""
    return _vgg("vgg13", num_classes, input_shape, (2, 2, 2, 2, 2))


def vgg16(*, num_classes: int, input_shape: Shape) -> Vgg:
    """Return VGG-16, column D of the paper's table."""
    return _vgg("vgg16", num_classes, input_shape, (2, 2, 3, 3, 3))


def vgg19(*, num_classes: int, input_shape: Shape) -> Vgg:
    """Return VGG-19, column E of the paper's table."""
    return _vgg("vgg19", num_classes, input_shape, (2, 2, 4, 4, 4))
