"""A network of three convolutions for pictures of 8 pixels: a student and a teacher that a CPU trains in seconds."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def three_convolutions(num_classes: int, input_shape: tuple[int, ...], width: int = 4) -> nn.Module:
    """Convolution, batch norm, ReLU, three times: `width` x (1, 2, 4) channels at strides 1, 2, 2; mean; linear."""
    stages: list[nn.Module] = []
    channels = input_shape[0]
    for stride, out in ((1, width), (2, 2 * width), (2, 4 * width)):
        convolution = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        stages.append(nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU()))
        channels = out
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    model = nn.Sequential(OrderedDict(first=stages[0], second=stages[1], third=stages[2], head=head))
    model.feature_points = ("first", "second", "third")  # type: ignore[assignment]
    return model
