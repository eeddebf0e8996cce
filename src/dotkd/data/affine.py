"""Affine maps of a whole batch of images, each by its own matrix, with the nearest pixel and black beyond the edge.

Output pixel (x, y) shows the input at (a (x + 1/2) + b (y + 1/2) + c, d (x + 1/2) + e (y + 1/2) + f), rounded down:
the convention of Pillow's `Image.transform` and `Image.rotate`, on which the published augmentations are built.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def transform(images: Tensor, matrices: Tensor) -> Tensor:
    """images: (B, C, H, W). matrices: (B, 6), the values a, b, c, d, e, f of each, on the same device."""
    count, channels, height, width = images.shape
    y = torch.arange(height, device=images.device).add(0.5).view(1, height, 1)
    x = torch.arange(width, device=images.device).add(0.5).view(1, 1, width)
    a, b, c, d, e, f = (value.view(count, 1, 1) for value in matrices.unbind(1))
    # Every place outside is brought to a black frame, one pixel wide: cheaper than asking which ones are inside.
    column = (a * x + b * y).add_(c).floor_().clamp_(-1, width).long()
    row = (d * x + e * y).add_(f).floor_().clamp_(-1, height).long()
    places = row.add_(1).mul_(width + 2).add_(column).add_(1)
    places = places.view(count, 1, height * width).expand(-1, channels, -1)
    return F.pad(images, [1] * 4).flatten(2).gather(2, places).view_as(images)


def rotations(degrees: Tensor, height: int, width: int) -> Tensor:
    """(B, 6) matrices for `transform` that turn images counter-clockwise about their middle. degrees: (B,)."""
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    middle_x, middle_y = width / 2, height / 2
    shift_x = middle_x - cos * middle_x + sin * middle_y
    shift_y = middle_y - sin * middle_x - cos * middle_y
    return torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1)
