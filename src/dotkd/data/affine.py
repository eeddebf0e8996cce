"""Affine maps of a whole batch of images, each by its own matrix, with the nearest pixel and black beyond the edge.

Output pixel (x, y) shows the input at (a (x + 1/2) + b (y + 1/2) + c, d (x + 1/2) + e (y + 1/2) + f), rounded down:
the convention of Pillow's `Image.transform` and `Image.rotate`, on which the published augmentations are built.
"""

from __future__ import annotations

import torch
from torch import Tensor


def transform(images: Tensor, matrices: Tensor) -> Tensor:
    """images: (B, C, H, W). matrices: (B, 6), the values a, b, c, d, e, f of each, on the same device."""
    count, channels, height, width = images.shape
    y = torch.arange(height, device=images.device).add(0.5).view(1, height, 1)
    x = torch.arange(width, device=images.device).add(0.5).view(1, 1, width)
    a, b, c, d, e, f = (column.view(count, 1, 1) for column in matrices.unbind(1))
    column, row = (a * x + b * y + c).floor().long(), (d * x + e * y + f).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    places = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    places = places.view(count, 1, height * width).expand(-1, channels, -1)
    pixels = images.reshape(count, channels, height * width).gather(2, places).view_as(images)
    return pixels * inside.unsqueeze(1)


def rotations(degrees: Tensor, height: int, width: int) -> Tensor:
    """(B, 6) matrices for `transform` that turn images counter-clockwise about their middle. degrees: (B,)."""
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    middle_x, middle_y = width / 2, height / 2
    shift_x = middle_x - cos * middle_x + sin * middle_y
    shift_y = middle_y - sin * middle_x - cos * middle_y
    return torch.stack([cos, -sin, shift_x, sin, cos, shift_y], dim=1)
