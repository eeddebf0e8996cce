"""MobileNet (Howard et al., arXiv 1704.04861, table 1), for ImageNet.

A 3x3 convolution with stride 2 and thirteen separable layers, each a depthwise 3x3 and a pointwise 1x1 convolution,
both with norm and ReLU; then a global average pool and a linear classifier. The depthwise convolution has the stride.

`model.1` ... `model.13` are the separable layers. Those that end a resolution (the paper's 56, 28, 14 and 7 pixels for
images of 224) are the feature maps, with 128, 256, 512 and 1024 channels.

Where this departs from the paper: its table gives the last depthwise convolution a stride of 2 between two maps of 7
pixels; that stride is 1, as the sizes of the same table require.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from dotkd.models.arguments import check_whole
from dotkd.models.image_shape import image_channels

# Channels and stride of each separable layer.
_LAYERS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)


class MobileNetV1(nn.Module):
    """The network of this file."""

    feature_points: ClassVar[tuple[str, ...]] = ("model.3", "model.5", "model.11", "model.13")

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        inner = 32
        stem = nn.Sequential(nn.Conv2d(channels, inner, 3, 2, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU())
        self.model = nn.Sequential(stem)
        for out, stride in _LAYERS:
            self.model.append(
                nn.Sequential(
                    nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
                    nn.BatchNorm2d(inner),
                    nn.ReLU(),
                    nn.Conv2d(inner, out, 1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                )
            )
            inner = out
        self.fc = nn.Linear(inner, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of inputs (N, channels, H, W)."""
        return self.fc(self.model(inputs).mean((2, 3)))


def mobilenet_v1(*, num_classes: int, input_shape: tuple[int, ...]) -> MobileNetV1:
    """Return MobileNet at full width for images of at least 64 pixels; TypeError or ValueError for others."""
    return MobileNetV1(
        image_channels("mobilenet_v1", input_shape, least=64, smaller="mobilenet_v2_cifar"),
        check_whole("num_classes", num_classes, least=1),
    )
