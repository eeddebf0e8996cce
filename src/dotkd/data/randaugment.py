"""The strong view of methods that compare two views of an image: RandAugment (Cubuk et al., arXiv 1909.13719) in the
form of FixMatch (Sohn et al., arXiv 2001.07685, appendix D), which the published code of MLKD and CRLD uses.

Two of fourteen operations, drawn with replacement, are applied in turn, each with a strength drawn uniformly from its
own range (no common magnitude: that code takes one and ignores it); then a square of side U(0, 1/2) W about a uniform
point is painted over.

    autocontrast, equalize, identity    no strength
    brightness, colour, contrast, sharpness   blended with black, grey, mean grey, smoothed by 0.95 to 0.05
    posterize    4 to 7 bits are kept                 solarize    values from a threshold of 0 to 256 on are inverted
    rotate       -30 to 30 degrees, counter-clockwise
    shear_x, shear_y, translate_x, translate_y    -0.3 to 0.3 of the other or of the same side; what comes in is black

All are written on batches of uint8 images, so that they run where the batch lies, with another strength for every
image; they equal Pillow's `ImageOps`, `ImageEnhance`, `Image.transform` and `Image.rotate`, which that code calls.
Published code paints the square in (125, 123, 114), near CIFAR's mean colour;
here it gets the mean of the data set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dotkd.data import affine
from dotkd.data.draws import OPERATIONS as PURPOSE
from dotkd.data.draws import generator
from dotkd.data.transfer import to_device

ROUNDS = 2
LARGEST_SQUARE = 0.5  # of the width


class Draws(NamedTuple):
    """choice: (ROUNDS, B) int64, positions in OPERATIONS. strength: (ROUNDS, B) and square: (B, 3), side and middle (x,
    y), float32 in [0, 1)."""

    choice: Tensor
    strength: Tensor
    square: Tensor


def draw_operations(count: int, *, seed: int, epoch: int, batch: int) -> Draws:
    """What is done to each of `count` images, on the CPU."""
    source = generator(seed, PURPOSE, epoch, batch)
    return Draws(
        torch.randint(len(OPERATIONS), (ROUNDS, count), generator=source),
        torch.rand(ROUNDS, count, generator=source),
        torch.rand(count, 3, generator=source),
    )


def rand_augment(images: Tensor, draws: Draws, fill: Tensor) -> Tensor:
    """images: (B, C, H, W) uint8 with C 1 or 3, which stay as they are. fill: (C,) uint8, the colour of the square, on
    their device."""
    low, span = torch.tensor([(low, high - low) for low, high, _ in OPERATIONS.values()]).unbind(1)
    for choice, strength in zip(draws.choice, draws.strength, strict=True):
        # Images of one operation side by side. How many there are of each is known on the CPU, at no synchronisation.
        order = choice.argsort(stable=True)
        sizes = choice.bincount(minlength=len(OPERATIONS)).tolist()
        strengths = to_device((low[choice] + span[choice] * strength)[order], images.device).split(sizes)
        parts = images.index_select(0, to_device(order, images.device)).split(sizes)
        changed = [
            operation(part, values)
            for (_, _, operation), part, values in zip(OPERATIONS.values(), parts, strengths, strict=True)
            if len(part) > 0
        ]
        images = torch.cat(changed).index_select(0, to_device(order.argsort(), images.device))
    return paint_square(images, draws.square, fill)


def paint_square(images: Tensor, square: Tensor, fill: Tensor) -> Tensor:
    """Pixels within half a side of the middle, both ways, get the colour `fill` (C,). square: as of `Draws`."""
    height, width = images.shape[2:]
    pixels_of = square * torch.tensor([LARGEST_SQUARE * width, width, height])
    side, x, y = to_device(pixels_of, images.device).unbind(1)

    def covered(middle: Tensor, size: int) -> Tensor:
        start = (middle - side / 2).clamp(min=0).floor()
        pixels = torch.arange(size, device=images.device)
        return (pixels >= start.unsqueeze(1)) & (pixels < (start + side).unsqueeze(1))

    inside = (covered(y, height).unsqueeze(2) & covered(x, width).unsqueeze(1)).unsqueeze(1)
    # Modulo 256, as bytes count; on a CPU several times faster than `torch.where`.
    return images + (fill.view(-1, 1, 1) - images) * inside.to(torch.uint8)


def _identity(images: Tensor, _: Tensor) -> Tensor:
    return images


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched so that its extremes become 0 and 255."""
    lowest, highest = images.flatten(2).aminmax(dim=2)
    low, high = (edge.double().view(*edge.shape, 1, 1) for edge in (lowest, highest))
    # In double precision and in this order, as Pillow does, for results are cut off, not rounded; `255 / tensor` would
    # be a rounded reciprocal times 255.
    scale = torch.full_like(low, 255) / (high - low).clamp(min=1)
    stretched = (images.double() * scale + -low * scale).clamp(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Each channel mapped by its cumulative histogram, as even as whole steps allow."""
    planes = images.flatten(0, 1).flatten(1).long()  # (B C, H W)
    start = torch.arange(len(planes), device=images.device).unsqueeze(1) * 256
    counts = torch.zeros(len(planes) * 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(0, (planes + start).flatten(), torch.ones_like(planes).flatten())
    counts = counts.view(-1, 256)
    brightest = counts.gather(1, planes.amax(1, keepdim=True))
    step = (planes.shape[1] - brightest) // 255
    below = counts.cumsum(1) - counts
    mapped = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    out = torch.where(step > 0, mapped.gather(1, planes), planes)
    return out.to(torch.uint8).view_as(images)


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    kept = 256 - 2 ** (8 - bits.floor().long())
    return images & kept.to(torch.uint8).view(-1, 1, 1, 1)


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images < threshold.view(-1, 1, 1, 1), images, 255 - images)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images), images, factor)


def _colour(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(_grey(images).expand_as(images), images, factor)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(images).float().mean((1, 2, 3), keepdim=True).add(0.5).floor()
    return _blend(mean.to(torch.uint8).expand_as(images), images, factor)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Towards a 3x3 mean in which the middle counts five times; the outermost pixels have none."""
    smooth = images.clone()
    if min(images.shape[2:]) > 2:
        kernel = torch.ones(images.shape[1], 1, 3, 3, device=images.device)
        kernel[:, :, 1, 1] = 5
        sums = F.conv2d(images.float(), kernel, groups=images.shape[1])
        smooth[:, :, 1:-1, 1:-1] = (sums / 13 + 0.5).floor().to(torch.uint8)
    return _blend(smooth, images, factor)


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    return affine.transform(images, affine.rotations(degrees, images.shape[2], images.shape[3]))


def _affine(position: int, side: int = 0) -> Callable[[Tensor, Tensor], Tensor]:
    """Identity but for one of the six values of a matrix: the strength, times the images' size in `side` if given."""

    def apply(images: Tensor, strength: Tensor) -> Tensor:
        matrices = torch.zeros(len(images), 6, device=images.device)
        matrices[:, 0] = matrices[:, 4] = 1
        matrices[:, position] = strength * (images.shape[side] if side else 1)
        return affine.transform(images, matrices)

    return apply


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) uint8: luma of ITU-R 601-2 in 16-bit fixed point."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) >> 16).to(torch.uint8).unsqueeze(1)


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """other + factor (images - other), rounded down. factor: (B,) in [0, 1]."""
    first = other.float()
    return (first + factor.view(-1, 1, 1, 1) * (images.float() - first)).to(torch.uint8)


# Name -> the range of its strength, and the operation. The order is part of every published result.
OPERATIONS: dict[str, tuple[float, float, Callable[[Tensor, Tensor], Tensor]]] = {
    "autocontrast": (0, 1, _autocontrast),
    "brightness": (0.05, 0.95, _brightness),
    "colour": (0.05, 0.95, _colour),
    "contrast": (0.05, 0.95, _contrast),
    "equalize": (0, 1, _equalize),
    "identity": (0, 1, _identity),
    "posterize": (4, 8, _posterize),
    "rotate": (-30, 30, _rotate),
    "sharpness": (0.05, 0.95, _sharpness),
    "shear_x": (-0.3, 0.3, _affine(1)),
    "shear_y": (-0.3, 0.3, _affine(3)),
    "solarize": (0, 256, _solarize),
    "translate_x": (-0.3, 0.3, _affine(2, side=3)),
    "translate_y": (-0.3, 0.3, _affine(5, side=2)),
}
